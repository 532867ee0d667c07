package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

var count atomic.Int64

// cluster is a hub with two nodes, each with a pod network.
type cluster struct {
	t      testing.TB
	id     string
	dir    string
	ranges Ranges
	nodes  []Node
	pods   []*PodNetwork
}

// Addresses of tests: those of docs/contracts.md, and IPv6 ones where a test asks for
// both families.
var (
	rangesIPv4 = Ranges{
		Nodes: []netip.Prefix{netip.MustParsePrefix("10.41.0.0/24")}, Pods: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		Services: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
	}
	rangesIPv6 = Ranges{
		Nodes: []netip.Prefix{netip.MustParsePrefix("fd00:10:41::/64")}, Pods: []netip.Prefix{netip.MustParsePrefix("fd00:10:42::/56")},
		Services: []netip.Prefix{netip.MustParsePrefix("fd00:10:43::/112")},
	}
	rangesBoth = Ranges{
		Nodes: slices.Concat(rangesIPv4.Nodes, rangesIPv6.Nodes), Pods: slices.Concat(rangesIPv4.Pods, rangesIPv6.Pods),
		Services: slices.Concat(rangesIPv4.Services, rangesIPv6.Services),
	}
	hubIP       = rangesIPv4.Hub()[0]
	serviceCIDR = rangesIPv4.Services[0]
)

// podCIDRs are node n's.
func podCIDRs(n int, r Ranges) (out []netip.Prefix) {
	for _, p := range r.Pods {
		if p.Addr().Is4() {
			out = append(out, podCIDR(n))
		} else {
			a := p.Addr().As16()
			a[7] = byte(n)
			out = append(out, netip.PrefixFrom(netip.AddrFrom16(a), 64))
		}
	}
	return out
}

func podCIDR(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, byte(n), 0}), 24)
}

func newCluster(t testing.TB) *cluster { return newClusterOf(t, rangesIPv4) }

func newClusterOf(t testing.TB, r Ranges) *cluster {
	t.Helper()
	c := &cluster{t: t, ranges: r, id: fmt.Sprintf("t%d-%d", os.Getpid(), count.Add(1)), dir: t.TempDir()}
	t.Cleanup(c.destroy)
	if err := EnsureHub(c.id, c.ranges); err != nil {
		t.Fatal(err)
	}
	var peers []Peer
	for n := 1; n <= 2; n++ {
		node, err := EnsureNode(c.id, fmt.Sprintf("node-%d", n), n, c.ranges)
		if err != nil {
			t.Fatal(err)
		}
		pods, err := NewPodNetwork(PodConfig{Dir: c.podDir(n), NetNS: node.NetNS, PodCIDRs: podCIDRs(n, r), Services: r.Services, NodeIPs: node.IPs})
		if err != nil {
			t.Fatal(err)
		}
		c.nodes, c.pods = append(c.nodes, node), append(c.pods, pods)
		for _, cidr := range podCIDRs(n, r) {
			peers = append(peers, Peer{PodCIDR: cidr, NodeIP: Same(cidr.Addr(), node.IPs)})
		}
	}
	for _, ns := range []string{HubNetNS(c.id), c.nodes[0].NetNS, c.nodes[1].NetNS} {
		syncRoutes(t, ns, peers)
	}
	return c
}

// syncRoutes makes the plain routes to peers in a namespace, and no others.
func syncRoutes(t testing.TB, ns string, peers []Peer) {
	t.Helper()
	if _, err := NewMesh(MeshConfig{Pods: rangesBoth.Pods, Services: rangesBoth.Services, NetNS: ns, Tunnel: TunnelNever}).Sync(peers); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) podDir(n int) string { return filepath.Join(c.dir, fmt.Sprint(n)) }

