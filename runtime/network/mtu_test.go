package network

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// transfer sends size bytes from one namespace to an address in another, by TCP, and
// says what became of them.
func transfer(t *testing.T, from, to string, at, by netip.AddrPort, size int) {
	t.Helper()
	l, err := ListenIn(to, "tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	data := make([]byte, size)
	_, _ = rand.Read(data)
	got := make(chan []byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- nil
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		b, _ := io.ReadAll(c)
		got <- b
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	c, err := DialIn(from)(ctx, "tcp", by.String())
	if err != nil {
		t.Errorf("to %s: %v", by, err)
		return
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, err = c.Write(data)
	if err := errors.Join(err, c.Close()); err != nil {
		t.Errorf("to %s: %v", by, err)
		return
	}
	if b := <-got; !bytes.Equal(b, data) {
		t.Errorf("to %s: %d bytes of %d arrived, or others", by, len(b), size)
	}
}

// begin opens a connection, by which the function that it returns sends size bytes.
func begin(t *testing.T, from, to string, at netip.AddrPort) func(size int) {
	t.Helper()
	l, err := ListenIn(to, "tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := DialIn(from)(t.Context(), "tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return func(size int) {
		defer c.Close()
		defer accepted.Close()
		deadline := time.Now().Add(20 * time.Second)
		_, _ = c.SetDeadline(deadline), accepted.SetDeadline(deadline)
		go func() { _, _ = c.Write(make([]byte, size)) }()
		if n, err := io.ReadFull(accepted, make([]byte, size)); err != nil {
			t.Errorf("of a connection that was open %d bytes of %d arrived: %v", n, size, err)
		}
	}
}

// datagram sends one of a size and says whether it came; fragment allows that it be
// taken apart.
func datagram(t *testing.T, from, to string, at, by netip.AddrPort, size int, fragment bool) error {
	t.Helper()
	l, err := ListenPacketIn(to, "udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := DialIn(from)(t.Context(), "udp", by.String())
	if err != nil {
		return err
	}
	defer c.Close()
	if !fragment {
		raw, err := c.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) {
			level, option := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
			if at.Addr().Is6() {
				level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
			}
			err = unix.SetsockoptInt(int(fd), level, option, unix.IP_PMTUDISC_DO)
		}); err != nil {
			t.Fatal(err)
		}
	}
	data := make([]byte, size)
	_, _ = rand.Read(data)
	if _, err := c.Write(data); err != nil {
		return err
	}
	buf := make([]byte, size+1)
	_ = l.SetReadDeadline(time.Now().Add(3 * time.Second))
	n, _, err := l.ReadFrom(buf)
	if err == nil && !bytes.Equal(buf[:n], data) {
		err = fmt.Errorf("%d bytes came, or others", n)
	}
	return err
}

// Whatever a pod may send arrives: what is too large for the tunnel is too large for
// the pod's own link.
func TestTunnelMTU(t *testing.T) { everyFamily(t, testTunnelMTU) }

func testTunnelMTU(t *testing.T, ranges Ranges) {
	s := newSitesOf(t, ranges, 0, 1)
	early, earlyIPs := s.podOf(1, "early") // its link is there before the peers are known
	s.sync()
	p, err := NewProxy(s.nodes[0].NetNS, ranges.Services)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	late, lateIPs := s.podOf(2, "late")
	var svcs []Service
	for i, services := range ranges.Services {
		svcs = append(svcs, both(Service{IP: nth(services, 78), Port: 9000, Endpoints: []netip.AddrPort{netip.AddrPortFrom(lateIPs[i], 9000)}})...)
	}
	if err := p.Apply(State{Services: svcs}); err != nil {
		t.Fatal(err)
	}
	uplinks := func(mtu int) {
		t.Helper()
		for i, n := range s.nodes {
			h := s.handle(s.router)
			if err := errors.Join(
				s.handle(n.NetNS).LinkSetMTU(s.link(n.NetNS, uplinkName), mtu),
				h.LinkSetMTU(s.link(s.router, fmt.Sprintf("node-%d", i+1)), mtu),
				h.LinkSetMTU(s.link(s.router, fmt.Sprintf("site%d", i)), mtu),
			); err != nil {
				t.Fatal(err)
			}
		}
		s.sync()
	}
	sizes := []int{1500, 1400, 9000, 1500}
	if len(ranges.Pods) == 2 {
		sizes = append(sizes, 1300) // too little for IPv6 in a tunnel between IPv6 addresses
	}
	for _, uplink := range sizes {
		mtu := uplink - 50
		if ranges.HasIPv6() {
			mtu = max(uplink-70, 1280)
		}
		finish := begin(t, early, late, netip.AddrPortFrom(lateIPs[0], 9000))
		uplinks(uplink)
		finish(1 << 20)
		for _, ns := range []string{early, late} {
			if got := s.link(ns, podLink).Attrs().MTU; got != mtu {
				t.Errorf("uplink %d: a pod's link has %d, want %d", uplink, got, mtu)
			}
		}
		w, err := s.meshes[0].Sync(s.peers)
		if small := uplink == 1300; err != nil || small != (len(w.Refused) == 1 && w.Refused[0].Reason == ReasonTooSmall) || !small && len(w.Refused) > 0 {
			t.Errorf("uplink %d: %+v %v", uplink, w.Refused, err)
		}
		for i := range ranges.Pods {
			if uplink == 1300 && ranges.Pods[i].Addr().Is6() {
				if got := ask(early, "tcp", netip.AddrPortFrom(lateIPs[i], 8080)); !strings.Contains(got, "no route") && !strings.Contains(got, "unreachable") {
					t.Errorf("by a way that is too small: %q", got)
				}
				continue
			}
			here, there, vip := netip.AddrPortFrom(earlyIPs[i], 9000), netip.AddrPortFrom(lateIPs[i], 9000), netip.AddrPortFrom(nth(ranges.Services[i], 78), 9000)
			headers, node := 8+outerHeader(here.Addr()), uplink-30-outerHeader(here.Addr()) // what fits the node's own end of the tunnel
			if ranges.HasIPv6() {
				node = max(node, 1280)
			}
			transfer(t, early, late, there, there, 4<<20)
			transfer(t, early, late, there, vip, 4<<20)
			transfer(t, late, early, here, here, 4<<20)
			transfer(t, s.nodes[0].NetNS, late, there, there, 4<<20)
			transfer(t, s.nodes[1].NetNS, early, here, here, 4<<20)
			for _, by := range []netip.AddrPort{there, vip} {
				for _, size := range []int{1232, 1233, 1300, 1400, 1422, 1423, 1450, 1472, 1473, 1500, 1600, 8000} {
					if err := datagram(t, early, late, there, by, size, true); err != nil {
						t.Errorf("uplink %d: %d bytes to %s: %v", uplink, size, by, err)
					}
				}
				if err := datagram(t, early, late, there, by, mtu-headers, false); err != nil {
					t.Errorf("uplink %d: the largest in one piece to %s: %v", uplink, by, err)
				}
				if err := datagram(t, early, late, there, by, mtu-headers+1, false); !errors.Is(err, unix.EMSGSIZE) {
					t.Errorf("uplink %d: one that does not fit to %s: %v", uplink, by, err)
				}
			}
			if err := datagram(t, s.nodes[0].NetNS, late, there, there, node-headers+1, false); !errors.Is(err, unix.EMSGSIZE) {
				t.Errorf("uplink %d: one that does not fit, of the node's: %v", uplink, err)
			}
		}
	}
}
