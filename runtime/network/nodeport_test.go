package network

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// perNode applies to each node's proxy what is said for it.
func (c *cluster) perNode() []func(State) {
	c.t.Helper()
	var out []func(State)
	all := c.nodes
	for i := range all {
		c.nodes = all[i : i+1]
		out = append(out, c.proxies())
	}
	c.nodes = all
	return out
}

func to(endpoints ...netip.Addr) []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range endpoints {
		out = append(out, netip.AddrPortFrom(e, 8080))
	}
	return out
}

// both is the service by TCP and by UDP.
func both(s Service) []Service {
	tcp, udp := s, s
	tcp.Proto, udp.Proto = TCP, UDP
	return []Service{tcp, udp}
}

func TestNodePorts(t *testing.T) {
	c := newCluster(t)
	aNS, a := c.pod(1, "a")
	_, d := c.pod(2, "d")
	if err := EnsureDNSAddress(c.nodes[0].NetNS, c.ranges); err != nil {
		t.Fatal(err)
	}
	nodes := c.perNode()
	apply := func(s State) {
		t.Helper()
		nodes[0](s)
		nodes[1](s)
	}
	apply(State{Services: both(Service{IP: AnyNodeAddress, Port: 30080, Masquerade: true, Endpoints: to(a)})})
	hub, one, two := HubNetNS(c.id), c.nodes[0].NetNS, c.nodes[1].NetNS
	at := func(ip string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(ip), 30080) }
	check := func(what, ns string, addr netip.AddrPort, want string) {
		t.Helper()
		for _, network := range []string{"tcp", "udp"} {
			if got := ask(ns, network, addr); got != want {
				t.Errorf("%s by %s: %q, want %q", what, network, got, want)
			}
		}
	}
	check("from outside", hub, at("10.41.0.11"), "a 10.41.0.11")
	check("from outside by the other node", hub, at("10.41.0.12"), "a 10.41.0.12")
	check("from the node itself", one, at("10.41.0.11"), "a 10.41.0.11")
	check("from the node's loopback", one, at("127.0.0.1"), "a 10.41.0.11")
	check("from the other node's loopback", two, at("127.0.0.1"), "a 10.41.0.12")
	check("from the pod itself", aNS, at("10.41.0.11"), "a 10.41.0.11")
	check("from the pod by the other node", aNS, at("10.41.0.12"), "a 10.41.0.12")

	// Local: the client's address is kept, and a node without an endpoint is silent to
	// those outside, while those on it reach all.
	local := func(here []netip.AddrPort) State {
		return State{Services: both(Service{IP: AnyNodeAddress, Port: 30080, NodeLocal: true, Endpoints: here, Inside: to(d)})}
	}
	nodes[0](local(nil))
	nodes[1](local(to(d)))
	check("local", hub, at("10.41.0.12"), "d 10.41.0.1")
	check("local from a pod elsewhere", aNS, at("10.41.0.12"), "d "+a.String())
	check("local from a node's own pod", aNS, at("10.41.0.11"), "d "+a.String())
	check("local from the node's loopback", one, at("127.0.0.1"), "d 10.41.0.11")
	if got := ask(hub, "tcp", at("10.41.0.11")); !strings.Contains(got, "timeout") {
		t.Errorf("a node without endpoints: %q", got)
	}

	// Nobody at all is refused, also on the loopback.
	apply(State{Services: both(Service{IP: AnyNodeAddress, Port: 30080, Masquerade: true})})
	for _, from := range []string{hub, two} {
		if got := ask(from, "tcp", at("10.41.0.11")); !strings.Contains(got, "refused") {
			t.Errorf("without endpoints: %q", got)
		}
	}
	if got := ask(one, "udp", at("127.0.0.1")); !strings.Contains(got, "refused") && !strings.Contains(got, "not permitted") {
		t.Errorf("without endpoints: %q", got)
	}
}

// TestLoopbackIsGuarded: what listens on a node's loopback is not open to the link,
// though loopback addresses are routed.
func TestLoopbackIsGuarded(t *testing.T) {
	c := newCluster(t)
	apply := c.proxies()
	apply(State{})
	c.serve(c.nodes[0].NetNS, netip.MustParseAddrPort("127.0.0.1:8081"), "secret")
	hub := HubNetNS(c.id)
	err := inNetNS(hub, func() error {
		// As an attacker has it: loopback addresses are on the link, at the victim.
		return setSysctls(map[string]string{"net.ipv4.conf.all.route_localnet": "1"})
	})
	if err != nil {
		t.Fatal(err)
	}
	h, lo, err := loopback(hub)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.AddrDel(lo, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("127.0.0.1/8"))}); err != nil {
		t.Fatal(err)
	}
	if err := h.RouteReplace(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("127.0.0.1/32")), Gw: c.nodes[0].IPs[0].AsSlice()}); err != nil {
		t.Fatal(err)
	}
	if got := ask(hub, "tcp", netip.MustParseAddrPort("127.0.0.1:8081")); strings.HasPrefix(got, "secret") {
		t.Errorf("%q", got)
	}
}