// destroy checks that nothing is left.
func (c *cluster) destroy() {
	for i, p := range c.pods {
		if err := p.Close(); err != nil {
			c.t.Error(err)
		}
		if err := DeletePods(c.podDir(i + 1)); err != nil {
			c.t.Error(err)
		}
		if left, _ := os.ReadDir(c.podDir(i + 1)); len(left) > 0 {
			c.t.Errorf("left behind: %v", left)
		}
	}
	for range 2 {
		if err := DeleteTopology(c.id); err != nil {
			c.t.Error(err)
		}
	}
	if left, _ := filepath.Glob(netnsDir + "/gitk8s-" + c.id + "-*"); len(left) > 0 {
		c.t.Errorf("left behind: %v", left)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), c.dir) || strings.Contains(string(mounts), c.id) {
		c.t.Errorf("mounts left behind (%v)", err)
	}
	links, err := net.Interfaces()
	for _, l := range links {
		if err != nil || strings.HasPrefix(l.Name, "pod") || l.Name == bridgeName {
			c.t.Errorf("link in the machine's own namespace: %v %v", l, err)
		}
	}
}

// pod makes a pod on node n (1 or 2) that answers on TCP and UDP port 8080 with its
// name and the address of the client.
func (c *cluster) pod(n int, name string) (ns string, ip netip.Addr) {
	c.t.Helper()
	ns, ips := c.podOf(n, name)
	return ns, ips[0]
}

// podOf returns all its addresses.
func (c *cluster) podOf(n int, name string) (ns string, ips []netip.Addr) {
	c.t.Helper()
	ns, ips, err := c.pods[n-1].Setup(context.Background(), "uid-"+name, "default/"+name, false)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, ip := range ips {
		c.serve(ns, netip.AddrPortFrom(ip, 8080), name)
	}
	return ns, ips
}

func (c *cluster) serve(ns string, at netip.AddrPort, name string) {
	c.t.Helper()
	l, err := ListenIn(ns, "tcp", at.String())
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
			_, _ = fmt.Fprintf(conn, "%s %s", name, host)
			_ = conn.Close()
		}
	}()
	u, err := ListenPacketIn(ns, "udp", at.String())
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = u.Close() })
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(from.String())
			_, _ = u.WriteTo([]byte(name+" "+host), from)
		}
	}()
}

// ask returns "<pod> <client's address>", or the error.
func ask(ns, network string, to netip.AddrPort) string {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	conn, err := DialIn(ns)(ctx, network, to.String())
	if err != nil {
		return "error " + err.Error()
	}
	defer conn.Close()
	return exchange(conn)
}

func exchange(conn net.Conn) string {
	_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
	if strings.HasPrefix(conn.LocalAddr().Network(), "udp") {
		if _, err := conn.Write([]byte("?")); err != nil {
			return "error " + err.Error()
		}
		buf := make([]byte, 100)
		n, err := conn.Read(buf)
		if err != nil {
			return "error " + err.Error()
		}
		return string(buf[:n])
	}
	b, err := io.ReadAll(conn)
	if err != nil {
		return "error " + err.Error()
	}
	return string(b)
}

func TestTopology(t *testing.T) {
	c := newCluster(t)
	for range 2 { // a second time changes nothing
		if err := EnsureHub(c.id, c.ranges); err != nil {
			t.Fatal(err)
		}
		node, err := EnsureNode(c.id, "node-1", 1, c.ranges)
		if err != nil || !reflect.DeepEqual(node, c.nodes[0]) || node.IPs[0] != netip.MustParseAddr("10.41.0.11") {
			t.Fatalf("%+v %v", node, err)
		}
	}
	hub := HubNetNS(c.id)
	c.serve(hub, netip.AddrPortFrom(hubIP, 6443), "hub")
	c.serve(c.nodes[1].NetNS, netip.AddrPortFrom(c.nodes[1].IPs[0], 10250), "node")
	if got := ask(c.nodes[0].NetNS, "tcp", netip.AddrPortFrom(hubIP, 6443)); got != "hub 10.41.0.11" {
		t.Errorf("node to hub: %q", got)
	}
	for _, from := range []string{hub, c.nodes[0].NetNS} {
		if got := ask(from, "tcp", netip.AddrPortFrom(c.nodes[1].IPs[0], 10250)); !strings.HasPrefix(got, "node ") {
			t.Errorf("%s to node: %q", from, got)
		}
	}
	// A node whose namespace is gone is made again.
	if err := DeleteNode(c.id, "node-2"); err != nil {
		t.Fatal(err)
	}
	if _, err := EnsureNode(c.id, "node-2", 2, c.ranges); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "hub", "../x", "UPPER"} {
		if _, err := EnsureNode(c.id, bad, 3, c.ranges); err == nil {
			t.Errorf("node %q was made", bad)
		}
	}
	if _, err := DialIn(hub)(context.Background(), "tcp", "name.example:80"); err == nil {
		t.Error("dialled a name")
	}
}

