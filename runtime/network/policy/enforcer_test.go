package policy

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/network"
)

// Timeouts of a packet: one that is held back is only known by its not coming.
const (
	arrives = 3 * time.Second
	missing = 150 * time.Millisecond
)

var nodes atomic.Int64

// ranges are those of a cluster with both families, podCIDRs its node's.
var (
	prefixes = func(list ...string) (out []netip.Prefix) {
		for _, text := range list {
			out = append(out, netip.MustParsePrefix(text))
		}
		return out
	}
	ranges = network.Ranges{
		Nodes: prefixes("10.41.0.0/24", "fd00:10:41::/64"), Pods: prefixes("10.42.0.0/16", "fd00:10:42::/56"),
		Services: prefixes("10.43.0.0/16", "fd00:10:43::/112"),
	}
	podCIDRs = prefixes("10.42.1.0/24", "fd00:10:42:1::/64")
)

// node is a node's network with pods that answer.
type node struct {
	t    *testing.T
	ns   string
	v6   bool // which of the addresses tests look at
	host place
	pods *network.PodNetwork
	e    *Enforcer
}

// eachFamily runs a test with the IPv4 addresses of pods, and with their IPv6 ones.
func eachFamily(t *testing.T, test func(*testing.T, *node)) {
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4", true: "IPv6"}[v6], func(t *testing.T) { test(t, newNode(t, v6)) })
	}
}

func newNode(t *testing.T, v6 bool) *node {
	t.Helper()
	id, dir := fmt.Sprintf("p%d-%d", os.Getpid(), nodes.Add(1)), t.TempDir()
	t.Cleanup(func() {
		if err := network.DeletePods(dir); err != nil {
			t.Error(err)
		}
		if err := network.DeleteTopology(id); err != nil {
			t.Error(err)
		}
	})
	if err := network.EnsureHub(id, ranges); err != nil {
		t.Fatal(err)
	}
	at, err := network.EnsureNode(id, "node", 1, ranges)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, ns: at.NetNS, v6: v6}
	n.host = place{t, at.NetNS, n.address(at.IPs)}
	n.pods, err = network.NewPodNetwork(network.PodConfig{Dir: filepath.Join(dir, "pods"), NetNS: at.NetNS, PodCIDRs: podCIDRs, Services: ranges.Services, NodeIPs: at.IPs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.DeletePods(filepath.Join(dir, "pods")); err != nil {
			t.Error(err)
		}
		if err := n.pods.Close(); err != nil {
			t.Error(err)
		}
	})
	proxy, err := network.NewProxy(at.NetNS, ranges.Services) // tracks connections, as on every node
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	if err := proxy.Apply(network.State{}); err != nil {
		t.Fatal(err)
	}
	n.e = n.enforcer()
	return n
}

// address is the one that the test looks at.
func (n *node) address(ips []netip.Addr) netip.Addr {
	return ips[slices.IndexFunc(ips, func(a netip.Addr) bool { return a.Is6() == n.v6 })]
}

func (n *node) enforcer() *Enforcer {
	n.t.Helper()
	e, err := NewEnforcer(n.ns, true)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := e.Close(); err != nil {
			n.t.Error(err)
		}
	})
	return e
}

func (n *node) apply(r Rules) {
	n.t.Helper()
	if err := n.e.Apply(r); err != nil {
		n.t.Fatal(err)
	}
}

// tables are the names of those in the node's namespace.
func (n *node) tables() []string {
	n.t.Helper()
	var names []string
	for _, f := range n.e.families {
		all, err := f.conn.ListTablesOfFamily(f.table)
		if err != nil {
			n.t.Fatal(err)
		}
		for _, t := range all {
			if t.Name == tableName {
				names = append(names, t.Name)
			}
		}
	}
	return names
}

// place is a pod's, or the node's.
type place struct {
	t  *testing.T
	ns string
	ip netip.Addr
}

func (n *node) pod(name string) place {
	n.t.Helper()
	ns, ips, err := n.pods.Setup(context.Background(), "uid-"+name, "default/"+name, false)
	if err != nil {
		n.t.Fatal(err)
	}
	return place{n.t, ns, n.address(ips)}
}

// within runs fn on a thread in the place's namespace.
func (p place) within(fn func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		ns, err := os.Open(p.ns)
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = fn()
		}
		result <- err
	}()
	return <-result
}

