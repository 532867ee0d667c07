package network

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
)

// TestBothFamilies: pods, nodes and the hub reach each other by both, and by IPv6 alone
// where there is no IPv4.
func TestBothFamilies(t *testing.T) {
	for name, ranges := range map[string]Ranges{"both": rangesBoth, "IPv6": rangesIPv6} {
		t.Run(name, func(t *testing.T) {
			c := newClusterOf(t, ranges)
			aNS, a := c.podOf(1, "a")
			bNS, b := c.podOf(1, "b")
			_, d := c.podOf(2, "d")
			hub := ranges.Hub()
			for i, ip := range a {
				if ip.Is6() != ranges.Pods[i].Addr().Is6() || !ranges.Pods[i].Contains(ip) {
					t.Fatalf("addresses %v of %v", a, ranges.Pods)
				}
				c.serve(HubNetNS(c.id), netip.AddrPortFrom(hub[i], 6443), "hub")
				node := c.nodes[0].IPs[i].String()
				for _, x := range []struct {
					name, from, want string
					to               netip.AddrPort
				}{
					{"same node", aNS, "b " + ip.String(), netip.AddrPortFrom(b[i], 8080)},
					{"other node", bNS, "d " + b[i].String(), netip.AddrPortFrom(d[i], 8080)},
					{"itself", aNS, "a " + ip.String(), netip.AddrPortFrom(ip, 8080)},
					{"own node to pod", c.nodes[0].NetNS, "a " + node, netip.AddrPortFrom(ip, 8080)},
					{"node to other node's pod", c.nodes[0].NetNS, "d " + node, netip.AddrPortFrom(d[i], 8080)},
					{"hub to pod", HubNetNS(c.id), "a " + hub[i].String(), netip.AddrPortFrom(ip, 8080)},
					{"pod to hub", aNS, "hub " + ip.String(), netip.AddrPortFrom(hub[i], 6443)},
				} {
					for _, network := range []string{"tcp", "udp"} {
						if got := ask(x.from, network, x.to); got != x.want {
							t.Errorf("%s by %s: %q, want %q", x.name, network, got, x.want)
						}
					}
				}
			}
			syncRoutes(t, c.nodes[0].NetNS, nil)
			if got := ask(aNS, "tcp", netip.AddrPortFrom(d[len(d)-1], 8080)); !strings.Contains(got, "unreachable") {
				t.Errorf("without a route: %q", got)
			}
		})
	}
}