func TestPodsReachEachOther(t *testing.T) {
	c := newCluster(t)
	aNS, a := c.pod(1, "a")
	bNS, b := c.pod(1, "b")
	_, d := c.pod(2, "d")
	c.serve(HubNetNS(c.id), netip.AddrPortFrom(hubIP, 6443), "hub")
	for _, x := range []struct {
		name, from, want string
		to               netip.AddrPort
	}{
		{"same node", aNS, "b " + a.String(), netip.AddrPortFrom(b, 8080)},
		{"other node", bNS, "d " + b.String(), netip.AddrPortFrom(d, 8080)},
		{"itself", aNS, "a " + a.String(), netip.AddrPortFrom(a, 8080)},
		{"own node to pod", c.nodes[0].NetNS, "a 10.41.0.11", netip.AddrPortFrom(a, 8080)},
		{"node to other node's pod", c.nodes[0].NetNS, "d 10.41.0.11", netip.AddrPortFrom(d, 8080)},
		{"hub to pod", HubNetNS(c.id), "a 10.41.0.1", netip.AddrPortFrom(a, 8080)},
		{"pod to hub", aNS, "hub " + a.String(), netip.AddrPortFrom(hubIP, 6443)},
	} {
		for _, network := range []string{"tcp", "udp"} {
			if got := ask(x.from, network, x.to); got != x.want {
				t.Errorf("%s by %s: %q, want %q", x.name, network, got, x.want)
			}
		}
	}
	// Routes follow the peers.
	syncRoutes(t, c.nodes[0].NetNS, nil)
	if got := ask(aNS, "tcp", netip.AddrPortFrom(d, 8080)); !strings.Contains(got, "unreachable") {
		t.Errorf("without a route: %q", got)
	}
}

// A pod's users are its own, at a place that follows from its address.
func TestPodUsers(t *testing.T) {
	for ip, want := range map[string]uint32{"10.42.0.2": 2 << 16, "10.42.1.0": 256 << 16, "10.42.255.254": 0xfffe << 16} {
		if got := UserBase(netip.MustParseAddr(ip)); got != want {
			t.Errorf("%s: %d, want %d", ip, got, want)
		}
	}
	c := newCluster(t)
	for _, own := range []bool{true, false} {
		path, ips, err := c.pods[0].Setup(context.Background(), fmt.Sprint("own-", own), "default/pod", own)
		if err != nil {
			t.Fatal(err)
		}
		ns, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		users, err := unix.IoctlRetInt(int(ns.Fd()), unix.NS_GET_USERNS)
		ns.Close()
		if err != nil {
			t.Fatal(err)
		}
		var mine, its unix.Stat_t
		if err := errors.Join(unix.Stat("/proc/self/ns/user", &mine), unix.Fstat(users, &its)); err != nil {
			t.Fatal(err)
		}
		unix.Close(users)
		if (mine.Ino != its.Ino) != own {
			t.Errorf("%s: own users: %v, but the namespace is %d and ours %d", ips, own, its.Ino, mine.Ino)
		}
	}
}

