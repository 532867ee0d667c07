package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sites are two links with a router between them, that knows nothing of pods, and
// machines on either.
type sites struct {
	*cluster
	router string
	peers  []Peer
	meshes []*Mesh
}

var (
	siteCIDRs  = [2]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.51.100.0/24")}
	siteCIDRs6 = [2]netip.Prefix{netip.MustParsePrefix("2001:db8:1::/64"), netip.MustParsePrefix("2001:db8:2::/64")}
)

// everyFamily runs a test for clusters of IPv4, of IPv6, and of both.
func everyFamily(t *testing.T, test func(*testing.T, Ranges)) {
	for _, x := range []struct {
		name   string
		ranges Ranges
	}{{"IPv4", rangesIPv4}, {"IPv6", rangesIPv6}, {"both", rangesBoth}} {
		t.Run(x.name, func(t *testing.T) { test(t, x.ranges) })
	}
}

// siteIP is address n of a site.
func siteIP(site, n int) netip.Addr { return nth(siteCIDRs[site], uint16(n)) }

// at are addresses n of a site, one of each of the cluster's families.
func (s *sites) at(site, n int) (out []netip.Addr) {
	for _, p := range s.ranges.Pods {
		if p.Addr().Is6() {
			out = append(out, nth(siteCIDRs6[site], uint16(n)))
		} else {
			out = append(out, siteIP(site, n))
		}
	}
	return out
}

func siteNetwork(a netip.Addr) netip.Prefix {
	for _, p := range slices.Concat(siteCIDRs[:], siteCIDRs6[:]) {
		if p.Contains(a) {
			return netip.PrefixFrom(a, p.Bits())
		}
	}
	panic(a)
}

// newSites is newSitesOf for IPv4.
func newSites(t testing.TB, at ...int) *sites {
	t.Helper()
	return newSitesOf(t, rangesIPv4, at...)
}

