package network

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"
)

func TestEnsureWireGuardKey(t *testing.T) {
	dir := t.TempDir()
	first, err := EnsureWireGuardKey(dir)
	if err != nil || first.IsZero() || first.Public().IsZero() {
		t.Fatal(first.Public(), err)
	}
	file := filepath.Join(dir, wireGuardKeyFile)
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	again, err := EnsureWireGuardKey(dir)
	if err != nil || again != first {
		t.Errorf("another one: %v", err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Error(st.Mode(), err)
	}
	if k, err := ParsePublicKey(first.Public().String()); err != nil || k != first.Public() {
		t.Error(k, err)
	}
	for _, bad := range []string{"", "short", PublicKey{}.String()} {
		if _, err := ParsePublicKey(bad); err == nil {
			t.Errorf("%q is a key", bad)
		}
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := EnsureWireGuardKey(dir); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// From any peers to any others: the changes lead there, and touch nobody who stays.
func TestWireGuardChanges(t *testing.T) {
	keys := make([]PublicKey, 4)
	for i := range keys {
		keys[i][0] = byte(i + 1)
	}
	rapid.Check(t, func(t *rapid.T) {
		draw := func(what string) (out []wireGuardPeer) {
			for i, k := range keys {
				if rapid.Bool().Draw(t, what) {
					p := Peer{Key: k, NodeIP: siteIP(0, rapid.IntRange(1, 3).Draw(t, "address")), PodCIDR: podCIDR(i)}
					w := wireGuardPeer{key: k, endpoint: netip.AddrPortFrom(p.NodeIP, wireGuardPort)}
					w.add(p, rapid.Bool().Draw(t, "own address"))
					if rapid.Bool().Draw(t, "IPv6 too") {
						w.add(Peer{Key: k, NodeIP: nth(siteCIDRs6[0], uint16(rapid.IntRange(1, 3).Draw(t, "address"))), PodCIDR: ofFamily(podCIDRs(i, rangesBoth), true)}, true)
					}
					out = append(out, w.sorted())
				}
			}
			return out
		}
		have, want := draw("have"), draw("want")
		device := map[PublicKey]wgtypes.Peer{}
		apply := func(changes []wgtypes.PeerConfig) {
			for _, c := range changes {
				if c.Remove {
					delete(device, PublicKey(c.PublicKey))
					continue
				}
				if !c.ReplaceAllowedIPs {
					t.Fatal("addresses pile up")
				}
				device[PublicKey(c.PublicKey)] = wgtypes.Peer{PublicKey: c.PublicKey, Endpoint: c.Endpoint, AllowedIPs: c.AllowedIPs}
			}
		}
		peers := func() (out []wgtypes.Peer) {
			for _, p := range device {
				out = append(out, p)
			}
			return out
		}
		apply(wireGuardChanges(nil, have))
		changes := wireGuardChanges(peers(), want)
		for _, c := range changes {
			stays := func(list []wireGuardPeer) bool {
				return slices.ContainsFunc(list, func(p wireGuardPeer) bool {
					old, there := device[p.key]
					return p.key == PublicKey(c.PublicKey) && there && samePeer(old, p)
				})
			}
			if stays(want) {
				t.Fatalf("%v stays and is changed", c)
			}
		}
		apply(changes)
		if len(device) != len(want) || len(wireGuardChanges(peers(), want)) > 0 {
			t.Fatalf("%v, want %v", device, want)
		}
	})
}

// sniffer collects what passes a namespace's link.
type sniffer struct {
	fd   int
	seen []byte
}

func newSniffer(t *testing.T, ns string, link int) *sniffer {
	t.Helper()
	s := &sniffer{}
	err := inNetNS(ns, func() (err error) {
		const everything = uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8)
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		return errors.Join(unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: link}))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(s.fd) })
	return s
}

// has says whether text has passed since the last call, and how many bytes have.
func (s *sniffer) has(text string) (bool, int) {
	s.seen = s.seen[:0]
	buf := make([]byte, 1<<16)
	for {
		n, err := unix.Read(s.fd, buf)
		if err != nil {
			return bytes.Contains(s.seen, []byte(text)), len(s.seen)
		}
		s.seen = append(s.seen, buf[:n]...)
	}
}