func TestPodRecords(t *testing.T) {
	c := newCluster(t)
	ctx := context.Background()
	pods := c.pods[0]
	ns, ips, err := pods.Setup(ctx, "one", "default/one", false)
	if err != nil || len(ips) != 1 || ips[0] != netip.MustParseAddr("10.42.1.2") {
		t.Fatal(ips, err)
	}
	before, err := os.Stat(ns)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := pods.Setup(ctx, "two", "default/two", false); err != nil {
		t.Fatal(err)
	}
	// Another process takes over: the same pod has the same place, untouched.
	again, err := NewPodNetwork(pods.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	ns2, ips2, err := again.Setup(ctx, "one", "default/one", false)
	after, statErr := os.Stat(ns2)
	if err != nil || statErr != nil || ns2 != ns || !slices.Equal(ips2, ips) || !os.SameFile(before, after) {
		t.Errorf("%s %s %v", ns2, ips2, err)
	}
	// What a restart of the machine takes is made again, with the same address.
	if err := unix.Unmount(ns, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if _, ips2, err = again.Setup(ctx, "one", "default/one", false); err != nil || !slices.Equal(ips2, ips) || !isNetNS(ns) {
		t.Errorf("after loss: %s %v", ips2, err)
	}
	if err := again.Reconcile(func(uid string) bool { return uid == "one" }); err != nil {
		t.Fatal(err)
	}
	if list := again.List(); len(list) != 1 || list[0].UID != "one" || list[0].Name != "default/one" {
		t.Errorf("%+v", list)
	}
	// A freed address rests.
	if _, ips3, err := again.Setup(ctx, "three", "default/three", false); err != nil || ips3[0] != netip.MustParseAddr("10.42.1.4") {
		t.Errorf("third: %s %v", ips3, err)
	}
	for range 2 {
		if err := again.Teardown("three"); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "../x", ".x"} {
		if _, _, err := again.Setup(ctx, bad, "default/bad", false); err == nil {
			t.Errorf("uid %q was taken", bad)
		}
	}
}

// TestAddressesRunOut: whatever comes and goes, no address is given out twice, all of a
// node's are in the end, and those of a pod end alike.
func TestAddressesRunOut(t *testing.T) {
	for _, x := range []struct {
		cidrs, reserved string
		size            int
	}{
		{"10.42.9.16/28", "10.42.9.16 10.42.9.17 10.42.9.31", 13},
		{"10.42.9.0/24 fd00:10:42:9::/64", "10.42.9.0 10.42.9.1 10.42.9.255 fd00:10:42:9:: fd00:10:42:9::1", 253},
		{"fd00:10:42:9::/64", "fd00:10:42:9:: fd00:10:42:9::1 fd00:10:42:9::900", 253},
	} {
		n := &PodNetwork{used: map[uint16]string{}}
		for _, text := range strings.Fields(x.cidrs) {
			n.cfg.PodCIDRs = append(n.cfg.PodCIDRs, netip.MustParsePrefix(text))
		}
		n.last, _ = n.numbers()
		given := map[netip.Addr]bool{}
		var pods []Pod
		add := func() error {
			ips, err := n.allocate()
			if err != nil {
				return err
			}
			p := Pod{UID: fmt.Sprint(len(given)), IPs: ips}
			if !n.fits(p) {
				t.Fatalf("%s: %s are not the node's own", x.cidrs, ips)
			}
			for _, ip := range ips {
				if given[ip] || strings.Contains(" "+x.reserved+" ", " "+ip.String()+" ") {
					t.Fatalf("%s: %s was given out twice, or is reserved", x.cidrs, ip)
				}
				given[ip] = true
			}
			n.hold(p)
			pods = append(pods, p)
			return nil
		}
		random := rand.New(rand.NewPCG(1, 2))
		for range 500 {
			if len(pods) > 0 && random.IntN(3) == 0 {
				i := random.IntN(len(pods))
				n.free(pods[i])
				for _, ip := range pods[i].IPs {
					delete(given, ip)
				}
				pods = slices.Delete(pods, i, i+1)
			} else if err := add(); err != nil && len(pods) < x.size {
				t.Fatalf("%s: pod %d: %v", x.cidrs, len(pods), err)
			}
		}
		for len(pods) < x.size {
			if err := add(); err != nil {
				t.Fatalf("%s: pod %d: %v", x.cidrs, len(pods), err)
			}
		}
		if err := add(); err == nil {
			t.Errorf("%s: one more than there are", x.cidrs)
		}
	}
}

// proxies opens one on each node and applies state to all.
func (c *cluster) proxies() func(State) {
	c.t.Helper()
	var all []*Proxy
	for _, n := range c.nodes {
		p, err := NewProxy(n.NetNS, c.ranges.Services)
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() {
			if err := p.Remove(); err != nil {
				c.t.Error(err)
			}
			for _, f := range p.families {
				tables, err := f.conn.ListTablesOfFamily(f.ipFamily.table)
				tables = slices.DeleteFunc(tables, func(t *nftables.Table) bool { return t.Name == sourcesTable })
				if err != nil || len(tables) > 0 {
					c.t.Errorf("tables left: %v %v", tables, err)
				}
			}
			if err := p.Close(); err != nil {
				c.t.Error(err)
			}
		})
		all = append(all, p)
	}
	return func(s State) {
		c.t.Helper()
		for _, p := range all {
			if err := p.Apply(s); err != nil {
				c.t.Fatal(err)
			}
		}
	}
}

func TestServices(t *testing.T) {
	c := newCluster(t)
	aNS, a := c.pod(1, "a")
	_, b := c.pod(1, "b")
	dNS, d := c.pod(2, "d")
	c.serve(HubNetNS(c.id), netip.AddrPortFrom(hubIP, 6443), "api")
	apply := c.proxies()

	vip := netip.MustParseAddr("10.43.5.5")
	at := netip.AddrPortFrom(vip, 80)
	svc := func(affinity time.Duration, endpoints ...netip.Addr) []Service {
		var out []Service
		for _, proto := range []Protocol{TCP, UDP} {
			s := Service{IP: vip, Port: 80, Proto: proto, Affinity: affinity}
			for _, e := range endpoints {
				s.Endpoints = append(s.Endpoints, netip.AddrPortFrom(e, 8080))
			}
			out = append(out, s)
		}
		return out
	}
	kubernetes := Service{IP: netip.MustParseAddr("10.43.0.1"), Port: 443, Proto: TCP, Endpoints: []netip.AddrPort{netip.AddrPortFrom(hubIP, 6443)}}
	state := func(s []Service) State { return State{Services: append(s, kubernetes)} }

	apply(state(svc(0, b, d)))
	for _, network := range []string{"tcp", "udp"} {
		for name, from := range map[string]struct{ ns, ip string }{
			"pod": {aNS, a.String()}, "pod on the other node": {dNS, d.String()}, "node": {c.nodes[1].NetNS, "10.41.0.12"},
		} {
			seen := map[string]int{}
			for range 40 {
				got := ask(from.ns, network, at)
				seen[got]++
			}
			// d sees itself by the node's address: see hairpin below.
			if seen["b "+from.ip] == 0 || len(seen) != 2 {
				t.Errorf("%s by %s: %v", name, network, seen)
			}
		}
	}
	if got := ask(aNS, "tcp", netip.MustParseAddrPort("10.43.0.1:443")); got != "api "+a.String() {
		t.Errorf("kubernetes: %q", got)
	}

	// Affinity: one endpoint a client.
	apply(state(svc(time.Hour, b, d)))
	seen := map[string]bool{}
	for range 20 {
		seen[ask(aNS, "tcp", at)] = true
	}
	if len(seen) != 1 {
		t.Errorf("affinity: %v", seen)
	}

	// Hairpin: a pod that is its own endpoint.
	apply(state(svc(0, a)))
	for _, network := range []string{"tcp", "udp"} {
		if got := ask(aNS, network, at); got != "a 10.41.0.11" {
			t.Errorf("hairpin by %s: %q", network, got)
		}
	}

	// No endpoints, and a service that nobody has: refused at once.
	apply(state(svc(0)))
	began := time.Now()
	for _, to := range []netip.AddrPort{at, netip.MustParseAddrPort("10.43.77.77:80"), netip.AddrPortFrom(vip, 81)} {
		for _, ns := range []string{aNS, c.nodes[0].NetNS} {
			for _, network := range []string{"tcp", "udp"} {
				// A node's own datagram is refused by its send already: EPERM.
				if got := ask(ns, network, to); !strings.Contains(got, "refused") && !strings.Contains(got, "not permitted") {
					t.Errorf("%s to %s: %q", network, to, got)
				}
			}
		}
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("refusals took %v", took)
	}
	apply(State{})
	if got := ask(aNS, "tcp", netip.MustParseAddrPort("10.43.0.1:443")); !strings.Contains(got, "refused") {
		t.Errorf("removed service: %q", got)
	}
}

// TestFlowsFollowEndpoints: a client that keeps its UDP socket leaves an endpoint
// that is gone; a TCP connection under way is left alone by changes.
func TestFlowsFollowEndpoints(t *testing.T) {
	c := newCluster(t)
	aNS, _ := c.pod(1, "a")
	_, b := c.pod(1, "b")
	_, d := c.pod(2, "d")
	apply := c.proxies()
	for _, front := range []struct {
		ip     netip.Addr
		dialed netip.AddrPort
	}{
		{netip.MustParseAddr("10.43.6.6"), netip.MustParseAddrPort("10.43.6.6:53")},
		{AnyNodeAddress, netip.AddrPortFrom(c.nodes[1].IPs[0], 53)},
	} {
		state := func(e ...netip.Addr) State {
			return State{Services: []Service{{IP: front.ip, Port: 53, Proto: UDP, Masquerade: front.ip == AnyNodeAddress, Endpoints: to(e...)}}}
		}
		apply(state(b))
		conn, err := DialIn(aNS)(context.Background(), "udp", front.dialed.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if got := exchange(conn); !strings.HasPrefix(got, "b ") {
			t.Fatalf("first: %q", got)
		}
		apply(state(d))
		if got := exchange(conn); !strings.HasPrefix(got, "d ") {
			t.Errorf("after the change: %q", got)
		}
		apply(state())
		if got := exchange(conn); !strings.Contains(got, "refused") {
			t.Errorf("without endpoints: %q", got)
		}
		apply(state(b))
		if got := exchange(conn); !strings.HasPrefix(got, "b ") {
			t.Errorf("with endpoints again: %q", got)
		}
	}
}

func TestProxyTakesOver(t *testing.T) {
	c := newCluster(t)
	aNS, _ := c.pod(1, "a")
	_, b := c.pod(1, "b")
	apply := c.proxies()
	s := State{Services: []Service{{IP: netip.MustParseAddr("10.43.1.1"), Port: 80, Proto: TCP, Endpoints: []netip.AddrPort{netip.AddrPortFrom(b, 8080)}}}}
	apply(s)
	second, err := NewProxy(c.nodes[0].NetNS, c.ranges.Services)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	s.Services[0].IP = netip.MustParseAddr("10.43.1.2")
	if err := second.Apply(s); err != nil {
		t.Fatal(err)
	}
	if got := ask(aNS, "tcp", netip.MustParseAddrPort("10.43.1.2:80")); !strings.HasPrefix(got, "b ") {
		t.Errorf("new service: %q", got)
	}
	if got := ask(aNS, "tcp", netip.MustParseAddrPort("10.43.1.1:80")); !strings.Contains(got, "refused") {
		t.Errorf("old proxy's service: %q", got)
	}
}

// BenchmarkPod reports connecting and disconnecting one pod.
func BenchmarkPod(tb *testing.B) {
	c := newCluster(tb)
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

func largeState(services int, shift byte) State {
	var s State
	for i := range services {
		svc := Service{IP: netip.AddrFrom4([4]byte{10, 43, byte(i >> 8), byte(i)}), Port: 80, Proto: TCP}
		for e := range 3 {
			svc.Endpoints = append(svc.Endpoints, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 42, byte(i), byte(e) + shift}), 8080))
		}
		s.Services = append(s.Services, svc)
	}
	return s
}

// BenchmarkProxy reports the first Apply of 1,000 services and the change of one.
func BenchmarkProxy(tb *testing.B) {
	c := newCluster(tb)
	p, err := NewProxy(c.nodes[0].NetNS, c.ranges.Services)
	if err != nil {
		tb.Fatal(err)
	}
	defer p.Close()
	s := largeState(1000, 1)
	tb.Run("all-1000", func(tb *testing.B) {
		for tb.Loop() {
			p.families[0].installed = nil
			if err := p.Apply(s); err != nil {
				tb.Fatal(err)
			}
		}
	})
	tb.Run("one-endpoint", func(tb *testing.B) {
		for i := 0; tb.Loop(); i++ {
			s.Services[0].Endpoints[0] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 42, 200, byte(i)}), 8080)
			if err := p.Apply(s); err != nil {
				tb.Fatal(err)
			}
		}
	})
}
