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

var siteCIDRs = [2]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.51.100.0/24")}

// siteIP is address n of a site.
func siteIP(site, n int) netip.Addr {
	a := siteCIDRs[site].Addr().As4()
	a[3] = byte(n)
	return netip.AddrFrom4(a)
}

// newSites makes a node for each of at, which says at which site it is; nodes count
// from 1 and have the addresses from .11 on.
func newSites(t testing.TB, at ...int) *sites {
	t.Helper()
	c := &cluster{t: t, id: fmt.Sprintf("t%d-%d", os.Getpid(), count.Add(1)), dir: t.TempDir()}
	t.Cleanup(c.destroy)
	s := &sites{cluster: c, router: NodeNetNS(c.id, "router")}
	if err := createNetNS(s.router); err != nil {
		t.Fatal(err)
	}
	h := s.handle(s.router)
	for site, cidr := range siteCIDRs {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = fmt.Sprintf("site%d", site)
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			t.Fatal(err)
		}
		if err := upWithAddrs(h, s.link(s.router, attrs.Name), netip.PrefixFrom(siteIP(site, 1), cidr.Bits())); err != nil {
			t.Fatal(err)
		}
	}
	s.sysctl(s.router, "net.ipv4.ip_forward", "1")
	s.sysctl(s.router, "net.ipv4.conf.all.rp_filter", "1")
	for i, site := range at {
		n := i + 1
		node := Node{NetNS: s.machine(fmt.Sprintf("node-%d", n), site, 10+n), IPs: []netip.Addr{siteIP(site, 10+n)}}
		pods, err := NewPodNetwork(PodConfig{Dir: c.podDir(n), NetNS: node.NetNS, PodCIDRs: []netip.Prefix{podCIDR(n)}, Services: rangesIPv4.Services, NodeIPs: node.IPs})
		if err != nil {
			t.Fatal(err)
		}
		c.nodes, c.pods = append(c.nodes, node), append(c.pods, pods)
		s.peers = append(s.peers, Peer{Name: fmt.Sprintf("node-%d", n), NodeIP: node.IPs[0], PodCIDR: podCIDR(n)})
		s.meshes = append(s.meshes, NewMesh(MeshConfig{Pods: rangesBoth.Pods, Services: rangesBoth.Services, NetNS: node.NetNS, Node: fmt.Sprintf("node-%d", n), NodeIP: node.IPs[0], Tunnel: TunnelAuto}))
	}
	return s
}

// machine makes a namespace that is at a site with an address, and a default route by
// the router.
func (s *sites) machine(name string, site, n int) string {
	s.t.Helper()
	ns := NodeNetNS(s.id, name)
	if err := createNetNS(ns); err != nil {
		s.t.Fatal(err)
	}
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

// address gives a machine an address of a site, and takes the one it had away.
func (s *sites) address(ns string, site, n int) {
	s.t.Helper()
	h, uplink := s.handle(ns), s.link(ns, uplinkName)
	old, err := h.AddrList(uplink, netlink.FAMILY_V4)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, a := range old {
		if err := h.AddrDel(uplink, &a); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := upWithAddrs(h, uplink, netip.PrefixFrom(siteIP(site, n), siteCIDRs[site].Bits())); err != nil {
		s.t.Fatal(err)
	}
	if err := h.RouteReplace(&netlink.Route{Gw: net.IP(siteIP(site, 1).AsSlice())}); err != nil {
		s.t.Fatal(err)
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
	routes, err := h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		s.t.Fatal(err)
	}
	var out []string
	for _, r := range routes {
		out = append(out, fmt.Sprintf("route %d %s via %s dev %d mtu %d type %d", r.Table, r.Dst, r.Gw, r.LinkIndex, r.MTU, r.Type))
	}
	rules, err := h.RuleList(netlink.FAMILY_V4)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, r := range rules {
		if r.Protocol == routeProtocol {
			out = append(out, fmt.Sprintf("rule from %s table %d", r.Src, r.Table))
		}
	}
	if l, err := h.LinkByName(vxlanLink); err == nil {
		out = append(out, fmt.Sprintf("vxlan %d mtu %d %s", l.Attrs().Index, l.Attrs().MTU, l.Attrs().HardwareAddr))
		for _, family := range []int{netlink.FAMILY_V4, unix.AF_BRIDGE} {
			list, err := h.NeighList(l.Attrs().Index, family)
			if err != nil {
				s.t.Fatal(err)
			}
			for _, n := range list {
				out = append(out, fmt.Sprintf("neighbour %d %s %s", family, n.IP, n.HardwareAddr))
			}
		}
	}
	conn, err := nftIn(ns)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.CloseLasting()
	if table, err := conn.ListTable(guardPeersTable); err == nil {
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
	slices.Sort(out)
	return strings.Join(out, "\n")
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