// Where the kernel has no WireGuard a worker says so.
func TestWireGuardMissing(t *testing.T) {
	s := newSites(t, 0)
	err := CheckWireGuard(s.nodes[0].NetNS)
	if err != nil && !strings.Contains(err.Error(), "the kernel has no WireGuard") {
		t.Error(err)
	}
	if _, err := s.handle(s.nodes[0].NetNS).LinkByName(wireGuardLink); err == nil {
		t.Error("the question leaves a link")
	}
	if err == nil {
		return
	}
	if os.Getenv("GITK8S_TEST_WIREGUARD") != "" {
		t.Fatal("this machine was to have it: ", err)
	}
	t.Run("a Mesh that needs it sends nothing", func(t *testing.T) { everyFamily(t, testSealed) })
}

// keyed is node n's configuration with a key.
func (s *sites) keyed(n int, key PrivateKey) MeshConfig {
	cfg := s.config(n)
	cfg.Key = key
	return cfg
}

func testSealed(t *testing.T, ranges Ranges) {
	s := newSitesOf(t, ranges, 0)
	m := NewMesh(s.keyed(1, testKey(t)))
	ns, pods := s.podOf(1, "a")
	bNS, bs := s.podOf(1, "b")
	h := s.handle(s.router)
	for i, cidr := range podCIDRs(1, ranges) {
		if err := errors.Join(
			h.RouteAdd(&netlink.Route{Dst: ipNet(cidr), Gw: s.nodes[0].IPs[i].AsSlice()}),
			addHostAddress(h, s.link(s.router, "lo"), nth(podCIDRs(99, ranges)[i], 9), ""),
		); err != nil {
			t.Fatal(err)
		}
		expect(t, "before", s.router, netip.AddrPortFrom(pods[i], 8080), "a "+s.at(0, 1)[i].String())
	}
	if err := m.Seal(); err != nil {
		t.Fatal(err)
	}
	for i, pod := range pods {
		b, stranger := bs[i], s.at(0, 1)[i].String()
		// Who has a pod's address is not heard in the clear; neighbours and others are.
		if got := ask(s.router, "udp", netip.AddrPortFrom(pod, 8080)); got != "a "+stranger {
			t.Errorf("one that is no pod: %q", got)
		}
		expect(t, "pods of the node", ns, netip.AddrPortFrom(b, 8080), "b "+pod.String())
		expect(t, "the node", s.nodes[0].NetNS, netip.AddrPortFrom(b, 8080), "b "+s.nodes[0].IPs[i].String())
		sink, err := ListenPacketIn(bNS, "udp", netip.AddrPortFrom(b, 9).String())
		if err != nil {
			t.Fatal(err)
		}
		defer sink.Close()
		for _, from := range []string{nth(podCIDRs(99, ranges)[i], 9).String(), stranger} {
			err := inNetNS(s.router, func() error {
				c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(b, 9)))
				if err != nil {
					return err
				}
				defer c.Close()
				_, err = c.Write([]byte(from))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		buf := make([]byte, 100)
		_ = sink.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, _, err := sink.ReadFrom(buf)
		if got := string(buf[:n]); err != nil || got != stranger {
			t.Errorf("heard %q, %v", got, err)
		}
	}
	others := slices.Clone(s.peers)
	key := testKey(t).Public()
	for i, cidr := range podCIDRs(99, ranges) {
		others = append(others, Peer{Name: "two", NodeIP: s.at(0, 99)[i], PodCIDR: cidr, Key: key})
	}
	if _, err := m.Sync(others); err == nil {
		t.Error("no error")
	}
	for _, n := range []int{99, 98} {
		for _, cidr := range podCIDRs(n, ranges) {
			if got := ask(s.nodes[0].NetNS, "tcp", netip.AddrPortFrom(nth(cidr, 1), 80)); !strings.Contains(got, "unreachable") && !strings.Contains(got, "no route") {
				t.Errorf("to %s: %q", cidr, got)
			}
		}
	}
}

// TestWireGuard needs a kernel that has it; `make test-kernel` runs it on a virtual
// machine.
func TestWireGuard(t *testing.T) { everyFamily(t, testWireGuard) }

// testWireGuard: nodes 1 and 2 are at different sites, 3 shares the first one's link and has
// no key.
func testWireGuard(t *testing.T, ranges Ranges) {
	s := newSitesOf(t, ranges, 0, 1, 0)
	if err := CheckWireGuard(s.nodes[0].NetNS); err != nil {
		if os.Getenv("GITK8S_TEST_WIREGUARD") != "" {
			t.Fatal(err)
		}
		t.Skipf("%v; `make test-kernel` runs it on a virtual machine", err)
	}
	families := len(ranges.Pods)
	for n := 1; n <= 2; n++ {
		key := testKey(t)
		s.meshes[n-1] = NewMesh(s.keyed(n, key))
		s.named(fmt.Sprint("node-", n), func(p *Peer) { p.Key = key.Public() })
		if err := s.meshes[n-1].Seal(); err != nil {
			t.Fatal(err)
		}
	}
	// The server has no key, and is behind the router for nodes 1 and 3.
	server, serverIPs, nodes := s.machine("server", 1, 5), s.at(1, 5), slices.Clone(s.peers)
	for _, ip := range serverIPs {
		s.peers = append(s.peers, Peer{NodeIP: ip})
		s.serve(server, netip.AddrPortFrom(ip, 6443), "api")
	}
	s.sync()
	if _, err := NewMesh(MeshConfig{Pods: ranges.Pods, Services: ranges.Services, NetNS: server, NodeIPs: serverIPs, Tunnel: TunnelAuto, Server: true}).Sync(nodes); err != nil {
		t.Fatal(err)
	}
	ns, ips := map[int]string{}, map[int][]netip.Addr{}
	serveNode := func(n int) {
		for _, ip := range s.nodes[n-1].IPs {
			s.serve(s.nodes[n-1].NetNS, netip.AddrPortFrom(ip, 10250), fmt.Sprint("n", n))
		}
	}
	for n := 1; n <= 3; n++ {
		ns[n], ips[n] = s.podOf(n, fmt.Sprint("p", n))
		serveNode(n)
	}
	pod := func(n, i int) netip.AddrPort { return netip.AddrPortFrom(ips[n][i], 8080) }
	node := func(n, i int) netip.AddrPort { return netip.AddrPortFrom(s.nodes[n-1].IPs[i], 10250) }
	everything := func(t *testing.T) {
		t.Helper()
		for i := range families {
			for _, pair := range [][2]int{{1, 2}, {2, 1}} {
				from, to := pair[0], pair[1]
				what := fmt.Sprintf("%d to %d, ", from, to)
				expect(t, what+"pod to pod", ns[from], pod(to, i), fmt.Sprintf("p%d %s", to, ips[from][i]))
				expect(t, what+"node to pod", s.nodes[from-1].NetNS, pod(to, i), fmt.Sprintf("p%d %s", to, s.nodes[from-1].IPs[i]))
				expect(t, what+"pod to node", ns[from], node(to, i), fmt.Sprintf("n%d %s", to, ips[from][i]))
			}
		}
	}
	everything(t)
	for i, ip := range serverIPs {
		for n := 1; n <= 3; n++ {
			expect(t, "server to pod", server, pod(n, i), fmt.Sprintf("p%d %s", n, ip))
			expect(t, "pod to server", ns[n], netip.AddrPortFrom(ip, 6443), fmt.Sprintf("api %s", ips[n][i]))
		}
	}
	device := func(n int) *wgtypes.Device {
		t.Helper()
		var d *wgtypes.Device
		if err := inNetNS(s.nodes[n-1].NetNS, func() error {
			c, err := wgctrl.New()
			if err != nil {
				return err
			}
			defer c.Close()
			d, err = c.Device(wireGuardLink)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return d
	}
	if p := device(1).Peers; len(p) != 1 || len(p[0].AllowedIPs) != 2*families || p[0].Endpoint.AddrPort().Addr() != s.nodes[1].IPs[0] {
		t.Errorf("%+v", p)
	}

	t.Run("nothing is in the clear", func(t *testing.T) {
		const text = "nobody but the two may read this, "
		spy := newSniffer(t, s.router, s.link(s.router, "node-1").Attrs().Index)
		for i := range families {
			// One who sees what is sent in the clear, between the machines themselves.
			if err := datagramOf(t, s.nodes[0].NetNS, s.nodes[1].NetNS, netip.AddrPortFrom(s.nodes[1].IPs[i], 9000), text); err != nil {
				t.Fatal(err)
			}
			if clear, _ := spy.has(text); !clear {
				t.Fatal("the sniffer sees nothing")
			}
			for _, x := range []struct {
				from, to string
				at       netip.Addr
			}{
				{ns[1], ns[2], ips[2][i]}, {ns[2], ns[1], ips[1][i]},
				{s.nodes[0].NetNS, ns[2], ips[2][i]}, {ns[2], s.nodes[0].NetNS, s.nodes[0].IPs[i]},
			} {
				if err := datagramOf(t, x.from, x.to, netip.AddrPortFrom(x.at, 9000), text); err != nil {
					t.Error(err)
				}
				if clear, n := spy.has(text); clear || n == 0 {
					t.Errorf("to %s: in the clear %v, of %d bytes", x.at, clear, n)
				}
			}
		}
	})
	t.Run("a peer without a key is told about and not talked to", func(t *testing.T) {
		w, err := s.meshes[0].Sync(s.peers)
		if err != nil || len(w.Refused) != families {
			t.Errorf("%v %v", w.Refused, err)
		}
		for _, r := range w.Refused {
			if r.Name != "node-3" || r.Reason != ReasonNotEncrypted {
				t.Errorf("%+v", r)
			}
		}
		for i := range families {
			for what, x := range map[string]struct {
				from string
				to   netip.AddrPort
			}{
				"pod to its pod":       {ns[1], pod(3, i)},
				"node to its pod":      {s.nodes[0].NetNS, pod(3, i)},
				"pod to its address":   {ns[1], node(3, i)},
				"its pod to a pod":     {ns[3], pod(1, i)},
				"its address to a pod": {s.nodes[2].NetNS, pod(1, i)},
			} {
				if got := ask(x.from, "udp", x.to); !strings.HasPrefix(got, "error") {
					t.Errorf("%s: %q", what, got)
				}
			}
			if got := ask(s.nodes[0].NetNS, "tcp", node(3, i)); got != "n3 "+s.nodes[0].IPs[i].String() {
				t.Errorf("the nodes themselves: %q", got)
			}
		}
	})
	t.Run("large ones", func(t *testing.T) {
		mtu, mtu2 := 1440, 1440
		switch {
		case families == 2:
			mtu = 1430 // to the server, in VXLAN between IPv6 addresses; node 2 shares its link
		case ranges.HasIPv6():
			mtu, mtu2 = 1420, 1420
		}
		for n, want := range map[int]int{1: mtu, 2: mtu2} {
			if got := s.link(ns[n], podLink).Attrs().MTU; got != want {
				t.Errorf("a link of a pod of node %d has %d, want %d", n, got, want)
			}
		}
		for i := range families {
			there, fits := netip.AddrPortFrom(ips[2][i], 9000), mtu-8-outerHeader(ips[2][i])
			transfer(t, ns[1], ns[2], there, there, 1<<20)
			transfer(t, s.nodes[0].NetNS, ns[2], there, there, 1<<20)
			for _, size := range []int{fits - 12, fits, fits + 1, 1500, 8000} {
				if err := datagram(t, ns[1], ns[2], there, there, size, true); err != nil {
					t.Errorf("%d bytes: %v", size, err)
				}
			}
			if err := datagram(t, ns[1], ns[2], there, there, fits, false); err != nil {
				t.Error(err)
			}
			if err := datagram(t, ns[1], ns[2], there, there, fits+1, false); !errors.Is(err, unix.EMSGSIZE) {
				t.Error(err)
			}
		}
	})
	t.Run("services lead through it", func(t *testing.T) {
		p, err := NewProxy(s.nodes[0].NetNS, ranges.Services)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		var svcs []Service
		for i, services := range ranges.Services {
			ep := []netip.AddrPort{pod(2, i)}
			svcs = append(svcs, both(Service{IP: nth(services, 79), Port: 80, Endpoints: ep})...)
			svcs = append(svcs, both(Service{IP: anyNodeAddress(services.Addr().Is6()), Port: 30080, Endpoints: ep, Masquerade: true})...)
		}
		if err := p.Apply(State{Services: svcs}); err != nil {
			t.Fatal(err)
		}
		for i, services := range ranges.Services {
			own := s.nodes[0].IPs[i]
			expect(t, "pod to service", ns[1], netip.AddrPortFrom(nth(services, 79), 80), fmt.Sprintf("p2 %s", ips[1][i]))
			expect(t, "stranger to node port", s.router, netip.AddrPortFrom(own, 30080), fmt.Sprintf("p2 %s", own))
		}
	})
	t.Run("again keeps the session, also of another process", func(t *testing.T) {
		before := device(1).Peers
		s.meshes[0] = NewMesh(s.meshes[0].cfg)
		if err := s.meshes[0].Seal(); err != nil {
			t.Fatal(err)
		}
		s.sync()
		after := device(1).Peers
		if len(before) != 1 || len(after) != 1 || before[0].LastHandshakeTime.IsZero() || !before[0].LastHandshakeTime.Equal(after[0].LastHandshakeTime) {
			t.Errorf("%v, before %v", after, before)
		}
	})
	t.Run("a node has a new key", func(t *testing.T) {
		key := testKey(t)
		s.meshes[1].cfg.Key = key
		s.named("node-2", func(p *Peer) { p.Key = key.Public() })
		s.sync()
		everything(t)
		if p := device(1).Peers; len(p) != 1 || PublicKey(p[0].PublicKey) != key.Public() {
			t.Error(p)
		}
	})
	t.Run("a node moves", func(t *testing.T) {
		s.plug("node-2", 0)
		s.address(s.nodes[1].NetNS, 0, 77)
		s.nodes[1].IPs = s.at(0, 77)
		s.meshes[1].cfg.NodeIPs, s.pods[1].cfg.NodeIPs = s.nodes[1].IPs, s.nodes[1].IPs
		s.named("node-2", func(p *Peer) { p.NodeIP = Same(p.NodeIP, s.nodes[1].IPs) })
		serveNode(2)
		s.sync()
		everything(t)
	})
	t.Run("a node that begins to encrypt is let in", func(t *testing.T) {
		key := testKey(t)
		s.meshes[2] = NewMesh(s.keyed(3, key))
		s.named("node-3", func(p *Peer) { p.Key = key.Public() })
		s.sync()
		for i := range families {
			expect(t, "pod to pod", ns[1], pod(3, i), fmt.Sprintf("p3 %s", ips[1][i]))
			expect(t, "pod to pod", ns[3], pod(2, i), fmt.Sprintf("p2 %s", ips[3][i]))
		}
	})
	t.Run("leaving takes all of it away", func(t *testing.T) {
		if err := Leave(s.nodes[0].NetNS, ranges); err != nil {
			t.Fatal(err)
		}
		if state := s.state(s.nodes[0].NetNS); state != "" {
			t.Error(state)
		}
		var missing netlink.LinkNotFoundError
		if _, err := s.handle(s.nodes[0].NetNS).LinkByName(wireGuardLink); !errors.As(err, &missing) {
			t.Error(err)
		}
	})
}

// datagramOf sends a text from one namespace to an address in another.
func datagramOf(t *testing.T, from, to string, at netip.AddrPort, text string) error {
	t.Helper()
	l, err := ListenPacketIn(to, "udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := DialIn(from)(t.Context(), "udp", at.String())
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte(text)); err != nil {
		return err
	}
	buf := make([]byte, 1000)
	_ = l.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, _, err := l.ReadFrom(buf)
	if err == nil && string(buf[:n]) != text {
		err = fmt.Errorf("%q came", buf[:n])
	}
	return err
}
