package ingress

import (
	"iter"
	"time"
)

// task answers the requests of a client. It is written as a goroutine is, and is a
// coroutine of a loop until it is let go: an ordinary goroutine then, with ordinary
// connections. The loop, too, uses it only while it does not run. A nil *task is one that
// was never in a loop.
type task struct {
	loop   *loop // nil once it was let go
	client *loopConn
	pod    *loopConn // that it has, nil for none
	letGo  func()    // called when it is let go
	steps  int       // that it may still make before others get their turn

	run        func() // what it does
	*coroutine        // that runs it; nil before it has begun
	ended      bool

	// Why it went back: it waits for something to be read from a connection, or wants to
	// be let go; otherwise somebody else will say that it can go on.
	on      *loopConn
	leaving bool

	since         time.Time // when it began to wait
	before, after *task     // in the queue of those that wait
}

// stepsAtOnce is how many reads and writes a task makes in a row at most: one that has a
// large body to pass on is none for a loop.
const stepsAtOnce = 64

// coroutine runs one task after the other. To make one, and to let its stack grow, takes as
// long as to read a request and to write it for the pod.
type coroutine struct {
	next  func() (struct{}, bool) // runs it on
	yield func(struct{}) bool     // goes back to the loop; false says that it is not needed any more
	stop  func()
	task  *task // the one that it runs
}

// newCoroutine makes a coroutine without a task.
func newCoroutine() *coroutine {
	c := &coroutine{}
	c.next, c.stop = iter.Pull(func(yield func(struct{}) bool) {
		c.yield = yield
		for {
			t := c.task
			t.run()
			t.ended = true
			if !t.inLoop() || !yield(struct{}{}) {
				return
			}
		}
	})
	return c
}

// newTask makes a task that does what run does.
func newTask(o *loop, client *loopConn, run func()) *task {
	t := &task{loop: o, client: client, run: run}
	client.belongTo(t)
	return t
}

func (t *task) inLoop() bool { return t != nil && t.loop != nil }

// leave lets the task go that calls it.
func (t *task) leave() {
	if t.inLoop() {
		t.leaving = true
		t.yield(struct{}{})
	}
}

// wait returns when there may be something to be read, or the task was let go.
func (t *task) wait(c *loopConn) {
	t.on = c
	t.yield(struct{}{})
}

// step counts a read or write.
func (t *task) step() {
	if t.steps--; t.steps < 0 {
		t.leave()
	}
}

// await runs f, which may take long, without the loop waiting for it.
func (t *task) await(f func()) {
	if !t.inLoop() {
		f()
		return
	}
	o := t.loop
	o.left = true
	var fault any
	go func() {
		defer func() {
			fault = recover()
			o.goOn(t)
		}()
		f()
	}()
	t.yield(struct{}{})
	if fault != nil {
		panic(fault)
	}
}

// queue is the tasks that wait, those that do for longest first.
type queue struct{ first, last *task }

func (q *queue) add(t *task) {
	t.before = q.last
	if q.last != nil {
		q.last.after = t
	} else {
		q.first = t
	}
	q.last = t
}

func (q *queue) remove(t *task) {
	if t.before != nil {
		t.before.after = t.after
	} else {
		q.first = t.after
	}
	if t.after != nil {
		t.after.before = t.before
	} else {
		q.last = t.before
	}
	t.before, t.after = nil, nil
}
