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
					out = append(out, newWireGuardPeer(p, rapid.Bool().Draw(t, "own address")))
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
	// A Mesh that needs it sends nothing.
	k := testKey(t)
	m := NewMesh(MeshConfig{Pods: rangesBoth.Pods, Services: rangesBoth.Services, NetNS: s.nodes[0].NetNS, Node: "node-1", NodeIP: s.nodes[0].IPs[0], Tunnel: TunnelAuto, Key: k})
	ns, pod := s.pod(1, "a")
	bNS, b := s.pod(1, "b")
	heard := func() string { return ask(s.router, "udp", netip.AddrPortFrom(pod, 8080)) }
	h := s.handle(s.router)
	for _, r := range []*netlink.Route{
		{Dst: ipNet(podCIDR(1)), Gw: s.nodes[0].IPs[0].AsSlice()},
		{Dst: ipNet(netip.MustParsePrefix("10.42.99.9/32")), LinkIndex: s.link(s.router, "lo").Attrs().Index, Scope: unix.RT_SCOPE_HOST, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL},
	} {
		if err := h.RouteAdd(r); err != nil {
			t.Fatal(err)
		}
	}
	stranger := siteIP(0, 1).String()
	if got := heard(); got != "a "+stranger {
		t.Fatalf("before: %q", got)
	}
	if err := m.Seal(); err != nil {
		t.Fatal(err)
	}
	// Who has a pod's address is not heard in the clear; neighbours and others are.
	if got := heard(); got != "a "+stranger {
		t.Errorf("one that is no pod: %q", got)
	}
	expect(t, "pods of the node", ns, netip.AddrPortFrom(b, 8080), "b "+pod.String())
	expect(t, "the node", s.nodes[0].NetNS, netip.AddrPortFrom(b, 8080), "b "+s.nodes[0].IPs[0].String())
	sink, err := ListenPacketIn(bNS, "udp4", netip.AddrPortFrom(b, 9).String())
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	for _, from := range []string{"10.42.99.9", stranger} {
		err := inNetNS(s.router, func() error {
			c, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(b, 9)))
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
	to := Peer{Name: "two", NodeIP: siteIP(0, 99), PodCIDR: podCIDR(99), Key: testKey(t).Public()}
	if _, err := m.Sync(append(s.peers, to)); err == nil {
		t.Error("no error")
	}
	for _, ip := range []netip.Addr{netip.MustParseAddr("10.42.99.1"), netip.MustParseAddr("10.42.98.1")} {
		if got := ask(s.nodes[0].NetNS, "tcp", netip.AddrPortFrom(ip, 80)); !strings.Contains(got, "unreachable") && !strings.Contains(got, "no route") {
			t.Errorf("to %s: %q", ip, got)
		}
	}
}