// TestPodRecordOfOneFamily: a pod whose record an earlier version has written, with its
// one address, keeps that.
func TestPodRecordOfOneFamily(t *testing.T) {
	c := newCluster(t)
	ns, ips, err := c.pods[0].Setup(context.Background(), "old", "default/old", false)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(c.podDir(1), "old"+recordExt)
	if err := os.WriteFile(file, fmt.Appendf(nil, `{"UID":"old","Name":"default/old","IP":%q,"NetNS":%q}`, ips[0], ns), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := NewPodNetwork(c.pods[0].cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	before, err := os.Stat(ns)
	if err != nil {
		t.Fatal(err)
	}
	ns2, ips2, err := again.Setup(context.Background(), "old", "default/old", false)
	after, statErr := os.Stat(ns2)
	if err != nil || statErr != nil || !slices.Equal(ips, ips2) || !os.SameFile(before, after) {
		t.Errorf("%s %v, before %s %v: %v %v", ns2, ips2, ns, ips, err, statErr)
	}
}

// TestForgedIPv6: nothing of a pod gets on with an address that is another pod's, its
// node's, or one of somebody else.
func TestForgedIPv6(t *testing.T) {
	c := newClusterOf(t, rangesBoth)
	aNS, a := c.podOf(1, "a")
	_, b := c.podOf(1, "b")
	dNS, d := c.podOf(2, "d")
	own, to := Same(netip.IPv6Unspecified(), a), Same(netip.IPv6Unspecified(), d)
	var in net.PacketConn
	if err := inNetNS(dNS, func() (err error) { in, err = net.ListenPacket("ip6:253", to.String()); return err }); err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	for _, from := range []netip.Addr{
		Same(own, b), c.nodes[0].IPs[1], c.nodes[1].IPs[1], netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("fe80::9"),
		own, // and this one alone arrives
	} {
		err := inNetNS(aNS, func() error {
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			header := []byte{0x60, 0, 0, 0, 0, 4, 253, 64}
			return unix.Sendto(fd, slices.Concat(header, from.AsSlice(), to.AsSlice(), []byte("fake")), 0, &unix.SockaddrInet6{Addr: to.As16()})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	_ = in.SetReadDeadline(time.Now().Add(3 * time.Second))
	if _, from, err := in.ReadFrom(make([]byte, 100)); err != nil || from.String() != own.String() {
		t.Errorf("a packet from %v arrived: %v", from, err)
	}
}

// TestServicesIPv6 is what TestServices and TestNodePorts are about, for IPv6.
func TestServicesIPv6(t *testing.T) {
	c := newClusterOf(t, rangesBoth)
	v6 := func(ips []netip.Addr) netip.Addr { return Same(netip.IPv6Unspecified(), ips) }
	aNS, as := c.podOf(1, "a")
	_, bs := c.podOf(1, "b")
	dNS, ds := c.podOf(2, "d")
	a, b, d, hub := v6(as), v6(bs), v6(ds), v6(rangesBoth.Hub())
	one, two := v6(c.nodes[0].IPs), v6(c.nodes[1].IPs)
	apply := c.proxies()
	vip := netip.MustParseAddr("fd00:10:43::55")
	external := netip.MustParseAddr("2001:db8::7")
	at := netip.AddrPortFrom(vip, 80)
	svc := func(affinity time.Duration, endpoints ...netip.Addr) State {
		var s State
		for _, proto := range []Protocol{TCP, UDP} {
			for _, ip := range []netip.Addr{vip, AnyNodeAddress6, external} {
				one := Service{IP: ip, Port: 80, Proto: proto, Affinity: affinity, Masquerade: ip != vip, Endpoints: to(endpoints...)}
				if ip == AnyNodeAddress6 {
					one.Port = 30080
				}
				s.Services = append(s.Services, one)
			}
			s.Services = append(s.Services, Service{IP: netip.MustParseAddr("10.43.5.5"), Port: 80, Proto: proto, Endpoints: to(as[0])})
		}
		return s
	}
	apply(svc(0, b, d))
	for _, network := range []string{"tcp", "udp"} {
		for name, from := range map[string]struct{ ns, ip string }{
			"pod": {aNS, a.String()}, "pod on the other node": {dNS, d.String()}, "node": {c.nodes[1].NetNS, two.String()},
		} {
			seen := map[string]int{}
			for range 40 {
				seen[ask(from.ns, network, at)]++
			}
			if seen["b "+from.ip] == 0 || len(seen) != 2 {
				t.Errorf("%s by %s: %v", name, network, seen)
			}
		}
		if got := ask(aNS, network, netip.MustParseAddrPort("10.43.5.5:80")); got != "a 10.41.0.11" {
			t.Errorf("the IPv4 service beside it by %s: %q", network, got)
		}
	}
	apply(svc(time.Hour, b, d))
	seen := map[string]bool{}
	for range 20 {
		seen[ask(aNS, "tcp", at)] = true
	}
	if len(seen) != 1 {
		t.Errorf("affinity: %v", seen)
	}
	apply(svc(0, a))
	for _, network := range []string{"tcp", "udp"} {
		for _, x := range []struct {
			name, from, want string
			to               netip.AddrPort
		}{
			{"hairpin", aNS, "a " + one.String(), at},
			{"node port from outside", HubNetNS(c.id), "a " + one.String(), netip.AddrPortFrom(one, 30080)},
			{"node port by the other node", HubNetNS(c.id), "a " + two.String(), netip.AddrPortFrom(two, 30080)},
			{"node port from the node", c.nodes[0].NetNS, "a " + one.String(), netip.AddrPortFrom(one, 30080)},
			{"node port from the pod itself", aNS, "a " + one.String(), netip.AddrPortFrom(one, 30080)},
			{"external address", dNS, "a " + two.String(), netip.AddrPortFrom(external, 80)},
		} {
			if got := ask(x.from, network, x.to); got != x.want {
				t.Errorf("%s by %s: %q, want %q", x.name, network, got, x.want)
			}
		}
	}
	// The loopback address has none.
	if got := ask(c.nodes[0].NetNS, "tcp", netip.AddrPortFrom(netip.IPv6Loopback(), 30080)); !strings.Contains(got, "refused") {
		t.Errorf("node port on ::1: %q", got)
	}
	local := State{Services: []Service{{IP: AnyNodeAddress6, Port: 30080, Proto: TCP, NodeLocal: true, Endpoints: to(a), Inside: to(a)}}}
	apply(local)
	if got := ask(HubNetNS(c.id), "tcp", netip.AddrPortFrom(one, 30080)); got != "a "+hub.String() {
		t.Errorf("policy Local: %q", got)
	}
	limited := State{Services: []Service{{IP: external, Port: 80, Proto: TCP, Masquerade: true, Endpoints: to(a), Sources: []netip.Prefix{netip.MustParsePrefix("fd00:10:42:2::/64")}}}}
	apply(limited)
	if got := ask(dNS, "tcp", netip.AddrPortFrom(external, 80)); !strings.HasPrefix(got, "a ") {
		t.Errorf("of the source range: %q", got)
	}
	if got := ask(aNS, "tcp", netip.AddrPortFrom(external, 80)); !strings.Contains(got, "timeout") {
		t.Errorf("outside of the source range: %q", got)
	}
	// Without endpoints, and a service that nobody has: refused at once.
	apply(svc(0))
	began := time.Now()
	for _, to := range []netip.AddrPort{at, netip.MustParseAddrPort("[fd00:10:43::777]:80"), netip.AddrPortFrom(vip, 81)} {
		for _, ns := range []string{dNS, c.nodes[0].NetNS} {
			for _, network := range []string{"tcp", "udp"} {
				if got := ask(ns, network, to); !strings.Contains(got, "refused") && !strings.Contains(got, "not permitted") {
					t.Errorf("%s to %s: %q", network, to, got)
				}
			}
		}
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("refusals took %v", took)
	}
}

// TestFlowsFollowEndpointsIPv6: as TestFlowsFollowEndpoints.
func TestFlowsFollowEndpointsIPv6(t *testing.T) {
	c := newClusterOf(t, rangesIPv6)
	aNS, _ := c.pod(1, "a")
	_, b := c.pod(1, "b")
	_, d := c.pod(2, "d")
	apply := c.proxies()
	for _, front := range []struct{ ip, dialed netip.Addr }{{netip.MustParseAddr("fd00:10:43::6"), netip.MustParseAddr("fd00:10:43::6")}, {AnyNodeAddress6, c.nodes[1].IPs[0]}} {
		state := func(e ...netip.Addr) State {
			return State{Services: []Service{{IP: front.ip, Port: 53, Proto: UDP, Masquerade: front.ip == AnyNodeAddress6, Endpoints: to(e...)}}}
		}
		apply(state(b))
		conn, err := DialIn(aNS)(context.Background(), "udp", netip.AddrPortFrom(front.dialed, 53).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, step := range []struct {
			state State
			want  string
		}{{state(b), "b "}, {state(d), "d "}, {state(), "refused"}, {state(b), "b "}} {
			apply(step.state)
			if got := exchange(conn); !strings.Contains(got, step.want) {
				t.Errorf("%s: %q, want %q", front.ip, got, step.want)
			}
		}
	}
}

// TestKernelState: whatever states a proxy has had, the kernel has in the end what the
// last one says, of both families.
func TestKernelState(t *testing.T) {
	c := newClusterOf(t, rangesBoth)
	p, err := NewProxy(c.nodes[0].NetNS, c.ranges.Services)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	rapid.Check(t, func(t *rapid.T) {
		s := drawState(t, rapid.Bool().Draw(t, "v6 too"))
		if err := p.Apply(s); err != nil {
			t.Fatal(err)
		}
		for _, f := range p.families {
			built, err := compile(s, newTable(f.cluster))
			if err != nil {
				t.Fatal(err)
			}
			want := map[set]map[string]string{}
			for i, list := range built.diff(newTable(f.cluster)).add {
				for _, e := range list {
					if want[set(i)] == nil {
						want[set(i)] = map[string]string{}
					}
					want[set(i)][e.key] = e.value
				}
			}
			if got := kernelState(t, f); !reflect.DeepEqual(got, want) {
				t.Fatalf("%s: the kernel has %+v, want %+v", f.cluster, got, want)
			}
		}
	})
}

func drawState(t *rapid.T, both bool) State {
	var s State
	for _, r := range []Ranges{rangesIPv4, rangesIPv6}[:map[bool]int{false: 1, true: 2}[both]] {
		for i := range rapid.IntRange(0, 4).Draw(t, "services") {
			svc := Service{
				IP: nth(r.Services[0], uint16(20+i)), Port: 80, Proto: rapid.SampledFrom([]Protocol{TCP, UDP}).Draw(t, "protocol"),
				Affinity: rapid.SampledFrom([]time.Duration{0, time.Minute, time.Hour}).Draw(t, "affinity"), NodeLocal: rapid.Bool().Draw(t, "local"),
			}
			for _, e := range rapid.SliceOfNDistinct(rapid.Uint16Range(2, 6), 0, 4, rapid.ID[uint16]).Draw(t, "endpoints") {
				at := netip.AddrPortFrom(nth(r.Pods[0], e), 8080)
				svc.Inside = append(svc.Inside, at)
				if !svc.NodeLocal || e < 5 {
					svc.Endpoints = append(svc.Endpoints, at)
				}
			}
			if i == 3 {
				svc.IP, svc.Masquerade, svc.Sources = anyNodeAddress(svc.IP.Is6()), true, []netip.Prefix{r.Pods[0], r.Nodes[0]}
			}
			s.Services = append(s.Services, svc)
		}
	}
	return s
}

// kernelState reads the sets of a family's table.
func kernelState(t *rapid.T, f *familyProxy) map[set]map[string]string {
	out := map[set]map[string]string{}
	for i := range setCount {
		k := f.kernelSet(i)
		elements, err := f.conn.GetSetElements(k)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range elements {
			if out[i] == nil {
				out[i] = map[string]string{}
			}
			value := string(e.Val)
			if i == unserved { // the library leaves verdicts as they are on the wire
				value = map[bool]string{false: toRefuse, true: toDrop}[strings.Contains(value, chainOutside)]
			}
			out[i][string(e.Key)+string(e.KeyEnd)] = value
		}
	}
	return out
}

// TestDesiredFamilies: each family of a service has its own addresses and endpoints.
func TestDesiredFamilies(t *testing.T) {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.43.0.5", ClusterIPs: []string{"10.43.0.5", "fd00:10:43::5"},
		IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}, ExternalIPs: []string{"2001:db8::7"},
		LoadBalancerSourceRanges: []string{"10.0.0.0/8"},
		Ports:                    []corev1.ServicePort{{Port: 80, NodePort: 30080, Protocol: corev1.ProtocolTCP}},
	}}
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "10.41.0.11"}, {IP: "fd00:10:41::b"}}
	slice := func(kind discoveryv1.AddressType, address string) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
			AddressType: kind, Ports: []discoveryv1.EndpointPort{{Name: ptr(""), Port: ptr(int32(8080))}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{address}, NodeName: ptr("here")}},
		}
	}
	slices := []*discoveryv1.EndpointSlice{slice(discoveryv1.AddressTypeIPv4, "10.42.1.1"), slice(discoveryv1.AddressTypeIPv6, "fd00:10:42:1::2"), slice(discoveryv1.AddressTypeIPv6, "::ffff:10.42.1.9")}
	got := map[string]string{}
	for _, s := range Desired(Place{Node: "here", Names: []netip.Addr{netip.MustParseAddr("fd00:10:43::a")}}, []*corev1.Service{svc}, slices).Services {
		got[netip.AddrPortFrom(s.IP, s.Port).String()] = fmt.Sprint(s.Endpoints, s.Sources)
	}
	want := map[string]string{
		"10.43.0.5:80": "[10.42.1.1:8080] []", "10.41.0.11:80": "[10.42.1.1:8080] [10.0.0.0/8]", "0.0.0.0:30080": "[10.42.1.1:8080] []",
		"[fd00:10:43::5]:80": "[[fd00:10:42:1::2]:8080] []", "[fd00:10:41::b]:80": "[[fd00:10:42:1::2]:8080] [::/128]",
		"[2001:db8::7]:80": "[[fd00:10:42:1::2]:8080] []", "[::]:30080": "[[fd00:10:42:1::2]:8080] []",
	}
	if !maps.Equal(got, want) {
		t.Errorf("%v\nwant %v", got, want)
	}
	if got := fmt.Sprint(Serving(svc, svc.Spec.Ports[0], slices)); got != "[10.42.1.1:8080]" {
		t.Errorf("%s", got)
	}
	if got := fmt.Sprint(Serving(svc, svc.Spec.Ports[0], slices[1:])); got != "[[fd00:10:42:1::2]:8080]" {
		t.Errorf("%s", got)
	}
}

