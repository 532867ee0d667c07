package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
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

// egressReply comes with a descriptor, or says why there is none. The number lets the
// caller tell causes apart as if it had dialled itself.
type egressReply struct {
	Error string        `json:",omitempty"`
	Errno syscall.Errno `json:",omitempty"`
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
	l, err := net.ListenUnix("unixpacket", socketIn(dir, filepath.Base(socket)))
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
	return &net.UnixAddr{Net: "unixpacket", Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)}
}

func serveEgress(c *net.UnixConn) {
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), egressTimeout)
	defer cancel()
	_ = c.SetDeadline(time.Now().Add(egressTimeout))
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	if err != nil {
		return
	}
	go func() {
		// Who has asked and goes away does not want it any more.
		_, _ = c.Read(make([]byte, 1))
		cancel()
	}()
	file, err := dialFile(ctx, buf[:n])
	var reply egressReply
	var rights []byte
	if err != nil {
		reply.Error = err.Error()
		_ = errors.As(err, &reply.Errno)
	} else {
		defer file.Close()
		rights = unix.UnixRights(int(file.Fd()))
	}
	if b, err := json.Marshal(reply); err == nil {
		_, _, _ = c.WriteMsgUnix(b, rights, nil) // else it has gone away
	}
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
	defer conn.Close()
	return conn.(interface{ File() (*os.File, error) }).File()
}

// DialThrough returns a dial function whose connections are made by who serves the
// socket (ServeEgress).
func DialThrough(socket string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dialThrough(ctx, socket, egressRequest{network, addr})
		if err != nil && ctx.Err() != nil {
			err = ctx.Err()
		}
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
	c, err := net.DialUnix("unixpacket", nil, socketIn(dir, filepath.Base(socket)))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	b, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	if _, err := c.Write(b); err != nil {
		return nil, err
	}
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, err
	}
	file, err := receivedFile(oob[:oobn])
	if err != nil {
		return nil, err
	}
	if file != nil {
		defer file.Close()
		return net.FileConn(file)
	}
	var reply egressReply
	if err := json.Unmarshal(buf[:n], &reply); err != nil {
		return nil, fmt.Errorf("no answer: %w", err)
	}
	if reply.Errno != 0 {
		return nil, os.NewSyscallError("connect", reply.Errno)
	}
	return nil, errors.New(reply.Error)
}

// receivedFile takes the descriptor that came with a message; nil if there was none.
func receivedFile(oob []byte) (*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) == 0 {
		return nil, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "connection"), nil
}
