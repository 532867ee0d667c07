package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 looks for named namespaces.
var netnsDir = "/run/netns"

// PinIn makes dir the place where the namespaces of hub and nodes are pinned, for
// who may not write where iproute2 looks. It is called before anything else here.
func PinIn(dir string) { netnsDir = dir }

// isNetNS tells whether a namespace is pinned at the path.
func isNetNS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// createNetNS makes a network namespace and pins it at the path, with its loopback
// up. One that is there stays as it is.
func createNetNS(path string) error { return createNetNSOf(path, 0) }

// createNetNSOf makes it belong to a user namespace of its own with the users from base
// on, unless that is 0.
func createNetNSOf(path string, base uint32) error {
	if isNetNS(path) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("create network namespace: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return fmt.Errorf("create network namespace: %w", err)
	}
	_ = f.Close()
	result := make(chan error, 1)
	go func() {
		// The thread ends with the goroutine, since it is never unlocked.
		runtime.LockOSThread()
		if base != 0 {
			result <- pinUserNetNS(path, base)
			return
		}
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- os.NewSyscallError("unshare", err)
			return
		}
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(self, path, "", unix.MS_BIND, ""); err != nil {
			result <- &os.PathError{Op: "bind", Path: path, Err: err}
			return
		}
		result <- loopbackUp()
	}()
	if err := <-result; err != nil {
		return errors.Join(fmt.Errorf("create network namespace %s: %w", path, err), deleteNetNS(path))
	}
	return nil
}

func loopbackUp() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	return h.LinkSetUp(lo)
}

// deleteNetNS takes the pin away; the kernel removes the namespace with the last
// process in it.
func deleteNetNS(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return &os.PathError{Op: "unmount", Path: path, Err: err}
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// inNetNS runs fn on a thread inside the namespace; the empty path is the caller's
// own.
func inNetNS(path string, fn func() error) error {
	if path == "" {
		return fn()
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		ns, err := os.Open(path)
		if err != nil {
			result <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("enter network namespace %s: %w", path, err)
			return
		}
		result <- fn()
	}()
	return <-result
}

// InNetNS calls fn on a thread inside a network namespace; the empty path is the
// caller's own.
func InNetNS(path string, fn func() error) error { return inNetNS(path, fn) }

// handle opens netlink sockets in the namespace; the empty path is the caller's own.
func handle(path string, families ...int) (*netlink.Handle, error) {
	if path == "" {
		return netlink.NewHandle(families...)
	}
	// Not by netlink.NewHandleAt, which goes back to the namespace that it came from:
	// from a user namespace there is no way back into the machine's own.
	var h *netlink.Handle
	err := inNetNS(path, func() (err error) {
		h, err = netlink.NewHandle(families...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("netlink in network namespace %s: %w", path, err)
	}
	return h, nil
}

// setSysctls writes kernel parameters of the namespace of the calling thread.
func setSysctls(values map[string]string) error {
	for key, value := range values {
		file := "/proc/sys/" + strings.ReplaceAll(key, ".", "/")
		if now, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(now)) == value {
			continue
		}
		if err := os.WriteFile(file, []byte(value), 0); err != nil {
			return fmt.Errorf("set %s: %w", key, err)
		}
	}
	return nil
}

// Forward makes the caller's network namespace forward between its links.
func Forward() error {
	if err := setSysctls(map[string]string{"net.ipv4.ip_forward": "1"}); err != nil {
		return err
	}
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return nil // the kernel has no IPv6
	}
	return setSysctls(map[string]string{"net.ipv6.conf.all.forwarding": "1"})
}

// ListenIn listens inside a network namespace; the socket stays there while the
// caller serves it from anywhere.
func ListenIn(ns, network, addr string) (net.Listener, error) {
	var l net.Listener
	err := inNetNS(ns, func() (err error) {
		l, err = net.Listen(network, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s in %s: %w", addr, ns, err)
	}
	return l, nil
}

// ListenPacketIn is ListenIn for datagrams.
func ListenPacketIn(ns, network, addr string) (net.PacketConn, error) {
	var c net.PacketConn
	err := inNetNS(ns, func() (err error) {
		c, err = net.ListenPacket(network, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s in %s: %w", addr, ns, err)
	}
	return c, nil
}

// DialIn returns a dial function for an http.Transport and the like, whose
// connections begin inside a network namespace. Addresses are numeric there: names
// would be looked up from other threads, outside.
func DialIn(ns string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, fmt.Errorf("dial %s in %s: %w", addr, ns, err)
		}
		if _, err := netip.ParseAddr(host); err != nil {
			return nil, fmt.Errorf("dial %s in %s: it must be a numeric address: %w", addr, ns, err)
		}
		var c net.Conn
		err = inNetNS(ns, func() (err error) {
			c, err = (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, addr)
			return err
		})
		return c, err
	}
}

// HasSCTP tells whether the kernel has sockets for SCTP.
func HasSCTP() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}