// TestLeaveBoth: nothing of a node is left of either family, and it may go on as one.
func TestLeaveBoth(t *testing.T) {
	c := newClusterOf(t, rangesBoth)
	ns := c.nodes[0].NetNS
	if err := EnsureDNSAddress(ns, c.ranges); err != nil {
		t.Fatal(err)
	}
	if err := CheckOverlap(ns, c.ranges); err != nil {
		t.Error("its own routes are in the way:", err)
	}
	for range 2 {
		if err := Leave(ns, c.ranges); err != nil {
			t.Fatal(err)
		}
	}
	h, err := handle(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, f := range []int{familyIPv4, familyIPv6} {
		routes, err := h.RouteList(nil, f)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if strings.Contains(fmt.Sprint(r.Dst), "10:42") || strings.Contains(fmt.Sprint(r.Dst), "10:43") || strings.HasPrefix(fmt.Sprint(r.Dst), "10.4") && !strings.HasPrefix(fmt.Sprint(r.Dst), "10.41") {
				t.Errorf("left: %v", r)
			}
		}
		addrs, err := h.AddrList(nil, f)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if slices.Contains(c.ranges.DNS(), addrOf(a.IP)) {
				t.Errorf("left: %v", a)
			}
		}
	}
	tables, err := nftables.New(nftables.WithNetNSFd(open(t, ns)))
	if err != nil {
		t.Fatal(err)
	}
	if left, err := tables.ListTables(); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