// echoes answers at ports with what is sent, by TCP and UDP.
func (p place) echoes(ports ...uint16) place {
	p.t.Helper()
	for _, port := range ports {
		at := netip.AddrPortFrom(p.ip, port).String()
		l, err := network.ListenIn(p.ns, "tcp", at)
		if err != nil {
			p.t.Fatal(err)
		}
		u, err := network.ListenPacketIn(p.ns, "udp", at)
		if err != nil {
			p.t.Fatal(err)
		}
		p.t.Cleanup(func() { l.Close(); u.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
			}
		}()
		go func() {
			buf := make([]byte, 100)
			for {
				k, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = u.WriteTo(buf[:k], from)
			}
		}()
	}
	return p
}

func (p place) dial(proto string, to netip.AddrPort, wait time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(p.t.Context(), wait)
	defer cancel()
	return network.DialIn(p.ns)(ctx, proto, to.String())
}

// answers says whether a connection gives back what is sent over it.
func answers(c net.Conn, wait time.Duration) bool {
	_ = c.SetDeadline(time.Now().Add(wait))
	if _, err := c.Write([]byte("hello")); err != nil {
		return false
	}
	_, err := io.ReadFull(c, make([]byte, 5))
	return err == nil
}

// reaches expects that to answers on a port, or that it does not.
func (p place) reaches(want bool, proto string, to place, port uint16) {
	p.t.Helper()
	wait := missing
	if want {
		wait = arrives
	}
	c, err := p.dial(proto, netip.AddrPortFrom(to.ip, port), wait)
	got := false
	if err == nil {
		got = answers(c, wait)
		c.Close()
	}
	if got != want {
		p.t.Errorf("%s from %s to %s port %d: answered: %v, want %v (%v)", proto, p.ip, to.ip, port, got, want, err)
	}
}

// raw names an IP protocol as the package net does.
func (p place) raw(proto string) string {
	switch {
	case p.ip.Is4():
		return "ip4:" + proto
	case proto == "icmp":
		return "ip6:ipv6-icmp"
	}
	return "ip6:" + proto
}

// delivers expects that a packet of an IP protocol arrives, or that it does not.
func (p place) delivers(want bool, proto string, to place, packet []byte) {
	p.t.Helper()
	var in net.PacketConn
	var out net.Conn
	proto = to.raw(proto)
	err := to.within(func() (err error) { in, err = net.ListenPacket(proto, to.ip.String()); return err })
	if err != nil {
		p.t.Fatal(err)
	}
	defer in.Close()
	if err := p.within(func() (err error) { out, err = net.Dial(proto, to.ip.String()); return err }); err != nil {
		p.t.Fatal(err)
	}
	defer out.Close()
	if _, err := out.Write(packet); err != nil {
		p.t.Fatal(err)
	}
	wait := missing
	if want {
		wait = arrives
	}
	_ = in.SetReadDeadline(time.Now().Add(wait))
	_, from, err := in.ReadFrom(make([]byte, 100))
	if got := err == nil && from.String() == p.ip.String(); got != want {
		p.t.Errorf("%s from %s to %s: arrived: %v, want %v (%v)", proto, p.ip, to.ip, got, want, err)
	}
}

