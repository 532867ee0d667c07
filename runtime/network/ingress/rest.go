package ingress

import (
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// parking is where a loop waits when nothing has come for a while: an epoll that Go's poller
// knows, and that has the loop's own in it meanwhile. It is not the loop's own that the poller
// knows, since then a thread would be woken for everything that comes.
type parking struct {
	epoll int      // of file
	file  *os.File // nil for none
	raw   syscall.RawConn
}

func newParking() (parking, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return parking{}, err
	}
	// A file is given to the poller if it says that it does not block.
	if err := unix.SetNonblock(epoll, true); err != nil {
		return parking{}, errors.Join(err, unix.Close(epoll))
	}
	p := parking{epoll: epoll, file: os.NewFile(uintptr(epoll), "epoll")}
	p.raw, err = p.file.SyscallConn()
	return p, err
}

func (p *parking) close() {
	if p.file != nil {
		_ = p.file.Close()
	}
}

// until returns when an epoll has something to tell, or after some milliseconds, negative for
// never. It returns false at once if that cannot be waited for here.
func (p *parking) until(epoll, ms int) bool {
	var end time.Time
	if ms >= 0 {
		end = time.Now().Add(time.Duration(ms) * time.Millisecond)
	}
	if p.file.SetReadDeadline(end) != nil {
		return false
	}
	in, asked := false, false
	err := p.raw.Read(func(uintptr) (done bool) {
		if asked {
			return true
		}
		asked = true
		in = follow(p.epoll, epoll, 0, unix.EPOLLIN) == nil
		return !in
	})
	if in {
		unfollow(p.epoll, epoll)
	}
	return in && err == nil || errors.Is(err, os.ErrDeadlineExceeded)
}

// parksWith is how many connections a loop may have to park. The kernel looks at all of them
// when one epoll gets into another: then for as long as it takes to wake a thread.
const parksWith = 256

// rest waits until the epoll has something to tell, or somebody has waited for long.
//
// A system call that waits would do, but a goroutine that comes out of one into a process at rest
// wakes the thread that watches over the others (sysmon in runtime/proc.go), which looks what they do
// fifty times, every 20 µs: the first ten requests took up to a quarter longer. Go's poller
// wakes nobody else.
func (o *loop) rest(events []unix.EpollEvent) (n int, err error) {
	patience := o.patience()
	o.mu.Lock()
	few := len(o.conns) <= parksWith
	o.mu.Unlock()
	if !few || !o.parking.until(o.epoll, patience) {
		return unix.EpollWait(o.epoll, events, patience)
	}
	o.relieve(time.Now())
	return eventsWithin(o.epoll, events, 0), nil
}

// relievedAfter is when a loop that does not rest is relieved again, if that once was not enough.
const relievedAfter = 100 * time.Millisecond

// relieve has another thread wait for the network and for timers, for all goroutines: the thread
// that did so is the loop's when it comes from its rest, and may be for long. A thread begins
// to wait when it has run out of goroutines, so one is woken with a goroutine that ends at once.
func (o *loop) relieve(now time.Time) {
	go func() {}()
	o.relieved = now
}
