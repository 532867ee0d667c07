package ingress

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// loopConn is a TCP connection in a loop, or an ordinary one: before it enters a loop and once
// it has been let go. In the loop it is read and written by its task alone, and its
// deadlines only count from when it is let go: nothing in a loop takes long.
type loopConn struct {
	fd int

	mu            sync.Mutex
	task          *task // whose it is, who alone changes it; nil while it is nobody's
	loop          *loop
	number        int32    // in it; 0 before it has joined
	conn          net.Conn // nil in a loop
	closed        bool
	reads, writes time.Time // deadlines

	// What is known of it in a loop. The loop's epoll tells once of each time that something
	// comes, so that need not be asked for.
	drained bool // what has come is read
	hungUp  bool // the other side sends nothing more
}

// letGo makes an ordinary connection of one in a loop.
func (c *loopConn) letGo() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		return
	}
	if c.closed {
		c.conn = noConn{net.ErrClosed}
		return
	}
	c.loop.part(c)
	c.loop = nil
	f := os.NewFile(uintptr(c.fd), "")
	conn, err := net.FileConn(f) // another descriptor
	if err = errors.Join(err, f.Close()); err != nil {
		c.conn = noConn{err}
		return
	}
	c.conn = quick(conn)
	if err := errors.Join(c.conn.SetReadDeadline(c.reads), c.conn.SetWriteDeadline(c.writes)); err != nil {
		_ = c.conn.Close()
	}
}

// enter makes an ordinary connection, which nobody reads or writes, one of a loop. It stays
// what it is if that fails.
func (c *loopConn) enter(o *loop) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	q, ok := c.conn.(*quickConn)
	if !ok {
		return errors.ErrUnsupported
	}
	fd, err := q.duplicate()
	if err != nil {
		return err
	}
	c.fd = fd
	if err := o.join(c); err != nil {
		return errors.Join(err, closeNow(fd))
	}
	c.conn = nil
	_ = q.Close()
	return nil
}

// join has the epoll of the loop tell of the connection, if it does not yet.
func (c *loopConn) join() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.number != 0 || c.closed {
		return nil
	}
	return c.loop.join(c)
}

// belongTo says whose the connection is.
func (c *loopConn) belongTo(t *task) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.task = t
}

// stirred takes what the epoll of a loop tells of the connection, and returns whose it is, nil
// for nobody's in that loop.
func (c *loopConn) stirred(o *loop, events uint32) *task {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.loop != o {
		return nil
	}
	c.drained = false
	c.hungUp = c.hungUp || events&^unix.EPOLLIN != 0
	return c.task
}

// inLoop says whether the connection is used by a task of a loop.
func (c *loopConn) inLoop() bool { return c.task.inLoop() }

// Read implements io.Reader.
func (c *loopConn) Read(b []byte) (int, error) {
	for c.inLoop() {
		if len(b) == 0 {
			return 0, nil
		}
		if c.isClosed() {
			return 0, net.ErrClosed
		}
		if c.drained {
			if err := c.join(); err != nil {
				return 0, err
			}
			c.task.wait(c)
			continue
		}
		switch n, err := rawRead(c.fd, b); {
		case err == unix.EAGAIN:
			c.drained = true
		case err == unix.EINTR:
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		default:
			c.drained = n < len(b) && !c.hungUp
			c.task.step()
			return n, nil
		}
	}
	return c.conn.Read(b)
}

// Write implements io.Writer.
func (c *loopConn) Write(b []byte) (done int, err error) {
	for c.inLoop() && done < len(b) {
		if c.isClosed() {
			return done, net.ErrClosed
		}
		switch n, err := rawWrite(c.fd, b[done:]); {
		case err == unix.EAGAIN:
			c.task.leave()
		case err == unix.EINTR:
		case err != nil:
			return done, os.NewSyscallError("write", err)
		default:
			done += n
			c.task.step()
		}
	}
	if done == len(b) {
		return done, nil
	}
	n, err := c.conn.Write(b[done:])
	return done + n, err
}

func (c *loopConn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// Close implements io.Closer.
func (c *loopConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		return c.conn.Close()
	}
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	c.loop.forget(c)
	return closeNow(c.fd)
}

// CloseWrite tells the other side that no more comes.
func (c *loopConn) CloseWrite() error {
	if w, ok := c.conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// LocalAddr implements net.Conn. It is not called in a loop.
func (c *loopConn) LocalAddr() net.Addr { return c.conn.LocalAddr() }

// RemoteAddr implements net.Conn. It is not called in a loop.
func (c *loopConn) RemoteAddr() net.Addr { return c.conn.RemoteAddr() }

// SetDeadline implements net.Conn.
func (c *loopConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *loopConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reads = t
	if c.conn != nil {
		return c.conn.SetReadDeadline(t)
	}
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *loopConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes = t
	if c.conn != nil {
		return c.conn.SetWriteDeadline(t)
	}
	return nil
}

// quiet says that the other side has neither closed the connection nor sent anything that
// is not read.
func (c *loopConn) quiet() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		q, ok := c.conn.(*quickConn)
		return ok && q.quiet()
	}
	return !c.closed && !c.hungUp && quietNow(c.fd)
}

// seemsQuiet is quiet without a system call, as far as the loop knows: not of what has come
// since it last asked its epoll.
func (c *loopConn) seemsQuiet() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn == nil && !c.closed && c.drained && !c.hungUp
}

// give gives the connection, which is nobody's, to a task. It returns the one to be used:
// in the task's loop, or an ordinary one. It is closed if that fails.
func (c *loopConn) give(t *task) (net.Conn, error) {
	if !t.inLoop() {
		c.letGo()
		return c.conn, nil
	}
	if c.conn != nil {
		return adopt(c.conn, t)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.loop != t.loop {
		c.loop.part(c)
		if err := t.loop.join(c); err != nil {
			c.closed = true
			return nil, errors.Join(err, closeNow(c.fd))
		}
	}
	c.task, t.pod = t, c
	return c, nil
}

// adopt makes an ordinary connection one of a task's loop. It is closed if that fails.
func adopt(c net.Conn, t *task) (net.Conn, error) {
	q, ok := c.(*quickConn)
	if !ok {
		return c, nil
	}
	fd, err := q.duplicate()
	if e := c.Close(); err != nil || e != nil {
		if err == nil {
			_ = closeNow(fd)
		}
		return nil, errors.Join(err, e)
	}
	l, err := t.loop.connOf(fd)
	if err != nil {
		return nil, err
	}
	return l.give(t)
}

// free makes the connection nobody's.
func (c *loopConn) free() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.task != nil && c.task.pod == c {
		c.task.pod = nil
	}
	c.task = nil
}

// noConn is what could not be made an ordinary connection.
type noConn struct{ err error }

func (n noConn) Read([]byte) (int, error)         { return 0, n.err }
func (n noConn) Write([]byte) (int, error)        { return 0, n.err }
func (n noConn) Close() error                     { return n.err }
func (n noConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (n noConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (n noConn) SetDeadline(time.Time) error      { return n.err }
func (n noConn) SetReadDeadline(time.Time) error  { return n.err }
func (n noConn) SetWriteDeadline(time.Time) error { return n.err }
