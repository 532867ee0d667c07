package ingress

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// loop takes connections and answers what is asked on them as long as that goes quickly, by
// an epoll of its own. When a goroutine waits for the network, Go's scheduler wakes one or
// two threads to let it go on, and that costs more than to answer a request. Here it
// is a coroutine of the loop, which goes back to it when there is nothing to be read. What
// takes longer than usual, cannot be written, or has a large body, is let go to be an
// ordinary goroutine: what bounds those, and ends them when their clients go away, need not
// be done twice.
type loop struct {
	epoll, wake int // descriptors
	listener    int // -1 once nothing is accepted any more
	begin       func(o *loop, c *loopConn, from netip.AddrPort) *task

	mu     sync.Mutex
	conns  map[int32]*loopConn // by the numbers that epoll tells
	number int32               // the last one
	ready  []*task             // that can go on
	ended  bool
	paused bool // nothing is accepted for a moment

	tasks atomic.Int64  // that have not been let go
	seats *atomic.Int64 // see stay

	// The loop's own.
	parking  parking
	waiting  queue
	left     bool         // something for other threads to do, since the last wait
	ending   []reader     // see happened
	yielded  time.Time    // when other goroutines last had their turn
	relieved time.Time    // see relieve
	spare    []*coroutine // without a task
}

// maxSpare is how many coroutines wait for a task at most.
const maxSpare = 32

// The numbers of what are no connections.
const (
	numberListener int32 = iota
	numberWake
)

const eventsAtOnce = 128

// newLoop makes a loop. The connections that are to be in it come by admit, or by listen.
// seats is how many of the loops may keep their processor in a wait.
func newLoop(seats *atomic.Int64) (*loop, error) {
	o := &loop{seats: seats, epoll: -1, wake: -1, listener: -1, conns: map[int32]*loopConn{}, number: numberWake}
	var err error
	if o.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err == nil {
		if o.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err == nil {
			if err = follow(o.epoll, o.wake, numberWake, unix.EPOLLIN); err == nil {
				o.parking, err = newParking()
			}
		}
	}
	if err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

// listen has a loop that does not run yet take connections from a listener, of which it has
// a descriptor of its own, and begin a task for each.
func (o *loop) listen(l *net.TCPListener, begin func(*loop, *loopConn, netip.AddrPort) *task) error {
	o.begin = begin
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	err = errors.Join(raw.Control(func(fd uintptr) {
		// Connections have what their listener has (tcp(7)), as net sets it on each.
		for _, option := range [][3]int{
			{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1}, {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15}, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
			// It is the client that speaks first: it is taken with what it says, so that
			// the loop is woken once, or after a second without a word.
			{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 1},
		} {
			err = errors.Join(err, unix.SetsockoptInt(int(fd), option[0], option[1], option[2]))
		}
		if err == nil {
			o.listener, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		}
	}), err)
	if err != nil {
		return err
	}
	return follow(o.epoll, o.listener, numberListener, listenerEvents)
}

// listenerEvents has only one of several loops woken for a connection.
const listenerEvents = unix.EPOLLIN | unix.EPOLLEXCLUSIVE

func (o *loop) close() {
	o.parking.close()
	for _, fd := range []int{o.epoll, o.wake, o.listener} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// rouse ends the loop's wait. It is called with mu held.
func (o *loop) rouse() {
	if !o.shutDown() {
		one := [8]byte{1}
		_, _ = unix.Write(o.wake, one[:])
	}
}

// end lets all tasks go. It may be called at any time, and from anywhere, while run runs.
func (o *loop) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.rouse()
}

// admit begins a task whose connection has entered the loop.
func (o *loop) admit(t *task) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		t.loop = nil
		go func() {
			t.client.letGo()
			t.run()
		}()
		return
	}
	o.tasks.Add(1)
	o.ready = append(o.ready, t)
	o.rouse()
}

// goOn has a task go on that waits for nothing of the loop's.
func (o *loop) goOn(t *task) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ready = append(o.ready, t)
	o.rouse()
}