// newSitesOf makes a node for each of at, which says at which site it is; nodes count
// from 1 and have the addresses from .11 on.
func newSitesOf(t testing.TB, r Ranges, at ...int) *sites {
	t.Helper()
	c := &cluster{t: t, ranges: r, id: fmt.Sprintf("t%d-%d", os.Getpid(), count.Add(1)), dir: t.TempDir()}
	t.Cleanup(c.destroy)
	s := &sites{cluster: c, router: NodeNetNS(c.id, "router")}
	s.namespace(s.router)
	h := s.handle(s.router)
	for site := range siteCIDRs {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = fmt.Sprintf("site%d", site)
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			t.Fatal(err)
		}
		for _, ip := range s.at(site, 1) {
			if err := upWithAddrs(h, s.link(s.router, attrs.Name), siteNetwork(ip)); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.sysctl(s.router, "net.ipv4.ip_forward", "1")
	s.sysctl(s.router, "net.ipv4.conf.all.rp_filter", "1")
	if r.HasIPv6() {
		s.sysctl(s.router, "net.ipv6.conf.all.forwarding", "1")
	}
	for i, site := range at {
		n := i + 1
		node := Node{NetNS: s.machine(fmt.Sprintf("node-%d", n), site, 10+n), IPs: s.at(site, 10+n)}
		pods, err := NewPodNetwork(PodConfig{Dir: c.podDir(n), NetNS: node.NetNS, PodCIDRs: podCIDRs(n, r), Services: r.Services, NodeIPs: node.IPs})
		if err != nil {
			t.Fatal(err)
		}
		c.nodes, c.pods = append(c.nodes, node), append(c.pods, pods)
		for _, cidr := range podCIDRs(n, r) {
			s.peers = append(s.peers, Peer{Name: fmt.Sprintf("node-%d", n), NodeIP: Same(cidr.Addr(), node.IPs), PodCIDR: cidr})
		}
		s.meshes = append(s.meshes, NewMesh(s.config(n)))
	}
	return s
}

// config is what node n's Mesh is told.
func (s *sites) config(n int) MeshConfig {
	return MeshConfig{
		Pods: s.ranges.Pods, Services: s.ranges.Services, Tunnel: TunnelAuto,
		NetNS: s.nodes[n-1].NetNS, Node: fmt.Sprintf("node-%d", n), NodeIPs: s.nodes[n-1].IPs,
	}
}

// named changes the peers of a name.
func (s *sites) named(name string, change func(*Peer)) {
	for i := range s.peers {
		if s.peers[i].Name == name {
			change(&s.peers[i])
		}
	}
}

func (s *sites) namespace(ns string) {
	s.t.Helper()
	if err := createNetNS(ns); err != nil {
		s.t.Fatal(err)
	}
	if s.ranges.HasIPv6() {
		if err := inNetNS(ns, noDelay); err != nil {
			s.t.Fatal(err)
		}
	}
}

// machine makes a namespace that is at a site with an address of each family, and default
// routes by the router.
func (s *sites) machine(name string, site, n int) string {
	s.t.Helper()
	ns := NodeNetNS(s.id, name)
	s.namespace(ns)
	h := s.handle(s.router)
	if err := addVeth(h, name, nil, ns, uplinkName); err != nil {
		s.t.Fatal(err)
	}
	s.plug(name, site)
	s.address(ns, site, n)
	return ns
}

// plug connects a machine with a site.
func (s *sites) plug(name string, site int) {
	s.t.Helper()
	h := s.handle(s.router)
	port := s.link(s.router, name)
	if err := errors.Join(h.LinkSetMaster(port, s.link(s.router, fmt.Sprintf("site%d", site))), h.LinkSetUp(port)); err != nil {
		s.t.Fatal(err)
	}
}

// ready waits for a link to be one over which the kernel sends, which it notices late.
func (s *sites) ready(ns, name string) {
	s.t.Helper()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for deadline := time.Now().Add(10 * time.Second); s.link(ns, name).Attrs().OperState != netlink.OperUp; <-look.C {
		if time.Now().After(deadline) {
			s.t.Fatalf("%s in %s is not up", name, ns)
		}
	}
}

// address gives a machine an address of a site, of each family, and takes those that it had
// away.
func (s *sites) address(ns string, site, n int) {
	s.t.Helper()
	h, uplink := s.handle(ns), s.link(ns, uplinkName)
	old, err := h.AddrList(uplink, netlink.FAMILY_ALL)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, a := range old {
		if a.IP.IsLinkLocalUnicast() {
			continue
		}
		if err := h.AddrDel(uplink, &a); err != nil {
			s.t.Fatal(err)
		}
	}
	for i, ip := range s.at(site, n) {
		if err := upWithAddrs(h, uplink, siteNetwork(ip)); err != nil {
			s.t.Fatal(err)
		}
		s.ready(ns, uplinkName)
		s.ready(s.router, fmt.Sprintf("site%d", site))
		everywhere := netip.PrefixFrom(ip, 0).Masked()
		if err := h.RouteReplace(&netlink.Route{Dst: ipNet(everywhere), Gw: s.at(site, 1)[i].AsSlice()}); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *sites) handle(ns string) *netlink.Handle {
	s.t.Helper()
	h, err := handle(ns, unix.NETLINK_ROUTE)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(h.Close)
	return h
}

func (s *sites) link(ns, name string) netlink.Link {
	s.t.Helper()
	l, err := s.handle(ns).LinkByName(name)
	if err != nil {
		s.t.Fatalf("%s in %s: %v", name, ns, err)
	}
	return l
}

func (s *sites) sysctl(ns, key, value string) {
	s.t.Helper()
	if err := inNetNS(ns, func() error { return setSysctls(map[string]string{key: value}) }); err != nil {
		s.t.Fatal(err)
	}
}

// sync brings all nodes up to date, as their workers do.
func (s *sites) sync() {
	s.t.Helper()
	for i, m := range s.meshes {
		w, err := m.Sync(s.peers)
		if err == nil {
			err = errors.Join(s.pods[i].SetMTU(w.MTU), s.pods[i].Repair())
		}
		if err != nil {
			s.t.Fatalf("node %d: %v", i+1, err)
		}
	}
}

// state is what a node has for its peers, in words.
func (s *sites) state(ns string) string {
	s.t.Helper()
	h := s.handle(ns)
	conn, err := nftIn(ns)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.CloseLasting()
	var out []string
	for _, f := range []*ipFamily{ipv4, ipv6} {
		out = append(out, s.stateOf(h, conn, f)...)
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func (s *sites) stateOf(h *netlink.Handle, conn *nftables.Conn, f *ipFamily) (out []string) {
	s.t.Helper()
	routes, err := h.RouteListFiltered(family(f.any), &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, r := range routes {
		out = append(out, fmt.Sprintf("route %d %s via %s dev %d mtu %d type %d", r.Table, r.Dst, r.Gw, r.LinkIndex, r.MTU, r.Type))
	}
	rules, err := h.RuleList(family(f.any))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, r := range rules {
		if r.Protocol == routeProtocol {
			out = append(out, fmt.Sprintf("rule from %s table %d", r.Src, r.Table))
		}
	}
	if l, err := h.LinkByName(f.vxlanLink()); err == nil {
		out = append(out, fmt.Sprintf("%s %d mtu %d %s", f.vxlanLink(), l.Attrs().Index, l.Attrs().MTU, l.Attrs().HardwareAddr))
		for _, family := range []int{family(f.any), unix.AF_BRIDGE} {
			list, err := h.NeighList(l.Attrs().Index, family)
			if err != nil {
				s.t.Fatal(err)
			}
			for _, n := range list {
				if !n.IP.IsMulticast() {
					out = append(out, fmt.Sprintf("neighbour %d %s %s", family, n.IP, n.HardwareAddr))
				}
			}
		}
	}
	if table, err := conn.ListTableOfFamily(guardPeersTable, f.table); err == nil {
		set, err := conn.GetSetByName(table, "peers")
		if err != nil {
			s.t.Fatal(err)
		}
		elements, err := conn.GetSetElements(set)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, e := range elements {
			out = append(out, fmt.Sprintf("guard %s", net.IP(e.Key)))
		}
	}
	return out
}

// expect asks by TCP and UDP.
func expect(t *testing.T, what, from string, to netip.AddrPort, want string) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		if got := ask(from, network, to); got != want {
			t.Errorf("%s by %s: %q, want %q", what, network, got, want)
		}
	}
}