// forges sends a packet of protocol 253 with the address of another pod.
func (p place) forges(other, to place) {
	p.t.Helper()
	domain, header := unix.AF_INET, []byte{0x45, 0, 0, 24, 0, 0, 0, 0, 64, 253, 0, 0}
	var at unix.Sockaddr
	if to.ip.Is6() {
		domain, header, at = unix.AF_INET6, []byte{0x60, 0, 0, 0, 0, 4, 253, 64}, &unix.SockaddrInet6{Addr: to.ip.As16()}
	} else {
		at = &unix.SockaddrInet4{Addr: to.ip.As4()}
	}
	err := p.within(func() error {
		fd, err := unix.Socket(domain, unix.SOCK_RAW, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, slices.Concat(header, other.ip.AsSlice(), to.ip.AsSlice(), []byte("fake")), 0, at)
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

var pings atomic.Uint32

// ping is an ICMP echo request, each of a flow of its own. Of IPv6 the kernel fills in
// the sum.
func (p place) ping() []byte {
	kind := byte(8)
	if p.ip.Is6() {
		kind = 128
	}
	b := []byte{kind, 0, 0, 0, 0, byte(pings.Add(1)), 0, 1}
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum+sum>>16))
	return b
}

func held(who place, allowed ...Box) Direction {
	return Direction{Groups: map[netip.Addr]string{who.ip: "group"}, Allowed: map[string][]Box{"group": allowed}}
}

func from(who place, proto Protocol, first, last uint16) Box {
	return Box{who.ip, who.ip, proto, proto, first, last}
}

func all(who place) Box { return Box{who.ip, who.ip, 0, 255, 0, 65535} }

// TestEnforcer looks at what the kernel lets through.
func TestEnforcer(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node) {
		a, b, c := n.pod("a").echoes(8080), n.pod("b").echoes(8080, 8081, 8090, 8091), n.pod("c")
		host := n.host.echoes(8080)
		for _, proto := range []string{"tcp", "udp"} {
			a.reaches(true, proto, b, 8080)
		}
		a.delivers(true, "icmp", b, a.ping())
		if n.apply(Rules{}); len(n.tables()) != 0 {
			t.Error("a table for no rules:", n.tables())
		}
		open, err := a.dial("tcp", netip.AddrPortFrom(b.ip, 8080), arrives)
		if err != nil || !answers(open, arrives) {
			t.Fatal(err)
		}
		defer open.Close()

		n.apply(Rules{Ingress: held(b)})
		for _, from := range []place{a, c} {
			from.reaches(false, "tcp", b, 8080)
			from.reaches(false, "udp", b, 8080)
		}
		a.delivers(false, "icmp", b, a.ping())
		a.delivers(false, "253", b, []byte("any"))
		b.reaches(true, "tcp", a, 8080) // its own connections, and their answers
		host.reaches(true, "tcp", b, 8080)
		b.reaches(true, "tcp", host, 8080)
		if !answers(open, arrives) {
			t.Error("an established connection has ended")
		}

		n.apply(Rules{Ingress: held(b, from(a, TCP, 8080, 8089), from(a, UDP, 8081, 8081))})
		a.reaches(true, "tcp", b, 8080)
		a.reaches(true, "tcp", b, 8081)
		a.reaches(false, "tcp", b, 8090)
		a.reaches(false, "udp", b, 8080)
		a.reaches(true, "udp", b, 8081)
		c.reaches(false, "tcp", b, 8080)
		a.delivers(false, "icmp", b, a.ping())
		a.delivers(false, "tcp", b, []byte{0}) // no whole header
		a.delivers(false, "udp", b, []byte{0, 0, 0x1f})

		// The range that was there is cut in three, whose parts overlap with it.
		n.apply(Rules{Ingress: held(b, from(a, TCP, 8080, 8080), from(a, TCP, 8090, 65535), from(c, TCP, 0, 8085), from(a, UDP, 8081, 8081))})
		a.reaches(true, "tcp", b, 8080)
		a.reaches(false, "tcp", b, 8081)
		a.reaches(true, "tcp", b, 8091)
		c.reaches(true, "tcp", b, 8081)
		c.reaches(false, "tcp", b, 8090)

		n.apply(Rules{Ingress: held(b, all(a))})
		a.reaches(true, "tcp", b, 8090)
		a.reaches(true, "udp", b, 8080)
		a.delivers(true, "icmp", b, a.ping())
		a.delivers(true, "253", b, []byte("any"))
		c.reaches(false, "tcp", b, 8090)

		n.apply(Rules{Egress: held(a, from(b, TCP, 8080, 8080))})
		a.reaches(true, "tcp", b, 8080)
		a.reaches(false, "tcp", b, 8081)
		a.delivers(false, "253", b, []byte("any"))
		a.reaches(true, "tcp", host, 8080)
		host.reaches(true, "tcp", a, 8080)
		b.reaches(true, "tcp", a, 8080)

		// Both have to let it through.
		n.apply(Rules{Egress: held(a, all(b)), Ingress: held(b, from(a, TCP, 8081, 8081))})
		a.reaches(true, "tcp", b, 8081)
		a.reaches(false, "tcp", b, 8080)

		if n.apply(Rules{}); len(n.tables()) != 0 {
			t.Error("the last policy left", n.tables())
		}
		a.reaches(true, "tcp", b, 8090)
	})
}