// run works until end is called and all tasks have ended or been let go.
func (o *loop) run() {
	defer o.shut()
	events := make([]unix.EpollEvent, eventsAtOnce)
	for n := 0; ; {
		if n != 0 {
			n = o.stay(events)
		}
		if n == 0 {
			var err error
			if n, err = o.rest(events); err != nil && err != unix.EINTR {
				panic(fmt.Sprintf("ingress: epoll_wait: %v", err)) // it was asked for what it cannot do
			}
		}
		o.left = false
		o.happened(events[:max(n, 0)])
		ready, ended := o.takeReady()
		for _, t := range ready {
			o.resume(t)
		}
		for t := o.waiting.first; t != nil && (ended || time.Since(t.since) >= usually); t = o.waiting.first {
			o.waiting.remove(t)
			o.release(t)
		}
		if ended {
			o.refuse()
			if o.tasks.Load() == 0 {
				return
			}
		}
	}
}

// staysFor is how long a loop keeps its processor for, in milliseconds. It is more than the
// kernel's usual tick (4 ms): for a shorter wait it sets a timer, which takes a virtual machine
// some microseconds each time.
const staysFor = 5

// yieldsAfter is how long the loop goes on until it lets other goroutines of its processor
// have their turn. It is less than the 10 ms after which Go's scheduler interrupts
// who has been running: by a signal, and with another thread woken that finds nothing to do,
// which a request in twenty would wait for.
const yieldsAfter = 5 * time.Millisecond

// stay waits for what comes soon, as it mostly does where something has just come, and keeps
// the processor meanwhile: otherwise Go's scheduler gives it to another thread, or looks for
// one, and a third one watches over that. Half of the processors are for the others, and so is
// this one where they have been given something to do.
func (o *loop) stay(events []unix.EpollEvent) (n int) {
	if o.left {
		return eventsWithin(o.epoll, events, 0)
	}
	defer o.seats.Add(1)
	if o.seats.Add(-1) < 0 {
		return eventsWithin(o.epoll, events, 0)
	}
	if now := time.Now(); now.Sub(o.yielded) >= yieldsAfter {
		goyield()
		o.yielded = now
		if now.Sub(o.relieved) >= relievedAfter {
			o.relieve(now)
		}
	}
	return eventsWithin(o.epoll, events, staysFor)
}

// refuse takes no connections any more.
func (o *loop) refuse() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.listener >= 0 {
		unfollow(o.epoll, o.listener)
		_ = unix.Close(o.listener)
		o.listener = -1
	}
}

// patience is how long nothing may happen, in milliseconds, until a task has waited too
// long; -1 for ever.
func (o *loop) patience() int {
	t := o.waiting.first
	if t == nil {
		return -1
	}
	return max(0, int((usually-time.Since(t.since)+time.Millisecond-1)/time.Millisecond))
}

// happened sees to what epoll has told. Who has hung up mostly waits for nothing, and to close a
// connection takes as long as to answer a request: it is noted at once, and done last. A client
// that comes with one connection after the other would otherwise mostly wait with
// the new one for the end of the one before.
func (o *loop) happened(events []unix.EpollEvent) {
	const hungUp = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	o.ending = o.ending[:0]
	for _, ev := range events {
		if ev.Events&hungUp != 0 {
			o.ending = append(o.ending, o.stirred(ev))
		}
	}
	for _, ev := range events {
		switch {
		case ev.Events&hungUp != 0:
		case ev.Fd == numberListener:
			o.accept()
		case ev.Fd == numberWake:
			var count [8]byte
			_, _ = unix.Read(o.wake, count[:])
		default:
			o.goOnReading(o.stirred(ev))
		}
	}
	for _, r := range o.ending {
		o.goOnReading(r)
	}
	clear(o.ending)
}

// reader is a connection and whose it is, nil for nobody's.
type reader struct {
	conn *loopConn
	task *task
}

// stirred takes what epoll tells of a connection.
func (o *loop) stirred(ev unix.EpollEvent) reader {
	o.mu.Lock()
	c := o.conns[ev.Fd]
	o.mu.Unlock()
	return reader{c, c.stirred(o, ev.Events)}
}

// goOnReading has the task go on if it waits for the connection.
func (o *loop) goOnReading(r reader) {
	if r.task != nil && r.task.on == r.conn {
		o.resume(r.task)
	}
}

func (o *loop) takeReady() (ready []*task, ended bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	ready, o.ready = o.ready, nil
	return ready, o.ended
}

