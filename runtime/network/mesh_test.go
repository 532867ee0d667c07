package network

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

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
		if err := upWithAddr(h, s.link(s.router, attrs.Name), netip.PrefixFrom(siteIP(site, 1), cidr.Bits())); err != nil {
			t.Fatal(err)
		}
	}
	s.sysctl(s.router, "net.ipv4.ip_forward", "1")
	s.sysctl(s.router, "net.ipv4.conf.all.rp_filter", "1")
	for i, site := range at {
		n := i + 1
		node := Node{NetNS: s.machine(fmt.Sprintf("node-%d", n), site, 10+n), IP: siteIP(site, 10+n)}
		pods, err := NewPodNetwork(PodConfig{Dir: c.podDir(n), NetNS: node.NetNS, PodCIDR: podCIDR(n), NodeIP: node.IP})
		if err != nil {
			t.Fatal(err)
		}
		c.nodes, c.pods = append(c.nodes, node), append(c.pods, pods)
		s.peers = append(s.peers, Peer{Name: fmt.Sprintf("node-%d", n), NodeIP: node.IP, PodCIDR: podCIDR(n)})
		s.meshes = append(s.meshes, NewMesh(MeshConfig{NetNS: node.NetNS, Node: fmt.Sprintf("node-%d", n), NodeIP: node.IP, Tunnel: TunnelAuto}))
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
	if err := upWithAddr(h, uplink, netip.PrefixFrom(siteIP(site, n), siteCIDRs[site].Bits())); err != nil {
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
	if table, err := conn.ListTable(guardTable); err == nil {
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

func TestTunnel(t *testing.T) {
	s := newSites(t, 0, 1, 0)
	server := s.machine("server", 1, 5)
	s.peers = append(s.peers, Peer{NodeIP: siteIP(1, 5)})
	s.sync()
	toPods := NewMesh(MeshConfig{NetNS: server, NodeIP: siteIP(1, 5), Tunnel: TunnelAuto, Server: true})
	if _, err := toPods.Sync(s.peers[:3]); err != nil {
		t.Fatal(err)
	}
	ns := map[int]string{}
	ip := map[int]netip.Addr{}
	for n := 1; n <= 3; n++ {
		ns[n], ip[n] = s.pod(n, fmt.Sprint("p", n))
		s.serve(s.nodes[n-1].NetNS, netip.AddrPortFrom(s.nodes[n-1].IP, 10250), fmt.Sprint("n", n))
	}
	s.serve(server, netip.AddrPortFrom(siteIP(1, 5), 6443), "api")
	everything := func(t *testing.T) {
		t.Helper()
		for from := 1; from <= 3; from++ {
			for to := 1; to <= 3; to++ {
				if from == to {
					continue
				}
				what := fmt.Sprintf("%d to %d, ", from, to)
				pod, node := netip.AddrPortFrom(ip[to], 8080), netip.AddrPortFrom(s.nodes[to-1].IP, 10250)
				expect(t, what+"pod to pod", ns[from], pod, fmt.Sprintf("p%d %s", to, ip[from]))
				expect(t, what+"node to pod", s.nodes[from-1].NetNS, pod, fmt.Sprintf("p%d %s", to, s.nodes[from-1].IP))
				expect(t, what+"pod to node", ns[from], node, fmt.Sprintf("n%d %s", to, ip[from]))
				expect(t, what+"node to node", s.nodes[from-1].NetNS, node, fmt.Sprintf("n%d %s", to, s.nodes[from-1].IP))
			}
			expect(t, "server to pod", server, netip.AddrPortFrom(ip[from], 8080), fmt.Sprintf("p%d %s", from, siteIP(1, 5)))
			expect(t, "pod to server", ns[from], netip.AddrPortFrom(siteIP(1, 5), 6443), fmt.Sprintf("api %s", ip[from]))
		}
	}
	everything(t)
	// Where a link is shared there is no tunnel.
	via := func(from, to int) int {
		r, err := s.handle(s.nodes[from-1].NetNS).RouteGet(net.IP(ip[to].AsSlice()))
		if err != nil || len(r) == 0 {
			t.Fatal(r, err)
		}
		return r[0].LinkIndex
	}
	if via(1, 3) != s.link(s.nodes[0].NetNS, uplinkName).Attrs().Index || via(1, 2) != s.link(s.nodes[0].NetNS, vxlanLink).Attrs().Index {
		t.Error("the tunnel is not where it has to be:\n" + s.state(s.nodes[0].NetNS))
	}
	if l := s.link(s.nodes[0].NetNS, vxlanLink).(*netlink.Vxlan); l.Learning {
		t.Error("the tunnel learns")
	}

	t.Run("services lead through it", func(t *testing.T) {
		p, err := NewProxy(s.nodes[0].NetNS)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		vip := netip.MustParseAddr("10.43.0.77")
		var svcs []Service
		for _, proto := range []Protocol{TCP, UDP} {
			ep := []netip.AddrPort{netip.AddrPortFrom(ip[2], 8080)}
			svcs = append(svcs, Service{IP: vip, Port: 80, Proto: proto, Endpoints: ep},
				Service{IP: AnyNodeAddress, Port: 30080, Proto: proto, Endpoints: ep, Masquerade: true})
		}
		if err := p.Apply(State{Services: svcs}); err != nil {
			t.Fatal(err)
		}
		expect(t, "pod to service", ns[1], netip.AddrPortFrom(vip, 80), fmt.Sprintf("p2 %s", ip[1]))
		expect(t, "node to service", s.nodes[0].NetNS, netip.AddrPortFrom(vip, 80), fmt.Sprintf("p2 %s", s.nodes[0].IP))
		expect(t, "stranger to node port", s.router, netip.AddrPortFrom(s.nodes[0].IP, 30080), fmt.Sprintf("p2 %s", s.nodes[0].IP))
		expect(t, "pod elsewhere to node port", ns[2], netip.AddrPortFrom(s.nodes[0].IP, 30080), fmt.Sprintf("p2 %s", s.nodes[0].IP))
		if err := p.Remove(); err != nil {
			t.Error(err)
		}
	})
	t.Run("again changes nothing, nor does another process", func(t *testing.T) {
		before := s.state(s.nodes[0].NetNS)
		s.sync()
		s.meshes[0] = NewMesh(s.meshes[0].cfg)
		s.sync()
		if after := s.state(s.nodes[0].NetNS); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	})
	t.Run("what somebody takes away comes back", func(t *testing.T) {
		h := s.handle(s.nodes[0].NetNS)
		if err := h.LinkDel(s.link(s.nodes[0].NetNS, vxlanLink)); err != nil {
			t.Fatal(err)
		}
		s.sync()
		conn, err := nftIn(s.nodes[0].NetNS)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.CloseLasting()
		conn.FlushRuleset()
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
		s.sync()
		if !strings.Contains(s.state(s.nodes[0].NetNS), "guard "+s.nodes[1].IP.String()) {
			t.Error("nobody guards:\n" + s.state(s.nodes[0].NetNS))
		}
		everything(t)
	})
	t.Run("a peer that goes leaves nothing", func(t *testing.T) {
		all := s.peers
		s.peers = slices.Delete(slices.Clone(all), 1, 2)
		s.sync()
		if state := s.state(s.nodes[0].NetNS); strings.Contains(state, s.nodes[1].IP.String()) || strings.Contains(state, podCIDR(2).String()) {
			t.Error(state)
		}
		if got := ask(ns[1], "tcp", netip.AddrPortFrom(ip[2], 8080)); !strings.HasPrefix(got, "error") {
			t.Errorf("reached: %q", got)
		}
		s.peers = all
		s.sync()
		everything(t)
	})
	t.Run("always and never", func(t *testing.T) {
		for _, tunnel := range []Tunnel{TunnelAlways, TunnelNever, TunnelAuto} {
			for i := range s.meshes {
				s.meshes[i] = NewMesh(MeshConfig{NetNS: s.nodes[i].NetNS, Node: s.peers[i].Name, NodeIP: s.nodes[i].IP, Tunnel: tunnel})
			}
			s.sync()
			expect(t, string(tunnel)+", same link", ns[1], netip.AddrPortFrom(ip[3], 8080), fmt.Sprintf("p3 %s", ip[1]))
			_, err := s.handle(s.nodes[0].NetNS).LinkByName(vxlanLink)
			if (err == nil) == (tunnel == TunnelNever) {
				t.Errorf("%s: %v", tunnel, err)
			}
			if tunnel == TunnelAlways && via(1, 3) != s.link(s.nodes[0].NetNS, vxlanLink).Attrs().Index {
				t.Error("not by the tunnel:\n" + s.state(s.nodes[0].NetNS))
			}
			if tunnel == TunnelNever && strings.Contains(s.state(s.nodes[0].NetNS), podCIDR(2).String()) {
				t.Error("a route that leads nowhere:\n" + s.state(s.nodes[0].NetNS))
			}
		}
		everything(t)
	})
	t.Run("it is in nobody's way, and others' routes still are", func(t *testing.T) {
		if err := CheckOverlap(s.nodes[0].NetNS); err != nil {
			t.Error(err)
		}
		foreign := &netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.42.77.0/24")), LinkIndex: s.link(s.nodes[0].NetNS, uplinkName).Attrs().Index}
		h := s.handle(s.nodes[0].NetNS)
		if err := h.RouteAdd(foreign); err != nil {
			t.Fatal(err)
		}
		if err := CheckOverlap(s.nodes[0].NetNS); err == nil {
			t.Error("a foreign route to pods is not noticed")
		}
		if err := h.RouteDel(foreign); err != nil {
			t.Error(err)
		}
	})
	t.Run("leaving takes all of it away", func(t *testing.T) {
		for _, n := range []string{s.nodes[0].NetNS, server} {
			for range 2 {
				if err := Leave(n); err != nil {
					t.Fatal(err)
				}
			}
			if state := s.state(n); state != "" {
				t.Error(state)
			}
		}
	})
}

// A machine that is server and node has its ways from its worker.
func TestServerThatIsNode(t *testing.T) {
	s := newSites(t, 0, 1)
	s.sync()
	before := s.state(s.nodes[0].NetNS)
	m := NewMesh(MeshConfig{NetNS: s.nodes[0].NetNS, NodeIP: s.nodes[0].IP, Tunnel: TunnelNever, Server: true})
	if _, err := m.Sync(s.peers); err != nil {
		t.Fatal(err)
	}
	if after := s.state(s.nodes[0].NetNS); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// Strangers are not heard, and peers with their own addresses alone.
func TestTunnelStrangers(t *testing.T) {
	s := newSites(t, 0, 1)
	s.sync()
	podNS, pod := s.pod(1, "a")
	other, _ := s.pods[1].cfg.PodCIDR, 0
	sink, err := ListenPacketIn(podNS, "udp4", netip.AddrPortFrom(pod, 9).String())
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	stranger, peersPod := netip.MustParseAddr("203.0.113.5"), other.Addr().Next().Next()
	send := func(ns string, source netip.Addr, text string) {
		t.Helper()
		c, err := DialIn(ns)(t.Context(), "udp4", netip.AddrPortFrom(s.nodes[0].IP, vxlanPort).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(inVXLANPacket(source, pod, vxlanMAC(s.nodes[0].IP), text)); err != nil {
			t.Fatal(err)
		}
	}
	send(s.router, peersPod, "from no peer")
	send(s.nodes[1].NetNS, stranger, "for a stranger")
	send(s.nodes[1].NetNS, peersPod, "from a peer's pod")
	buf := make([]byte, 100)
	_ = sink.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, _, err := sink.ReadFrom(buf)
	if got := string(buf[:n]); err != nil || got != "from a peer's pod" {
		t.Errorf("the pod heard %q, %v", got, err)
	}
}

// inVXLANPacket is what comes in UDP: VXLAN, Ethernet, IPv4 and UDP headers.
func inVXLANPacket(source, to netip.Addr, mac net.HardwareAddr, text string) []byte {
	b := []byte{0x08, 0, 0, 0, 0, 0, vxlanID, 0}
	b = append(b, mac...)
	b = append(b, 2, 0, 0, 0, 0, 1, 8, 0)
	ip := []byte{0x45, 0, 0, byte(28 + len(text)), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	ip = append(append(ip, source.AsSlice()...), to.AsSlice()...)
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	b = append(b, ip...)
	b = append(b, 0, 99, 0, 9, 0, byte(8+len(text)), 0, 0)
	return append(b, text...)
}

// transfer sends size bytes from one namespace to an address in another, by TCP, and
// says what became of them.
func transfer(t *testing.T, from, to string, at, by netip.AddrPort, size int) {
	t.Helper()
	l, err := ListenIn(to, "tcp4", at.String())
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
	c, err := DialIn(from)(ctx, "tcp4", by.String())
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
	l, err := ListenIn(to, "tcp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := DialIn(from)(t.Context(), "tcp4", at.String())
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
	l, err := ListenPacketIn(to, "udp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := DialIn(from)(t.Context(), "udp4", by.String())
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
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
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
func TestTunnelMTU(t *testing.T) {
	s := newSites(t, 0, 1)
	early, earlyIP := s.pod(1, "early") // its link is there before the peers are known
	s.sync()
	p, err := NewProxy(s.nodes[0].NetNS)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	late, lateIP := s.pod(2, "late")
	vip := netip.MustParseAddrPort("10.43.0.78:9000")
	there, here := netip.AddrPortFrom(lateIP, 9000), netip.AddrPortFrom(earlyIP, 9000)
	var svcs []Service
	for _, proto := range []Protocol{TCP, UDP} {
		svcs = append(svcs, Service{IP: vip.Addr(), Port: vip.Port(), Proto: proto, Endpoints: []netip.AddrPort{there}})
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
	for _, uplink := range []int{1500, 1400, 9000, 1500} {
		finish := begin(t, early, late, there)
		uplinks(uplink)
		finish(1 << 20)
		mtu := uplink - 50
		for _, ns := range []string{early, late} {
			if got := s.link(ns, podLink).Attrs().MTU; got != mtu {
				t.Errorf("uplink %d: a pod's link has %d, want %d", uplink, got, mtu)
			}
		}
		transfer(t, early, late, there, there, 4<<20)
		transfer(t, early, late, there, vip, 4<<20)
		transfer(t, late, early, here, here, 4<<20)
		transfer(t, s.nodes[0].NetNS, late, there, there, 4<<20)
		transfer(t, s.nodes[1].NetNS, early, here, here, 4<<20)
		for _, by := range []netip.AddrPort{there, vip} {
			for _, size := range []int{1300, 1400, 1422, 1423, 1450, 1472, 1473, 1500, 1600, 8000} {
				if err := datagram(t, early, late, there, by, size, true); err != nil {
					t.Errorf("uplink %d: %d bytes to %s: %v", uplink, size, by, err)
				}
			}
			if err := datagram(t, early, late, there, by, mtu-28, false); err != nil {
				t.Errorf("uplink %d: the largest in one piece to %s: %v", uplink, by, err)
			}
			if err := datagram(t, early, late, there, by, mtu-27, false); !errors.Is(err, unix.EMSGSIZE) {
				t.Errorf("uplink %d: one that does not fit to %s: %v", uplink, by, err)
			}
		}
		if err := datagram(t, s.nodes[0].NetNS, late, there, there, mtu-27, false); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("uplink %d: one that does not fit, of the node's: %v", uplink, err)
		}
	}
}

// A node comes back with another address, first on its own link, then on its peer's.
func TestNodeMoves(t *testing.T) {
	s := newSites(t, 0, 1)
	s.sync()
	ns1, ip1 := s.pod(1, "a")
	ns2, ip2 := s.pod(2, "b")
	check := func() {
		t.Helper()
		expect(t, "to the one that moved", ns1, netip.AddrPortFrom(ip2, 8080), fmt.Sprintf("b %s", ip1))
		expect(t, "from it", ns2, netip.AddrPortFrom(ip1, 8080), fmt.Sprintf("a %s", ip2))
		expect(t, "from the node", s.nodes[1].NetNS, netip.AddrPortFrom(ip1, 8080), fmt.Sprintf("a %s", s.nodes[1].IP))
		expect(t, "from the node to its own pod", s.nodes[1].NetNS, netip.AddrPortFrom(ip2, 8080), fmt.Sprintf("b %s", s.nodes[1].IP))
		expect(t, "from the other node", s.nodes[0].NetNS, netip.AddrPortFrom(ip2, 8080), fmt.Sprintf("b %s", s.nodes[0].IP))
	}
	check()
	for _, to := range []struct{ site, n int }{{1, 77}, {0, 78}, {1, 12}} {
		old := s.nodes[1].IP
		s.plug("node-2", to.site)
		s.address(s.nodes[1].NetNS, to.site, to.n)
		s.nodes[1].IP = siteIP(to.site, to.n)
		// Its worker has started anew.
		if err := s.pods[1].Close(); err != nil {
			t.Fatal(err)
		}
		cfg := s.pods[1].cfg
		cfg.NodeIP = s.nodes[1].IP
		var err error
		if s.pods[1], err = NewPodNetwork(cfg); err != nil {
			t.Fatal(err)
		}
		s.meshes[1] = NewMesh(MeshConfig{NetNS: s.nodes[1].NetNS, Node: "node-2", NodeIP: s.nodes[1].IP, Tunnel: TunnelAuto})
		s.sync()
		if state := s.state(s.nodes[1].NetNS); strings.Contains(state, podCIDR(2).String()+" via") || !strings.Contains(state, "rule from "+podCIDR(2).String()) && to.site == 1 {
			t.Errorf("before the API knows, the node takes itself for another:\n%s", state)
		}
		s.peers[1].NodeIP = s.nodes[1].IP
		s.sync()
		check()
		for _, n := range s.nodes {
			if state := s.state(n.NetNS); strings.Contains(state, old.String()+" ") || strings.Contains(state, vxlanMAC(old).String()) {
				t.Errorf("of %s is left:\n%s", old, state)
			}
			addrs, err := s.handle(n.NetNS).AddrList(nil, netlink.FAMILY_V4)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range addrs {
				if a.IP.Equal(old.AsSlice()) {
					t.Errorf("%s is still an address of %s", old, n.NetNS)
				}
			}
		}
	}
}

// The way is lost and comes back: between the nodes, and at a node's own link, where
// the kernel forgets routes.
func TestPartition(t *testing.T) {
	s := newSites(t, 0, 1, 0)
	s.sync()
	ns1, ip1 := s.pod(1, "a")
	_, ip2 := s.pod(2, "b")
	_, ip3 := s.pod(3, "c")
	changed := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Changes(ctx, s.nodes[0].NetNS, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	defer func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	answered := func() {
		t.Helper()
		deadline := time.Now().Add(10 * time.Second)
		for _, to := range []struct {
			ip   netip.Addr
			want string
		}{{ip2, "b " + ip1.String()}, {ip3, "c " + ip1.String()}} {
			got := ""
			for got != to.want && time.Now().Before(deadline) {
				got = ask(ns1, "tcp", netip.AddrPortFrom(to.ip, 8080))
			}
			if got != to.want {
				t.Errorf("%q, want %q\n%s", got, to.want, s.state(s.nodes[0].NetNS))
			}
		}
	}
	answered()
	// A Sync that finds everything in order is not told as a change.
	s.sync()
	select {
	case <-changed:
	case <-time.After(300 * time.Millisecond):
	}
	s.sync()
	select {
	case <-changed:
		t.Error("what changes nothing is told as a change")
	case <-time.After(300 * time.Millisecond):
	}
	h := s.handle(s.router)
	far := s.link(s.router, "node-2")
	if err := h.LinkSetDown(far); err != nil {
		t.Fatal(err)
	}
	if got := ask(ns1, "udp", netip.AddrPortFrom(ip2, 8080)); !strings.HasPrefix(got, "error") {
		t.Errorf("across a cut: %q", got)
	}
	if err := h.LinkSetUp(far); err != nil {
		t.Fatal(err)
	}
	answered()

	mine := s.handle(s.nodes[0].NetNS)
	uplink := s.link(s.nodes[0].NetNS, uplinkName)
	for _, change := range []func() error{
		func() error { return mine.LinkSetDown(uplink) },
		func() error { return mine.LinkSetUp(uplink) },
		func() error {
			return mine.RouteReplace(&netlink.Route{Gw: net.IP(siteIP(0, 1).AsSlice())})
		},
	} {
		select { // what is left of the change before
		case <-changed:
		default:
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Fatal("the change was not told")
		}
		s.sync()
	}
	answered()
	if left, _ := filepath.Glob(filepath.Join(s.podDir(1), "*"+pinExt)); len(left) != 1 {
		t.Errorf("the pod's namespace: %v", left)
	}
}
