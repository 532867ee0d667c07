package apiserver

import (
	"errors"
	"net"
	"sync"
)

// listeners is several listeners as one: the server library takes only one, and
// this server listens in more than one network namespace.
type listeners struct {
	all    []net.Listener
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	start  sync.Once
}

func joinListeners(all []net.Listener) *listeners {
	return &listeners{all: all, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// Accept implements net.Listener.
func (l *listeners) Accept() (net.Conn, error) {
	l.start.Do(func() {
		for _, one := range l.all {
			go l.serve(one)
		}
	})
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listeners) serve(one net.Listener) {
	for {
		c, err := one.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select {
			case <-l.closed:
				return
			default:
				continue
			}
		}
		select {
		case l.conns <- c:
		case <-l.closed:
			_ = c.Close()
			return
		}
	}
}

// Close implements net.Listener.
func (l *listeners) Close() error {
	var errs []error
	l.once.Do(func() {
		close(l.closed)
		for _, one := range l.all {
			errs = append(errs, one.Close())
		}
	})
	return errors.Join(errs...)
}

// Addr implements net.Listener.
func (l *listeners) Addr() net.Addr { return l.all[0].Addr() }
