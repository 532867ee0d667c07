package network

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestEgress asks from a network namespace in which nothing is: what is reached is
// reached by who serves the socket.
func TestEgress(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	// A name that is too long for the address of a unix socket.
	socket := filepath.Join(t.TempDir(), strings.Repeat("long", 30), "egress")
	if err := os.Mkdir(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	// Left by one that was killed.
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	egress, err := ServeEgress(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer egress.Close()
	if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v, %v: others may use it", st.Mode(), err)
	}
	tcp, udp, closed := greeters(t)

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	dial := DialThrough(socket)
	elsewhere(t, func() {
		c, err := dial(ctx, "tcp", tcp)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		if b, err := io.ReadAll(c); string(b) != "hello by tcp" {
			t.Errorf("%q, %v", b, err)
		}
		u, err := dial(ctx, "udp", udp)
		if err != nil {
			t.Error(err)
			return
		}
		defer u.Close()
		if _, ok := u.(net.PacketConn); !ok {
			t.Error("a resolver would not take it for UDP")
		}
		buf := make([]byte, 100)
		if _, err := u.Write([]byte("?")); err != nil {
			t.Error(err)
		}
		if n, err := u.Read(buf); string(buf[:n]) != "hello by udp" {
			t.Errorf("%q, %v", buf[:n], err)
		}
		for _, bad := range []struct{ network, address, want string }{
			{"tcp", closed, "connection refused"},
			{"tcp", "example.com:80", "ParseAddr"},
			{"unix", "127.0.0.1:80", "unknown network"},
		} {
			if _, err := dial(ctx, bad.network, bad.address); err == nil || !strings.Contains(err.Error(), bad.want) {
				t.Errorf("%s %s: %v, not %s", bad.network, bad.address, err, bad.want)
			}
		}
		if _, err := dial(ctx, "tcp", closed); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%v is not known to be a refusal", err)
		}
		over, stop := context.WithCancel(ctx)
		stop()
		if _, err := dial(over, "tcp", tcp); !errors.Is(err, context.Canceled) {
			t.Errorf("a caller that has gone: %v", err)
		}
	})
	_ = egress.Close()
	if _, err := dial(ctx, "tcp", tcp); err == nil {
		t.Error("it dials when nobody serves")
	}
}

// greeters says hello on loopback, once by TCP and once by UDP, and returns where, and
// where nobody is.
func greeters(t *testing.T) (onTCP, onUDP, nowhere string) {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tcp.Close() })
	go func() {
		if c, err := tcp.Accept(); err == nil {
			_, _ = io.WriteString(c, "hello by tcp")
			_ = c.Close()
		}
	}()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = udp.Close() })
	go func() {
		if _, from, err := udp.ReadFrom(make([]byte, 10)); err == nil {
			_, _ = udp.WriteTo([]byte("hello by udp"), from)
		}
	}()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	return tcp.Addr().String(), udp.LocalAddr().String(), closed.Addr().String()
}

// elsewhere calls f on a thread in a network namespace of its own.
func elsewhere(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends here
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}
