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

func TestTunnel(t *testing.T) {
	s := newSites(t, 0, 1, 0)
	server := s.machine("server", 1, 5)
	s.peers = append(s.peers, Peer{NodeIP: siteIP(1, 5)})
	s.sync()
	toPods := NewMesh(MeshConfig{Pods: rangesBoth.Pods, Services: rangesBoth.Services, NetNS: server, NodeIP: siteIP(1, 5), Tunnel: TunnelAuto, Server: true})
	if _, err := toPods.Sync(s.peers[:3]); err != nil {
		t.Fatal(err)
	}
	ns := map[int]string{}
	ip := map[int]netip.Addr{}
	for n := 1; n <= 3; n++ {
		ns[n], ip[n] = s.pod(n, fmt.Sprint("p", n))
		s.serve(s.nodes[n-1].NetNS, netip.AddrPortFrom(s.nodes[n-1].IPs[0], 10250), fmt.Sprint("n", n))
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
				pod, node := netip.AddrPortFrom(ip[to], 8080), netip.AddrPortFrom(s.nodes[to-1].IPs[0], 10250)
				expect(t, what+"pod to pod", ns[from], pod, fmt.Sprintf("p%d %s", to, ip[from]))
				expect(t, what+"node to pod", s.nodes[from-1].NetNS, pod, fmt.Sprintf("p%d %s", to, s.nodes[from-1].IPs[0]))
				expect(t, what+"pod to node", ns[from], node, fmt.Sprintf("n%d %s", to, ip[from]))
				expect(t, what+"node to node", s.nodes[from-1].NetNS, node, fmt.Sprintf("n%d %s", to, s.nodes[from-1].IPs[0]))
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
		p, err := NewProxy(s.nodes[0].NetNS, rangesIPv4.Services)
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
		expect(t, "node to service", s.nodes[0].NetNS, netip.AddrPortFrom(vip, 80), fmt.Sprintf("p2 %s", s.nodes[0].IPs[0]))
		expect(t, "stranger to node port", s.router, netip.AddrPortFrom(s.nodes[0].IPs[0], 30080), fmt.Sprintf("p2 %s", s.nodes[0].IPs[0]))
		expect(t, "pod elsewhere to node port", ns[2], netip.AddrPortFrom(s.nodes[0].IPs[0], 30080), fmt.Sprintf("p2 %s", s.nodes[0].IPs[0]))
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
		if !strings.Contains(s.state(s.nodes[0].NetNS), "guard "+s.nodes[1].IPs[0].String()) {
			t.Error("nobody guards:\n" + s.state(s.nodes[0].NetNS))
		}
		everything(t)
	})
	t.Run("a peer that goes leaves nothing", func(t *testing.T) {
		all := s.peers
		s.peers = slices.Delete(slices.Clone(all), 1, 2)
		s.sync()
		if state := s.state(s.nodes[0].NetNS); strings.Contains(state, s.nodes[1].IPs[0].String()) || strings.Contains(state, podCIDR(2).String()) {
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
				s.meshes[i] = NewMesh(MeshConfig{Pods: rangesBoth.Pods, Services: rangesBoth.Services, NetNS: s.nodes[i].NetNS, Node: s.peers[i].Name, NodeIP: s.nodes[i].IPs[0], Tunnel: tunnel})
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
		if err := CheckOverlap(s.nodes[0].NetNS, rangesIPv4); err != nil {
			t.Error(err)
		}
		foreign := &netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.42.77.0/24")), LinkIndex: s.link(s.nodes[0].NetNS, uplinkName).Attrs().Index}
		h := s.handle(s.nodes[0].NetNS)
		if err := h.RouteAdd(foreign); err != nil {
			t.Fatal(err)
		}
		if err := CheckOverlap(s.nodes[0].NetNS, rangesIPv4); err == nil {
			t.Error("a foreign route to pods is not noticed")
		}
		if err := h.RouteDel(foreign); err != nil {
			t.Error(err)
		}
	})
	t.Run("leaving takes all of it away", func(t *testing.T) {
		for _, n := range []string{s.nodes[0].NetNS, server} {
			for range 2 {
				if err := Leave(n, rangesIPv4); err != nil {
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
	m := NewMesh(MeshConfig{Pods: rangesBoth.Pods, Services: rangesBoth.Services, NetNS: s.nodes[0].NetNS, NodeIP: s.nodes[0].IPs[0], Tunnel: TunnelNever, Server: true})
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
	other, _ := s.pods[1].cfg.PodCIDRs[0], 0
	sink, err := ListenPacketIn(podNS, "udp4", netip.AddrPortFrom(pod, 9).String())
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	stranger, peersPod := netip.MustParseAddr("203.0.113.5"), other.Addr().Next().Next()
	send := func(ns string, source netip.Addr, text string) {
		t.Helper()
		c, err := DialIn(ns)(t.Context(), "udp4", netip.AddrPortFrom(s.nodes[0].IPs[0], vxlanPort).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(inVXLANPacket(source, pod, vxlanMAC(s.nodes[0].IPs[0]), text)); err != nil {
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
		expect(t, "from the node", s.nodes[1].NetNS, netip.AddrPortFrom(ip1, 8080), fmt.Sprintf("a %s", s.nodes[1].IPs[0]))
		expect(t, "from the node to its own pod", s.nodes[1].NetNS, netip.AddrPortFrom(ip2, 8080), fmt.Sprintf("b %s", s.nodes[1].IPs[0]))
		expect(t, "from the other node", s.nodes[0].NetNS, netip.AddrPortFrom(ip2, 8080), fmt.Sprintf("b %s", s.nodes[0].IPs[0]))
	}
	check()
	for _, to := range []struct{ site, n int }{{1, 77}, {0, 78}, {1, 12}} {
		old := s.nodes[1].IPs[0]
		s.plug("node-2", to.site)
		s.address(s.nodes[1].NetNS, to.site, to.n)
		s.nodes[1].IPs = []netip.Addr{siteIP(to.site, to.n)}
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
		s.meshes[1] = NewMesh(MeshConfig{Pods: rangesBoth.Pods, Services: rangesBoth.Services, NetNS: s.nodes[1].NetNS, Node: "node-2", NodeIP: s.nodes[1].IPs[0], Tunnel: TunnelAuto})
		s.sync()
		if state := s.state(s.nodes[1].NetNS); strings.Contains(state, podCIDR(2).String()+" via") || !strings.Contains(state, "rule from "+podCIDR(2).String()) && to.site == 1 {
			t.Errorf("before the API knows, the node takes itself for another:\n%s", state)
		}
		s.peers[1].NodeIP = s.nodes[1].IPs[0]
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