func open(t *testing.T, path string) int {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return int(f.Fd())
}

// BenchmarkPodOfBoth is BenchmarkPod with both families.
func BenchmarkPodOfBoth(tb *testing.B) {
	c := newClusterOf(tb, rangesBoth)
	for i := 0; tb.Loop(); i++ {
		uid := fmt.Sprint("bench-", i)
		if _, _, err := c.pods[0].Setup(context.Background(), uid, "default/bench", false); err != nil {
			tb.Fatal(err)
		}
		tb.StopTimer()
		if err := c.pods[0].Teardown(uid); err != nil {
			tb.Fatal(err)
		}
		tb.StartTimer()
	}
}

// TestKeepRouters: a machine that begins to forward keeps the routes that routers tell it,
// and hears none from pods.
func TestKeepRouters(t *testing.T) {
	ns := filepath.Join(t.TempDir(), "ns")
	if err := createNetNS(ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := emptyAndDelete(ns); err != nil {
			t.Error(err)
		}
	})
	h, err := handle(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, name := range []string{"uplink0", "pod0"} {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := prepareForwarding(ns, true); err != nil {
			t.Fatal(err)
		}
		for link, want := range map[string]string{"uplink0/accept_ra": "2", "pod0/accept_ra": "1", "uplink0/forwarding": "1", "all/forwarding": "1"} {
			err := inNetNS(ns, func() error {
				got, err := os.ReadFile(sysctlsIPv6 + "/" + link)
				if err == nil && strings.TrimSpace(string(got)) != want {
					err = fmt.Errorf("%s is %s, want %s", link, got, want)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
}