// TestWireGuard needs a kernel that has it; `make test-kernel` runs it on a virtual
// machine. Nodes 1 and 2 are at different sites, 3 shares the first one's link and has
// no key.
func TestWireGuard(t *testing.T) {
	s := newSites(t, 0, 1, 0)
	if err := CheckWireGuard(s.nodes[0].NetNS); err != nil {
		if os.Getenv("GITK8S_TEST_WIREGUARD") != "" {
			t.Fatal(err)
		}
		t.Skipf("%v; `make test-kernel` runs it on a virtual machine", err)
	}

	for i := range 2 {
		key := testKey(t)

		s.meshes[i] = NewMesh(MeshConfig{Pods: rangesBoth.Pods, Services: rangesBoth.Services, NetNS: s.nodes[i].NetNS, Node: s.peers[i].Name, NodeIP: s.nodes[i].IPs[0], Tunnel: TunnelAuto, Key: key})
		s.peers[i].Key = key.Public()
		if err := s.meshes[i].Seal(); err != nil {
			t.Fatal(err)
		}
	}
	// The server has no key, and is behind the router for nodes 1 and 3.
	server := s.machine("server", 1, 5)
	s.peers = append(s.peers, Peer{NodeIP: siteIP(1, 5)})
	s.sync()
	if _, err := NewMesh(MeshConfig{Pods: rangesBoth.Pods, Services: rangesBoth.Services, NetNS: server, NodeIP: siteIP(1, 5), Tunnel: TunnelAuto, Server: true}).Sync(s.peers[:3]); err != nil {
		t.Fatal(err)
	}
	s.serve(server, netip.AddrPortFrom(siteIP(1, 5), 6443), "api")
	ns, ip := map[int]string{}, map[int]netip.Addr{}
	for n := 1; n <= 3; n++ {
		ns[n], ip[n] = s.pod(n, fmt.Sprint("p", n))
		s.serve(s.nodes[n-1].NetNS, netip.AddrPortFrom(s.nodes[n-1].IPs[0], 10250), fmt.Sprint("n", n))
	}
	everything := func(t *testing.T) {
		t.Helper()
		for _, pair := range [][2]int{{1, 2}, {2, 1}} {
			from, to := pair[0], pair[1]
			what := fmt.Sprintf("%d to %d, ", from, to)
			expect(t, what+"pod to pod", ns[from], netip.AddrPortFrom(ip[to], 8080), fmt.Sprintf("p%d %s", to, ip[from]))
			expect(t, what+"node to pod", s.nodes[from-1].NetNS, netip.AddrPortFrom(ip[to], 8080), fmt.Sprintf("p%d %s", to, s.nodes[from-1].IPs[0]))
			expect(t, what+"pod to node", ns[from], netip.AddrPortFrom(s.nodes[to-1].IPs[0], 10250), fmt.Sprintf("n%d %s", to, ip[from]))
		}
	}
	everything(t)
	for n := 1; n <= 3; n++ {
		expect(t, "server to pod", server, netip.AddrPortFrom(ip[n], 8080), fmt.Sprintf("p%d %s", n, siteIP(1, 5)))
		expect(t, "pod to server", ns[n], netip.AddrPortFrom(siteIP(1, 5), 6443), fmt.Sprintf("api %s", ip[n]))
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

	t.Run("nothing is in the clear", func(t *testing.T) {
		const text = "nobody but the two may read this, "
		spy := newSniffer(t, s.router, s.link(s.router, "node-1").Attrs().Index)
		// One who sees what is sent in the clear, between the machines themselves.
		if err := datagramOf(t, s.nodes[0].NetNS, s.nodes[1].NetNS, netip.AddrPortFrom(s.nodes[1].IPs[0], 9000), text); err != nil {
			t.Fatal(err)
		}
		if clear, _ := spy.has(text); !clear {
			t.Fatal("the sniffer sees nothing")
		}
		for _, x := range []struct {
			from, to string
			at       netip.AddrPort
		}{
			{ns[1], ns[2], netip.AddrPortFrom(ip[2], 9000)}, {ns[2], ns[1], netip.AddrPortFrom(ip[1], 9000)},
			{s.nodes[0].NetNS, ns[2], netip.AddrPortFrom(ip[2], 9000)}, {ns[2], s.nodes[0].NetNS, netip.AddrPortFrom(s.nodes[0].IPs[0], 9000)},
		} {
			if err := datagramOf(t, x.from, x.to, x.at, text); err != nil {
				t.Error(err)
			}
			if clear, n := spy.has(text); clear || n == 0 {
				t.Errorf("to %s: in the clear %v, of %d bytes", x.at, clear, n)
			}
		}
	})
	t.Run("a peer without a key is told about and not talked to", func(t *testing.T) {
		w, err := s.meshes[0].Sync(s.peers)
		if err != nil || len(w.Refused) != 1 || w.Refused[0].Name != "node-3" || w.Refused[0].Reason != ReasonNotEncrypted {
			t.Errorf("%v %v", w.Refused, err)
		}
		for what, x := range map[string]struct {
			from string
			to   netip.AddrPort
		}{
			"pod to its pod":       {ns[1], netip.AddrPortFrom(ip[3], 8080)},
			"node to its pod":      {s.nodes[0].NetNS, netip.AddrPortFrom(ip[3], 8080)},
			"pod to its address":   {ns[1], netip.AddrPortFrom(s.nodes[2].IPs[0], 10250)},
			"its pod to a pod":     {ns[3], netip.AddrPortFrom(ip[1], 8080)},
			"its address to a pod": {s.nodes[2].NetNS, netip.AddrPortFrom(ip[1], 8080)},
		} {
			if got := ask(x.from, "udp", x.to); !strings.HasPrefix(got, "error") {
				t.Errorf("%s: %q", what, got)
			}
		}
		if got := ask(s.nodes[0].NetNS, "tcp", netip.AddrPortFrom(s.nodes[2].IPs[0], 10250)); got != "n3 "+s.nodes[0].IPs[0].String() {
			t.Errorf("the nodes themselves: %q", got)
		}
	})
	t.Run("large ones", func(t *testing.T) {
		for _, n := range []int{1, 2} {
			if mtu := s.link(ns[n], podLink).Attrs().MTU; mtu != 1440 {
				t.Errorf("a pod's link has %d", mtu)
			}
		}
		there := netip.AddrPortFrom(ip[2], 9000)
		transfer(t, ns[1], ns[2], there, there, 1<<20)
		transfer(t, s.nodes[0].NetNS, ns[2], there, there, 1<<20)
		for _, size := range []int{1400, 1412, 1413, 1500, 8000} {
			if err := datagram(t, ns[1], ns[2], there, there, size, true); err != nil {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
		if err := datagram(t, ns[1], ns[2], there, there, 1412, false); err != nil {
			t.Error(err)
		}
		if err := datagram(t, ns[1], ns[2], there, there, 1413, false); !errors.Is(err, unix.EMSGSIZE) {
			t.Error(err)
		}
	})
	t.Run("services lead through it", func(t *testing.T) {
		p, err := NewProxy(s.nodes[0].NetNS, rangesIPv4.Services)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		vip := netip.MustParseAddr("10.43.0.79")
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
		expect(t, "stranger to node port", s.router, netip.AddrPortFrom(s.nodes[0].IPs[0], 30080), fmt.Sprintf("p2 %s", s.nodes[0].IPs[0]))
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
		s.meshes[1].cfg.Key = testKey(t)
		s.peers[1].Key = s.meshes[1].cfg.Key.Public()
		s.sync()
		everything(t)
		if p := device(1).Peers; len(p) != 1 || PublicKey(p[0].PublicKey) != s.peers[1].Key {
			t.Error(p)
		}
	})
	t.Run("a node moves", func(t *testing.T) {
		s.plug("node-2", 0)
		s.address(s.nodes[1].NetNS, 0, 77)
		s.nodes[1].IPs = []netip.Addr{siteIP(0, 77)}
		s.peers[1].NodeIP, s.meshes[1].cfg.NodeIP, s.pods[1].cfg.NodeIPs = s.nodes[1].IPs[0], s.nodes[1].IPs[0], s.nodes[1].IPs
		s.serve(s.nodes[1].NetNS, netip.AddrPortFrom(s.nodes[1].IPs[0], 10250), "n2")
		s.sync()
		everything(t)
	})
	t.Run("a node that begins to encrypt is let in", func(t *testing.T) {
		key := testKey(t)
		s.meshes[2] = NewMesh(MeshConfig{Pods: rangesBoth.Pods, Services: rangesBoth.Services, NetNS: s.nodes[2].NetNS, Node: "node-3", NodeIP: s.nodes[2].IPs[0], Tunnel: TunnelAuto, Key: key})
		s.peers[2].Key = key.Public()
		s.sync()
		expect(t, "pod to pod", ns[1], netip.AddrPortFrom(ip[3], 8080), fmt.Sprintf("p3 %s", ip[1]))
		expect(t, "pod to pod", ns[3], netip.AddrPortFrom(ip[2], 8080), fmt.Sprintf("p2 %s", ip[3]))
	})
	t.Run("leaving takes all of it away", func(t *testing.T) {
		if err := Leave(s.nodes[0].NetNS, rangesIPv4); err != nil {
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
	l, err := ListenPacketIn(to, "udp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := DialIn(from)(t.Context(), "udp4", at.String())
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
