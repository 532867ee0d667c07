package ingress

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"time"
)

// podConn is a connection to a pod, in HTTP/1.1, that one request after the other is sent
// on. It belongs to one goroutine at a time.
type podConn struct {
	net.Conn
	used bool      // by an earlier request
	idle time.Time // since when

	// left is how much more may be read, in bytes.
	left int64
	// deadline is when the pod must have answered; zero for never.
	deadline time.Time
}

// maxAnswerHead is the most that the head of a pod's answer may have, in bytes.
const maxAnswerHead = 256 << 10

var errAnswerHead = errors.New("the head of the pod's answer is too large")

// begin prepares for a request, which ends at deadline.
func (p *podConn) begin(deadline time.Time) error {
	p.left, p.deadline = maxAnswerHead, deadline
	return p.SetDeadline(deadline)
}

// headRead prepares for a body, which may be as large as the pod likes, and take as long
// unless the deadline is for the whole answer.
func (p *podConn) headRead(whole bool) error {
	p.left = 1<<63 - 1
	if whole || p.deadline.IsZero() {
		return nil
	}
	p.deadline = time.Time{}
	return p.SetDeadline(p.deadline)
}

// Read implements io.Reader.
func (p *podConn) Read(b []byte) (int, error) {
	if p.left <= 0 {
		return 0, errAnswerHead
	}
	n, err := p.Conn.Read(b[:min(int64(len(b)), p.left)])
	p.left -= int64(n)
	return n, err
}

// usable says that the pod has neither closed the connection nor sent anything since
// the last request. A request that may be sent again need not be sure.
func (p *podConn) usable(again bool) bool {
	if c, ok := p.Conn.(*loopConn); ok && again && c.seemsQuiet() {
		return true
	}
	q, ok := p.Conn.(quieter)
	return ok && q.quiet()
}

// quieter is a connection that can tell whether it is usable for another request; those
// that are none of the kernel's cannot.
type quieter interface{ quiet() bool }

// give gives the connection, which is nobody's, to the task that will use it. It is closed
// if that fails.
func (p *podConn) give(t *task) error {
	conn, err := p.Conn, error(nil)
	switch c := p.Conn.(type) {
	case *loopConn:
		conn, err = c.give(t)
	case *quickConn:
		if t.inLoop() {
			conn, err = adopt(c, t)
		}
	}
	if err != nil {
		return err
	}
	p.Conn = conn
	return nil
}

// free makes the connection nobody's.
func (p *podConn) free() {
	if c, ok := p.Conn.(*loopConn); ok {
		c.free()
	}
}

// home is the loop that the connection is in, nil for none.
func (p *podConn) home() *loop {
	if c, ok := p.Conn.(*loopConn); ok {
		return c.loop
	}
	return nil
}

// Close implements io.Closer.
func (p *podConn) Close() error {
	p.free()
	return p.Conn.Close()
}

// outlived says that the deadline may pass while the connection waits for the next request,
// which makes it unusable. Where it does not, it stays: the next request sets it anyhow.
func (p *podConn) outlived() bool {
	return !p.deadline.IsZero() && p.deadline.Sub(p.idle) <= idleTimeout
}

// idleConns are the connections to a pod that wait for the next request. Its methods may
// be called at the same time.
type idleConns struct {
	mu     sync.Mutex
	conns  []*podConn // the newest is last
	closed bool
	sweep  *time.Timer
}

// take returns a connection for a task, nil if there is none. again is whether its request
// may be sent once more if the pod has closed the connection.
func (i *idleConns) take(t *task, again bool) *podConn {
	for {
		c := i.newest(t)
		if c == nil {
			return nil
		}
		if !c.usable(again) {
			_ = c.Close()
		} else if c.give(t) == nil {
			return c
		}
	}
}

// newest takes the newest connection out, of those where the task is if there are any.
func (i *idleConns) newest(t *task) *podConn {
	var home *loop
	if t.inLoop() {
		home = t.loop
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	n := len(i.conns)
	if n == 0 {
		return nil
	}
	at := n - 1
	for k := n - 1; k >= 0; k-- {
		if i.conns[k].home() == home {
			at = k
			break
		}
	}
	c := i.conns[at]
	i.conns = slices.Delete(i.conns, at, at+1)
	return c
}

// put keeps a connection for the next request.
func (i *idleConns) put(c *podConn) {
	c.free()
	c.used, c.idle = true, time.Now()
	if _, ok := c.Conn.(quieter); !ok || c.outlived() && c.SetDeadline(time.Time{}) != nil {
		_ = c.Close()
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed || len(i.conns) >= idlePerPod {
		_ = c.Close()
		return
	}
	i.conns = append(i.conns, c)
	if i.sweep == nil {
		i.sweep = time.AfterFunc(idleTimeout, i.old)
	}
}

// old closes the connections that have not been needed for long.
func (i *idleConns) old() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.sweep = nil
	n := 0
	for n < len(i.conns) && time.Since(i.conns[n].idle) >= idleTimeout {
		_ = i.conns[n].Close()
		n++
	}
	i.conns = append(i.conns[:0:0], i.conns[n:]...)
	if len(i.conns) > 0 {
		i.sweep = time.AfterFunc(idleTimeout-time.Since(i.conns[0].idle), i.old)
	}
}

// close closes all, and those that are put later.
func (i *idleConns) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.closed = true
	for _, c := range i.conns {
		_ = c.Close()
	}
	i.conns = nil
	if i.sweep != nil {
		i.sweep.Stop()
	}
}

// connect returns a connection to an endpoint for a task: one that waits for a request, unless it
// has to be fresh, or a new one. again is whether the request may be sent once more.
func (t *transport) connect(e *endpoint, fresh, again bool, deadline time.Time, task *task) (*podConn, error) {
	if !fresh {
		if c := e.idle.take(task, again); c != nil {
			return c, nil
		}
	}
	ctx := context.Background()
	if !deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	var c net.Conn
	var err error
	task.await(func() { c, err = t.dial(ctx, "tcp", e.addr.String()) })
	if err != nil {
		return nil, err
	}
	p := &podConn{Conn: quick(c)}
	if _, ok := p.Conn.(*quickConn); !ok {
		task.leave() // it cannot be waited for in a loop
	}
	if err := p.give(task); err != nil {
		return nil, dialError{err}
	}
	return p, nil
}
