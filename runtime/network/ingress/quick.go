package ingress

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// quickConn is a TCP connection whose reads and writes are not announced to Go's scheduler.
// A write to a socket of the same machine runs all that the receiving side does with it,
// which takes longer than the 20 µs after which the scheduler takes the processor away from
// a goroutine in a system call and wakes another thread for it; and any announced call of a
// process that was at rest wakes the thread that looks after that (sysmon in
// runtime/proc.go). It is half of the switches between threads that a request costs, and a
// quarter of its system time. These calls never wait, so there is no need for either.
type quickConn struct {
	*net.TCPConn
	raw     syscall.RawConn
	in, out transfer
}

// transfer is a read or write that is under way.
type transfer struct {
	mu   sync.Mutex
	call func(fd int, b []byte) (int, error)
	b    []byte
	n    int
	err  error
	step func(fd uintptr) (done bool)
}

// quick makes c quick if it is of the kind that can be.
func quick(c net.Conn) net.Conn {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return c
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return c
	}
	q := &quickConn{TCPConn: t, raw: raw}
	q.in.call, q.out.call = rawRead, rawWrite
	q.in.step, q.out.step = q.in.once, q.out.all
	return q
}

// try makes the system call, and says whether it has to be waited for.
func (t *transfer) try(fd uintptr) (n int, again bool) {
	for {
		if n, t.err = t.call(int(fd), t.b); t.err == syscall.EINTR {
			continue
		}
		return max(n, 0), t.err == syscall.EAGAIN
	}
}

func (t *transfer) once(fd uintptr) (done bool) {
	n, again := t.try(fd)
	t.n = n
	return !again
}

func (t *transfer) all(fd uintptr) (done bool) {
	for len(t.b) > 0 {
		n, again := t.try(fd)
		if again || t.err != nil {
			return !again
		}
		t.n += n
		t.b = t.b[n:]
	}
	return true
}

// run gives wait the steps to take until all is done.
func (t *transfer) run(b []byte, name string, wait func(func(uintptr) bool) error) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b, t.n, t.err = b, 0, nil
	err := wait(t.step)
	t.b = nil
	if err == nil {
		err = os.NewSyscallError(name, t.err)
	}
	return t.n, err
}

// Read implements io.Reader.
func (q *quickConn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, err := q.in.run(b, "read", q.raw.Read)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

// quiet says that the other side has neither closed the connection nor sent anything that
// is not read.
func (q *quickConn) quiet() (quiet bool) {
	err := q.raw.Read(func(fd uintptr) bool {
		quiet = quietNow(int(fd))
		return true
	})
	return err == nil && quiet
}

// duplicate makes another descriptor of the connection, which Go's poller knows nothing of.
func (q *quickConn) duplicate() (fd int, err error) {
	err = errors.Join(q.raw.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) }), err)
	return fd, err
}

// Write implements io.Writer.
func (q *quickConn) Write(b []byte) (int, error) { return q.out.run(b, "write", q.raw.Write) }