// TestEnforcerTakesOver puts a new enforcer in the place of one with other rules.
func TestEnforcerTakesOver(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node) {
		a, b := n.pod("a"), n.pod("b").echoes(8080, 8081)
		n.apply(Rules{Ingress: held(b, from(a, TCP, 8080, 8080))})
		n.e = n.enforcer()
		a.reaches(true, "tcp", b, 8080)
		n.apply(Rules{Ingress: held(b, from(a, TCP, 8081, 8081))})
		a.reaches(false, "tcp", b, 8080)
		a.reaches(true, "tcp", b, 8081)
		n.e = n.enforcer()
		if n.apply(Rules{}); len(n.tables()) != 0 {
			t.Error("left:", n.tables())
		}
	})
}

// TestForgedAddress: a pod does not get around its policies with another one's address.
func TestForgedAddress(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node) {
		a, b, c := n.pod("a"), n.pod("b"), n.pod("c")
		n.apply(Rules{Egress: held(a)})
		var in net.PacketConn
		if err := b.within(func() (err error) { in, err = net.ListenPacket(b.raw("253"), b.ip.String()); return err }); err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		for _, from := range []place{a, c} { // of c they would arrive
			from.forges(c, b)
			wait := missing
			if from == c {
				wait = arrives
			}
			_ = in.SetReadDeadline(time.Now().Add(wait))
			if _, _, err := in.ReadFrom(make([]byte, 100)); (err == nil) != (from == c) {
				t.Errorf("a packet of %s with the address of %s: %v", from.ip, c.ip, err)
			}
		}
	})
}

// numbered is an address with a number as its lowest 32 bits.
func (n *node) numbered(at uint32) netip.Addr {
	b := binary.BigEndian.AppendUint32(nil, at)
	if n.v6 {
		b = append(netip.MustParseAddr("2001:db8::").AsSlice()[:12], b...)
	}
	out, _ := netip.AddrFromSlice(b)
	return out
}

// TestManyRules: more elements than a netlink message takes, and their replacement.
func TestManyRules(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node) {
		a, b := n.pod("a"), n.pod("b").echoes(8080)
		for _, shift := range []uint32{0, 7, 300} {
			boxes := []Box{all(a)}
			for i := range uint32(1000) {
				at := 0xc0000000 + 1000*i + shift
				boxes = append(boxes, Box{n.numbered(at), n.numbered(at + i), TCP, TCP, 80, uint16(80 + i%3)})
			}
			start := time.Now()
			n.apply(Rules{Ingress: held(b, boxes...), Egress: held(b, boxes...)})
			a.reaches(true, "tcp", b, 8080)
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("2000 elements took %s", took)
			}
		}
	})
}

// holds expects what is read back from the kernel.
func (n *node) holds(want Installed) {
	n.t.Helper()
	if got, err := n.e.Installed(); err != nil || !reflect.DeepEqual(got, want) {
		n.t.Errorf("in the kernel: %+v %v, want %+v", got, err, want)
	}
}

// TestHold: a pod of which nothing is known yet, with and without an earlier process's
// rules in the kernel.
func TestHold(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node) {
		host := n.host
		a, b := n.pod("a").echoes(8080), n.pod("b").echoes(8080)
		for _, earlier := range []Rules{{}, {Ingress: held(b, all(a)), Egress: held(a, all(b))}} {
			n.e = n.enforcer()
			n.apply(earlier)
			n.e = n.enforcer()
			a.reaches(true, "udp", b, 8080)
			for range 2 {
				if err := n.e.Hold([]netip.Addr{b.ip}); err != nil {
					t.Fatal(err)
				}
				a.reaches(false, "tcp", b, 8080)
				b.reaches(false, "tcp", a, 8080)
				host.reaches(true, "tcp", b, 8080)
				host.reaches(true, "tcp", a, 8080)
			}
			n.apply(Rules{Ingress: held(b, from(a, TCP, 8080, 8080))})
			a.reaches(true, "tcp", b, 8080)
			b.reaches(true, "tcp", a, 8080)
			n.holds(Installed{Ingress: []netip.Addr{b.ip}})
			if err := n.e.Hold([]netip.Addr{b.ip}); err != nil {
				t.Fatal(err)
			}
			a.reaches(false, "tcp", b, 8080)
			n.holds(Installed{Ingress: []netip.Addr{b.ip}, Egress: []netip.Addr{b.ip}})
			if err := n.e.Remove(); err != nil || len(n.tables()) != 0 {
				t.Error("left:", n.tables(), err)
			}
			n.holds(Installed{})
		}
	})
}
