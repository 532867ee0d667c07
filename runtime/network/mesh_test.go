package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestTunnel(t *testing.T) { everyFamily(t, testTunnel) }

func testTunnel(t *testing.T, ranges Ranges) {
	s := newSitesOf(t, ranges, 0, 1, 0)
	server, serverIPs := s.machine("server", 1, 5), s.at(1, 5)
	nodes := slices.Clone(s.peers)
	for _, ip := range serverIPs {
		s.peers = append(s.peers, Peer{NodeIP: ip})
	}
	s.sync()
	toPods := NewMesh(MeshConfig{Pods: ranges.Pods, Services: ranges.Services, NetNS: server, NodeIPs: serverIPs, Tunnel: TunnelAuto, Server: true})
	if _, err := toPods.Sync(nodes); err != nil {
		t.Fatal(err)
	}
	ns := map[int]string{}
	ips := map[int][]netip.Addr{}
	for n := 1; n <= 3; n++ {
		ns[n], ips[n] = s.podOf(n, fmt.Sprint("p", n))
		for _, ip := range s.nodes[n-1].IPs {
			s.serve(s.nodes[n-1].NetNS, netip.AddrPortFrom(ip, 10250), fmt.Sprint("n", n))
		}
	}
	for _, ip := range serverIPs {
		s.serve(server, netip.AddrPortFrom(ip, 6443), "api")
	}
	everything := func(t *testing.T) {
		t.Helper()
		for i := range ranges.Pods {
			for from := 1; from <= 3; from++ {
				own := s.nodes[from-1].IPs[i]
				for to := 1; to <= 3; to++ {
					if from == to {
						continue
					}
					what := fmt.Sprintf("%d to %d, ", from, to)
					pod, node := netip.AddrPortFrom(ips[to][i], 8080), netip.AddrPortFrom(s.nodes[to-1].IPs[i], 10250)
					expect(t, what+"pod to pod", ns[from], pod, fmt.Sprintf("p%d %s", to, ips[from][i]))
					expect(t, what+"node to pod", s.nodes[from-1].NetNS, pod, fmt.Sprintf("p%d %s", to, own))
					expect(t, what+"pod to node", ns[from], node, fmt.Sprintf("n%d %s", to, ips[from][i]))
					expect(t, what+"node to node", s.nodes[from-1].NetNS, node, fmt.Sprintf("n%d %s", to, own))
				}
				expect(t, "server to pod", server, netip.AddrPortFrom(ips[from][i], 8080), fmt.Sprintf("p%d %s", from, serverIPs[i]))
				expect(t, "pod to server", ns[from], netip.AddrPortFrom(serverIPs[i], 6443), fmt.Sprintf("api %s", ips[from][i]))
			}
		}
	}
	everything(t)
	// Where a link is shared there is no tunnel.
	via := func(to netip.Addr) string {
		r, err := s.handle(s.nodes[0].NetNS).RouteGet(net.IP(to.AsSlice()))
		if err != nil || len(r) == 0 {
			t.Fatal(r, err)
		}
		l, err := s.handle(s.nodes[0].NetNS).LinkByIndex(r[0].LinkIndex)
		if err != nil {
			t.Fatal(err)
		}
		return l.Attrs().Name
	}
	for i, ip := range ips[2] {
		tunnel := familyOf(ip).vxlanLink()
		if via(ips[3][i]) != uplinkName || via(ip) != tunnel {
			t.Error("the tunnel is not where it has to be:\n" + s.state(s.nodes[0].NetNS))
		}
		if l := s.link(s.nodes[0].NetNS, tunnel).(*netlink.Vxlan); l.Learning {
			t.Error("the tunnel learns")
		}
	}

	t.Run("services lead through it", func(t *testing.T) {
		p, err := NewProxy(s.nodes[0].NetNS, ranges.Services)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		var svcs []Service
		for i, services := range ranges.Services {
			ep := []netip.AddrPort{netip.AddrPortFrom(ips[2][i], 8080)}
			svcs = append(svcs, both(Service{IP: nth(services, 77), Port: 80, Endpoints: ep})...)
			svcs = append(svcs, both(Service{IP: anyNodeAddress(services.Addr().Is6()), Port: 30080, Endpoints: ep, Masquerade: true})...)
		}
		if err := p.Apply(State{Services: svcs}); err != nil {
			t.Fatal(err)
		}
		for i, services := range ranges.Services {
			vip, node, own := netip.AddrPortFrom(nth(services, 77), 80), netip.AddrPortFrom(s.nodes[0].IPs[i], 30080), s.nodes[0].IPs[i]
			expect(t, "pod to service", ns[1], vip, fmt.Sprintf("p2 %s", ips[1][i]))
			expect(t, "node to service", s.nodes[0].NetNS, vip, fmt.Sprintf("p2 %s", own))
			expect(t, "stranger to node port", s.router, node, fmt.Sprintf("p2 %s", own))
			expect(t, "pod elsewhere to node port", ns[2], node, fmt.Sprintf("p2 %s", own))
		}
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
		for _, ip := range s.nodes[0].IPs {
			if err := h.LinkDel(s.link(s.nodes[0].NetNS, familyOf(ip).vxlanLink())); err != nil {
				t.Fatal(err)
			}
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
		for _, ip := range s.nodes[1].IPs {
			if !strings.Contains(s.state(s.nodes[0].NetNS), "guard "+ip.String()) {
				t.Error("nobody guards:\n" + s.state(s.nodes[0].NetNS))
			}
		}
		everything(t)
	})
	t.Run("a peer that goes leaves nothing", func(t *testing.T) {
		all := s.peers
		s.peers = only(all, func(p Peer) bool { return p.Name != "node-2" })
		s.sync()
		state := s.state(s.nodes[0].NetNS)
		for i, ip := range s.nodes[1].IPs {
			if strings.Contains(state, ip.String()) || strings.Contains(state, vxlanMAC(ip).String()) || strings.Contains(state, podCIDRs(2, ranges)[i].String()) {
				t.Error(state)
			}
			if got := ask(ns[1], "tcp", netip.AddrPortFrom(ips[2][i], 8080)); !strings.HasPrefix(got, "error") {
				t.Errorf("reached: %q", got)
			}
		}
		s.peers = all
		s.sync()
		everything(t)
	})
	t.Run("always and never", func(t *testing.T) {
		for _, tunnel := range []Tunnel{TunnelAlways, TunnelNever, TunnelAuto} {
			for i := range s.meshes {
				cfg := s.config(i + 1)
				cfg.Tunnel = tunnel
				s.meshes[i] = NewMesh(cfg)
			}
			s.sync()
			for i, ip := range ips[3] {
				expect(t, string(tunnel)+", same link", ns[1], netip.AddrPortFrom(ip, 8080), fmt.Sprintf("p3 %s", ips[1][i]))
				link := familyOf(ip).vxlanLink()
				_, err := s.handle(s.nodes[0].NetNS).LinkByName(link)
				if (err == nil) == (tunnel == TunnelNever) {
					t.Errorf("%s: %v", tunnel, err)
				}
				if tunnel == TunnelAlways && via(ip) != link {
					t.Error("not by the tunnel:\n" + s.state(s.nodes[0].NetNS))
				}
				if tunnel == TunnelNever && strings.Contains(s.state(s.nodes[0].NetNS), podCIDRs(2, ranges)[i].String()) {
					t.Error("a route that leads nowhere:\n" + s.state(s.nodes[0].NetNS))
				}
			}
		}
		everything(t)
	})
	t.Run("it is in nobody's way, and others' routes still are", func(t *testing.T) {
		if err := CheckOverlap(s.nodes[0].NetNS, ranges); err != nil {
			t.Error(err)
		}
		foreign := &netlink.Route{Dst: ipNet(podCIDRs(77, ranges)[0]), LinkIndex: s.link(s.nodes[0].NetNS, uplinkName).Attrs().Index}
		h := s.handle(s.nodes[0].NetNS)
		if err := h.RouteAdd(foreign); err != nil {
			t.Fatal(err)
		}
		if err := CheckOverlap(s.nodes[0].NetNS, ranges); err == nil {
			t.Error("a foreign route to pods is not noticed")
		}
		if err := h.RouteDel(foreign); err != nil {
			t.Error(err)
		}
	})
	t.Run("leaving takes all of it away", func(t *testing.T) {
		for _, n := range []string{s.nodes[0].NetNS, server} {
			for range 2 {
				if err := Leave(n, ranges); err != nil {
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
	m := NewMesh(MeshConfig{Pods: s.ranges.Pods, Services: s.ranges.Services, NetNS: s.nodes[0].NetNS, NodeIPs: s.nodes[0].IPs, Tunnel: TunnelNever, Server: true})
	if _, err := m.Sync(s.peers); err != nil {
		t.Fatal(err)
	}
	if after := s.state(s.nodes[0].NetNS); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// Strangers are not heard, and peers with their own addresses alone.
func TestTunnelStrangers(t *testing.T) {
	everyFamily(t, func(t *testing.T, ranges Ranges) {
		s := newSitesOf(t, ranges, 0, 1)
		s.sync()
		podNS, pods := s.podOf(1, "a")
		for i, pod := range pods {
			sink, err := ListenPacketIn(podNS, "udp", netip.AddrPortFrom(pod, 9).String())
			if err != nil {
				t.Fatal(err)
			}
			defer sink.Close()
			stranger, peersPod := netip.MustParseAddr("203.0.113.5"), nth(podCIDRs(2, ranges)[i], 2)
			if pod.Is6() {
				stranger = netip.MustParseAddr("2001:db8:77::5")
			}
			end := s.nodes[0].IPs[i]
			expect(t, "the tunnel", s.nodes[1].NetNS, netip.AddrPortFrom(pod, 8080), "a "+s.nodes[1].IPs[i].String())
			send := func(ns string, source netip.Addr, text string) {
				t.Helper()
				c, err := DialIn(ns)(t.Context(), "udp", netip.AddrPortFrom(end, vxlanPort).String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if _, err := c.Write(inVXLANPacket(source, pod, vxlanMAC(end), text)); err != nil {
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
				t.Errorf("the pod heard %q at %s, %v", got, pod, err)
			}
		}
	})
}

// inVXLANPacket is what comes in UDP: VXLAN, Ethernet, IP and UDP headers.
func inVXLANPacket(source, to netip.Addr, mac net.HardwareAddr, text string) []byte {
	length := byte(8 + len(text))
	udp := append([]byte{0, 99, 0, 9, 0, length, 0, 0}, text...)
	pseudo := slices.Concat(source.AsSlice(), to.AsSlice(), []byte{0, unix.IPPROTO_UDP, 0, length}, udp)
	if len(pseudo)%2 != 0 {
		pseudo = append(pseudo, 0)
	}
	binary.BigEndian.PutUint16(udp[6:], checksum(pseudo))
	ip, kind := slices.Concat([]byte{0x45, 0, 0, 20 + length, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}, source.AsSlice(), to.AsSlice()), []byte{8, 0}
	if to.Is6() {
		ip, kind = slices.Concat([]byte{0x60, 0, 0, 0, 0, length, unix.IPPROTO_UDP, 64}, source.AsSlice(), to.AsSlice()), []byte{0x86, 0xdd}
	} else {
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	}
	return slices.Concat([]byte{0x08, 0, 0, 0, 0, 0, vxlanID, 0}, mac, []byte{2, 0, 0, 0, 0, 1}, kind, ip, udp)
}

// A node comes back with other addresses, first on its own link, then on its peer's.
func TestNodeMoves(t *testing.T) { everyFamily(t, testNodeMoves) }

func testNodeMoves(t *testing.T, ranges Ranges) {
	s := newSitesOf(t, ranges, 0, 1)
	s.sync()
	ns1, ips1 := s.podOf(1, "a")
	ns2, ips2 := s.podOf(2, "b")
	check := func() {
		t.Helper()
		for i := range ranges.Pods {
			one, two := netip.AddrPortFrom(ips1[i], 8080), netip.AddrPortFrom(ips2[i], 8080)
			expect(t, "to the one that moved", ns1, two, fmt.Sprintf("b %s", one.Addr()))
			expect(t, "from it", ns2, one, fmt.Sprintf("a %s", two.Addr()))
			expect(t, "from the node", s.nodes[1].NetNS, one, fmt.Sprintf("a %s", s.nodes[1].IPs[i]))
			expect(t, "from the node to its own pod", s.nodes[1].NetNS, two, fmt.Sprintf("b %s", s.nodes[1].IPs[i]))
			expect(t, "from the other node", s.nodes[0].NetNS, two, fmt.Sprintf("b %s", s.nodes[0].IPs[i]))
		}
	}
	check()
	for _, to := range []struct{ site, n int }{{1, 77}, {0, 78}, {1, 12}} {
		old := s.nodes[1].IPs
		s.plug("node-2", to.site)
		s.address(s.nodes[1].NetNS, to.site, to.n)
		s.nodes[1].IPs = s.at(to.site, to.n)
		// Its worker has started anew.
		if err := s.pods[1].Close(); err != nil {
			t.Fatal(err)
		}
		cfg := s.pods[1].cfg
		cfg.NodeIPs = s.nodes[1].IPs
		var err error
		if s.pods[1], err = NewPodNetwork(cfg); err != nil {
			t.Fatal(err)
		}
		s.meshes[1] = NewMesh(s.config(2))
		s.sync()
		for _, cidr := range podCIDRs(2, ranges) {
			if state := s.state(s.nodes[1].NetNS); strings.Contains(state, cidr.String()+" via") || !strings.Contains(state, "rule from "+cidr.String()) && to.site == 1 {
				t.Errorf("before the API knows, the node takes itself for another:\n%s", state)
			}
		}
		s.named("node-2", func(p *Peer) { p.NodeIP = Same(p.NodeIP, s.nodes[1].IPs) })
		s.sync()
		check()
		for _, n := range s.nodes {
			addrs, err := s.handle(n.NetNS).AddrList(nil, netlink.FAMILY_ALL)
			if err != nil {
				t.Fatal(err)
			}
			for _, old := range old {
				if state := s.state(n.NetNS); strings.Contains(state, old.String()+" ") || strings.Contains(state, vxlanMAC(old).String()) {
					t.Errorf("of %s is left:\n%s", old, state)
				}
				for _, a := range addrs {
					if addrOf(a.IP) == old {
						t.Errorf("%s is still an address of %s", old, n.NetNS)
					}
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
