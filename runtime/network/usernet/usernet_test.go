package usernet

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gitk8s.dev/gitk8s/runtime/network"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestNet: a node reaches addresses outside by way of the hub. Outside is a table of
// servers on loopback here.
func TestNet(t *testing.T) {
	id := fmt.Sprintf("o%d", os.Getpid())
	ranges := network.Ranges{
		Nodes: []netip.Prefix{netip.MustParsePrefix("10.41.0.0/24")}, Pods: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		Services: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
	}
	check(t, network.EnsureHub(id, ranges))
	t.Cleanup(func() { check(t, network.DeleteTopology(id)) })
	node, err := network.EnsureNode(id, "n", 1, ranges)
	check(t, err)
	check(t, network.LeadOut(node.NetNS, ranges, true))

	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c) // until the other end has closed its half
			}()
		}
	}()
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	check(t, err)
	defer u.Close()
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			u.WriteTo(buf[:n], from)
		}
	}()
	var dialled atomic.Int64
	n, err := Open(Config{NetNS: network.HubNetNS(id), Refuse: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		Dial: func(ctx context.Context, netw, addr string) (net.Conn, error) {
			dialled.Add(1)
			switch netw + " " + addr {
			case "tcp 192.0.2.7:80":
				return (&net.Dialer{}).DialContext(ctx, netw, l.Addr().String())
			case "udp 192.0.2.7:53":
				return (&net.Dialer{}).DialContext(ctx, netw, u.LocalAddr().String())
			}
			return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
		}})
	check(t, err)
	dial := network.DialIn(node.NetNS)
	connect := func(netw, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		c, err := dial(ctx, netw, addr)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			check(t, c.SetDeadline(time.Now().Add(30*time.Second)))
		}
		return c, err
	}

	// Some megabytes there and back, then one half is closed, then the other.
	c, err := connect("tcp", "192.0.2.7:80")
	check(t, err)
	sent := make([]byte, 8<<20)
	rand.Read(sent)
	go func() {
		io.Copy(c, bytes.NewReader(sent))
		c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
		t.Errorf("%d bytes came back of %d: %v", len(got), len(sent), err)
	}
	c, err = connect("udp", "192.0.2.7:53")
	check(t, err)
	for _, size := range []int{5, 1400, 4000} {
		if _, err := c.Write(sent[:size]); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64<<10)
		if n, err := c.Read(buf); err != nil || !bytes.Equal(buf[:n], sent[:size]) {
			t.Errorf("a datagram of %d bytes: %d came back, %v", size, n, err)
		}
	}
	// A refusal is heard of at once.
	if _, err := connect("tcp", "192.0.2.8:80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error("a closed port:", err)
	}
	// What leads nowhere outside is not even tried.
	before := dialled.Load()
	for _, addr := range []string{"10.42.200.1:80", "169.254.169.254:80"} {
		if c, err := connect("tcp", addr); err == nil {
			t.Error(addr, "was reached", c)
		}
	}
	for _, ip := range []string{"127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "169.254.169.254", "10.42.0.1", "::1", "fe80::1", "ff02::1",
		"::ffff:0.0.0.0", "::ffff:127.0.0.1", "::ffff:10.42.0.1", "::ffff:169.254.169.254", "::ffff:255.255.255.255"} {
		if n.leadsOut(netip.MustParseAddr(ip)) {
			t.Error(ip, "leads out")
		}
	}
	if dialled.Load() != before {
		t.Error("addresses of the cluster are dialled")
	}
	// At the end what is under way ends, and the way is not there any more.
	c, err = connect("tcp", "192.0.2.7:80")
	check(t, err)
	check(t, n.Close())
	if _, err := io.ReadAll(c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error("a connection at the end:", err)
	}
	if _, err := connect("tcp", "192.0.2.7:80"); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Error("after the end:", err)
	}
	check(t, network.LeadOut(node.NetNS, ranges, false))
	check(t, network.LeadOut(node.NetNS, ranges, false))
}
