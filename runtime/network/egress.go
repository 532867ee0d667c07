package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"gitk8s.dev/gitk8s/runtime/network/handover"
)

// A worker lives in the network namespace of its node, from where nothing outside of
// the cluster is reached, and an ordinary user's may not enter the machine's own. So
// who is still there dials for it: a worker asks on a socket in the file system and
// gets the connection itself, as a descriptor.

// egressTimeout bounds a request and the dialling of one whose caller waits longer.
const egressTimeout = 30 * time.Second

type egressRequest struct {
	Network, Address string
}

// ServeEgress dials for whoever asks on the socket, which only its owner may, until
// the listener that it returns is closed.
func ServeEgress(socket string) (net.Listener, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	dir, err := os.Open(filepath.Dir(socket))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l, err := net.ListenUnix("unix", socketIn(dir, filepath.Base(socket)))
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", socket, err)
	}
	l.SetUnlinkOnClose(false) // the name is good for now only; see above
	if err := os.Chmod(socket, 0o600); err != nil {
		_ = l.Close()
		return nil, err
	}
	go func() {
		for {
			c, err := l.AcceptUnix()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				time.Sleep(100 * time.Millisecond) // no descriptors left, for now
				continue
			}
			go serveEgress(c)
		}
	}()
	return l, nil
}

// socketIn names a socket by way of /proc, since the path of a unix socket may have no
// more than 107 bytes.
func socketIn(dir *os.File, name string) *net.UnixAddr {
	return &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)}
}

func serveEgress(c *net.UnixConn) {
	ctx, cancel := context.WithTimeout(context.Background(), egressTimeout)
	defer cancel()
	handover.Answer(ctx, c, func(ctx context.Context, question []byte) (any, *os.File, error) {
		file, err := dialFile(ctx, question)
		return nil, file, err
	})
}

// dialFile makes the connection of a request. Addresses are numeric: whom to ask for
// names is the caller's business.
func dialFile(ctx context.Context, request []byte) (*os.File, error) {
	var q egressRequest
	if err := json.Unmarshal(request, &q); err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddrPort(q.Address); err != nil {
		return nil, err
	}
	switch q.Network {
	case "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6":
	default:
		return nil, net.UnknownNetworkError(q.Network)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, q.Network, q.Address)
	if err != nil {
		return nil, err
	}
	return FileOf(conn)
}

// FileOf is the file of a connection or a listener, to be handed over to another process;
// the connection itself is closed.
func FileOf(c io.Closer) (*os.File, error) {
	defer c.Close()
	f, ok := c.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("a %T has no file", c)
	}
	return f.File()
}

// DialThrough returns a dial function whose connections are made by who serves the
// socket (ServeEgress).
func DialThrough(socket string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dialThrough(ctx, socket, egressRequest{network, addr})
		if err != nil {
			return nil, fmt.Errorf("dial %s %s for a worker: %w", network, addr, err)
		}
		return conn, nil
	}
}

func dialThrough(ctx context.Context, socket string, q egressRequest) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	dir, err := os.Open(filepath.Dir(socket))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	c, err := net.DialUnix("unix", nil, socketIn(dir, filepath.Base(socket)))
	if err != nil {
		return nil, err
	}
	file, err := handover.Ask(ctx, c, q, nil)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return net.FileConn(file)
}