// accept takes a connection, and begins its task. If there are more, epoll says so again.
func (o *loop) accept() {
	fd, from, err := acceptNow(o.listener)
	switch err {
	case nil:
	case unix.EAGAIN, unix.EINTR, unix.ECONNABORTED:
		return
	default:
		o.pause(err)
		return
	}
	o.setPaused(false)
	o.tasks.Add(1)
	// It joins when it is first waited for: now there is something to be read (see listen),
	// and nobody waits for more until that is answered.
	o.resume(o.begin(o, &loopConn{fd: fd, loop: o}, from))
}

func (o *loop) setPaused(now bool) (before bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	before, o.paused = o.paused, now
	return before
}

// pause takes no connections for a moment, since there are too many open files or the like.
func (o *loop) pause(err error) {
	if !o.setPaused(true) {
		slog.Warn("ingress: no connection can be taken, will retry", "error", err)
	}
	unfollow(o.epoll, o.listener)
	time.AfterFunc(retryAccept, o.unpause)
}

// unpause takes connections again, if not now then soon.
func (o *loop) unpause() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.ended && follow(o.epoll, o.listener, numberListener, listenerEvents) != nil {
		time.AfterFunc(retryAccept, o.unpause)
	}
}

// connOf makes a connection of a descriptor, which is closed if that fails.
func (o *loop) connOf(fd int) (*loopConn, error) {
	c := &loopConn{fd: fd}
	if err := o.join(c); err != nil {
		_ = closeNow(fd)
		return nil, err
	}
	return c, nil
}

// join makes a connection one of the loop's.
func (o *loop) join(c *loopConn) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		if o.number++; o.number <= numberWake {
			o.number = numberWake + 1
		}
		if o.conns[o.number] == nil {
			break
		}
	}
	// Told of once for each time that something comes, so nothing needs to be done when
	// what has come is read.
	if err := follow(o.epoll, c.fd, o.number, unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLET); err != nil {
		return err
	}
	c.loop, c.number, c.drained, c.hungUp = o, o.number, true, false // it tells of what is there
	o.conns[c.number] = c
	return nil
}

// part ends that a connection is one of the loop's.
func (o *loop) part(c *loopConn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.shutDown() {
		unfollow(o.epoll, c.fd)
	}
	delete(o.conns, c.number)
}

// forget is part for a connection that is about to be closed, which ends it for epoll.
func (o *loop) forget(c *loopConn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.conns, c.number)
}

// resume runs a task until it goes back to the loop.
func (o *loop) resume(t *task) {
	if t.on != nil {
		o.waiting.remove(t)
		t.on = nil
	}
	if t.coroutine == nil {
		o.lend(t)
	}
	t.steps = stepsAtOnce
	t.next()
	switch {
	case t.ended:
		o.tasks.Add(-1)
		if t.pod != nil { // it has been broken off
			_ = t.pod.Close()
		}
		o.keep(t.coroutine)
	case t.leaving:
		o.release(t)
	case t.on != nil:
		t.since = time.Now()
		o.waiting.add(t)
	}
}

// lend gives a task a coroutine.
func (o *loop) lend(t *task) {
	if last := len(o.spare) - 1; last >= 0 {
		t.coroutine = o.spare[last]
		o.spare = o.spare[:last]
	} else {
		t.coroutine = newCoroutine()
	}
	t.coroutine.task = t
}

// keep keeps the coroutine of a task that has ended for another one.
func (o *loop) keep(c *coroutine) {
	if c.task = nil; len(o.spare) < maxSpare {
		o.spare = append(o.spare, c)
	} else {
		c.stop()
	}
}

// release lets a task go, which goes on at once.
func (o *loop) release(t *task) {
	o.left = true
	o.tasks.Add(-1)
	t.on, t.loop = nil, nil
	t.client.letGo()
	if t.pod != nil {
		t.pod.letGo()
	}
	if t.letGo != nil {
		t.letGo()
	}
	go t.next()
}

// shut ends the loop. Connections to pods may still be waiting for the next request, be it
// in another loop.
func (o *loop) shut() {
	for _, c := range o.spare {
		c.stop()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.close()
	o.epoll, o.wake, o.listener = -1, -1, -1
}

// shutDown is called with mu held.
func (o *loop) shutDown() bool { return o.epoll < 0 }
