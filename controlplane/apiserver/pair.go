package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// pairListener is a listener that only this process can dial: each connection is a
// pair of connected sockets without a name. Pipes in memory would do if their
// deadlines behaved as net/http needs them; the kernel's do.
type pairListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPairListener() *pairListener {
	return &pairListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// DialContext connects; it waits until the other end is accepted.
func (l *pairListener) DialContext(ctx context.Context) (net.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("in-process connection: %w", err)
	}
	ours, errOurs := fileConn(fds[0])
	theirs, errTheirs := fileConn(fds[1])
	if err := errors.Join(errOurs, errTheirs); err != nil {
		return nil, fmt.Errorf("in-process connection: %w", err)
	}
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.closed:
		err = net.ErrClosed
	case <-ctx.Done():
		err = ctx.Err()
	}
	return nil, errors.Join(err, ours.Close(), theirs.Close())
}

func fileConn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "in-process")
	defer f.Close() // FileConn has a copy of its own
	return net.FileConn(f)
}

// Accept implements net.Listener.
func (l *pairListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *pairListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *pairListener) Addr() net.Addr { return &net.UnixAddr{Net: "unix", Name: "in-process"} }