func TestExternalAddresses(t *testing.T) {
	c := newCluster(t)
	aNS, _ := c.pod(1, "a")
	_, d := c.pod(2, "d")
	apply := c.proxies()
	hub := HubNetNS(c.id)
	vip := netip.MustParseAddr("10.41.0.240")
	at := netip.AddrPortFrom(vip, 80)
	// The first node has the address, as a load balancer's.
	if err := SyncAddresses(c.nodes[0].NetNS, c.nodes[0].IPs, []netip.Addr{vip}); err != nil {
		t.Fatal(err)
	}
	svc := Service{IP: vip, Port: 80, Masquerade: true, Endpoints: to(d)}
	apply(State{Services: both(svc)})
	for _, network := range []string{"tcp", "udp"} {
		if got := ask(hub, network, at); got != "d 10.41.0.11" {
			t.Errorf("from outside by %s: %q", network, got)
		}
		if got := ask(aNS, network, at); got != "d 10.41.0.11" {
			t.Errorf("from a pod by %s: %q", network, got)
		}
		if got := ask(c.nodes[1].NetNS, network, at); got != "d 10.41.0.12" {
			t.Errorf("from the other node by %s: %q", network, got)
		}
	}

	// Source ranges: only these, and what overlaps is taken.
	svc.Sources = []netip.Prefix{netip.MustParsePrefix("10.41.0.0/28"), netip.MustParsePrefix("10.41.0.1/32")}
	apply(State{Services: both(svc)})
	if got := ask(hub, "tcp", at); got != "d 10.41.0.11" {
		t.Errorf("allowed: %q", got)
	}
	if got := ask(aNS, "tcp", at); !strings.Contains(got, "timeout") {
		t.Errorf("not allowed: %q", got)
	}
	svc.Sources = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}
	apply(State{Services: both(svc)})
	if got := ask(aNS, "tcp", at); !strings.HasPrefix(got, "d ") {
		t.Errorf("allowed by a change: %q", got)
	}

	// The address moves to the other node; neighbours that knew the first are told.
	svc.Sources = nil
	apply(State{Services: both(svc)})
	for i, want := range [][]netip.Addr{nil, {vip}} {
		if err := SyncAddresses(c.nodes[i].NetNS, c.nodes[i].IPs, want); err != nil {
			t.Fatal(err)
		}
	}
	if got := ask(hub, "tcp", at); got != "d 10.41.0.12" {
		t.Errorf("after a move: %q", got)
	}
}

func TestAffinity(t *testing.T) {
	c := newCluster(t)
	aNS, _ := c.pod(1, "a")
	var eps []netip.Addr
	for i := range 5 {
		_, ip := c.pod(1, fmt.Sprint("e", i))
		eps = append(eps, ip)
	}
	apply := c.proxies()
	at := netip.MustParseAddrPort("10.43.8.8:80")
	nodeAt := netip.MustParseAddrPort("10.41.0.11:30080")
	state := func(affinity time.Duration, endpoints ...netip.Addr) State {
		return State{Services: append(both(Service{IP: at.Addr(), Port: 80, Affinity: affinity, Endpoints: to(endpoints...)}),
			both(Service{IP: AnyNodeAddress, Port: 30080, Masquerade: true, Affinity: 2 * affinity, Endpoints: to(endpoints...)})...)}
	}
	sticky := func(what, network string, to netip.AddrPort) string {
		t.Helper()
		first := ask(aNS, network, to)
		for range 12 {
			if got := ask(aNS, network, to); got != first || strings.HasPrefix(got, "error") {
				t.Errorf("%s by %s: %q after %q", what, network, got, first)
			}
		}
		return first
	}
	apply(state(time.Hour, eps...))
	before := sticky("first", "tcp", at)
	sticky("first", "udp", at)
	sticky("node port", "tcp", nodeAt)

	// Another number of endpoints, the same endpoint for who had one.
	var kept []netip.Addr
	var gone netip.Addr
	name, _, _ := strings.Cut(before, " ")
	for i, ip := range eps {
		if fmt.Sprint("e", i) == name {
			gone = ip
		}
	}
	for _, ip := range eps {
		if ip == gone || len(kept) < 2 {
			kept = append(kept, ip)
		}
	}
	if gone == kept[len(kept)-1] || len(kept) < 3 {
		kept = append(kept[:0:0], gone, eps[0], eps[1])
	}
	apply(state(time.Hour, kept...))
	if got := sticky("fewer endpoints", "tcp", at); got != before {
		t.Errorf("moved from %q to %q", before, got)
	}
	// Its endpoint goes: another one, and then that one.
	var rest []netip.Addr
	for _, ip := range eps {
		if ip != gone {
			rest = append(rest, ip)
		}
	}
	apply(state(time.Hour, rest...))
	if got := sticky("endpoint gone", "tcp", at); got == before {
		t.Errorf("still at %q", got)
	}
	// A short affinity ends when the client rests.
	apply(state(time.Second, rest...))
	first := ask(aNS, "tcp", at)
	deadline := time.Now().Add(30 * time.Second)
	for moved := false; !moved; {
		if time.Now().After(deadline) {
			t.Fatalf("stays at %q", first)
		}
		rested := time.NewTimer(1200 * time.Millisecond)
		<-rested.C
		moved = ask(aNS, "tcp", at) != first
	}
	apply(state(0, rest...))
	if got := ask(aNS, "tcp", at); strings.HasPrefix(got, "error") {
		t.Errorf("without affinity: %q", got)
	}
}
