package userspace

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"gitk8s.dev/gitk8s/runtime/network"
)

var ranges = network.Ranges{
	Nodes:    []netip.Prefix{netip.MustParsePrefix("10.41.0.0/24")},
	Pods:     []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
	Services: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
}

// bed is two nodes with pods.
type bed struct {
	t     *testing.T
	hub   string
	nodes [2]network.Node
	pods  [2]*network.PodNetwork
}

func newBed(t *testing.T) *bed {
	id, dir := fmt.Sprintf("u%d", os.Getpid()), t.TempDir()
	b := &bed{t: t, hub: network.HubNetNS(id)}
	check(t, network.EnsureHub(id, ranges))
	t.Cleanup(func() { check(t, network.DeleteTopology(id)) })
	var peers []network.Peer
	for i := range b.nodes {
		var err error
		b.nodes[i], err = network.EnsureNode(id, fmt.Sprintf("n%d", i), i+1, ranges)
		check(t, err)
		cidr := netip.MustParsePrefix(fmt.Sprintf("10.42.%d.0/24", i))
		peers = append(peers, network.Peer{PodCIDR: cidr, NodeIP: b.nodes[i].IPs[0]})
		pods := filepath.Join(dir, fmt.Sprint(i))
		b.pods[i], err = network.NewPodNetwork(network.PodConfig{Dir: pods, NetNS: b.nodes[i].NetNS, PodCIDRs: []netip.Prefix{cidr}, Services: ranges.Services, NodeIPs: b.nodes[i].IPs})
		check(t, err)
		t.Cleanup(func() { check(t, network.DeletePods(pods)) })
		t.Cleanup(func() { check(t, b.pods[i].Close()) })
	}
	for _, ns := range []string{b.hub, b.nodes[0].NetNS, b.nodes[1].NetNS} {
		_, err := network.NewMesh(network.MeshConfig{NetNS: ns, Pods: ranges.Pods, Services: ranges.Services, Tunnel: network.TunnelNever}).Sync(peers)
		check(t, err)
	}
	return b
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pod makes one that answers with its name and who asked, on TCP and UDP.
func (b *bed) pod(node int, name string) (ns string, at netip.AddrPort) {
	b.t.Helper()
	ns, ips, err := b.pods[node].Setup(b.t.Context(), name, "default/"+name, false)
	check(b.t, err)
	at = netip.AddrPortFrom(ips[0], 8080)
	b.answer(ns, at.String(), name)
	return ns, at
}

func (b *bed) answer(ns, at, name string) {
	b.t.Helper()
	l, err := network.ListenIn(ns, "tcp", at)
	check(b.t, err)
	b.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%s asked by %s", name, c.RemoteAddr().(*net.TCPAddr).IP)
			c.Close()
		}
	}()
	u, err := network.ListenPacketIn(ns, "udp", at)
	check(b.t, err)
	b.t.Cleanup(func() { u.Close() })
	go func() {
		buf := make([]byte, 10)
		for {
			_, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			u.WriteTo(fmt.Appendf(nil, "%s asked by %s", name, from.(*net.UDPAddr).IP), from)
		}
	}()
}

func ask(from, netw, to string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := network.DialIn(from)(ctx, netw, to)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if netw == "udp" {
		c.Write([]byte("x"))
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if err != nil {
		return err.Error()
	}
	return string(buf[:n])
}

func (b *bed) asks(what, from, netw, to, want string) {
	b.t.Helper()
	if got := ask(from, netw, to); !strings.Contains(got, want) {
		b.t.Errorf("%s, %s: %q, want %q", what, netw, got, want)
	}
}

// TestProxy: services on both protocols, from pods, nodes and outside.
func TestProxy(t *testing.T) {
	b := newBed(t)
	aNS, a := b.pod(0, "a")
	dNS, d := b.pod(1, "d")
	one, two := b.nodes[0].NetNS, b.nodes[1].NetNS
	var proxies [2]*Proxy
	for i := range proxies {
		var err error
		proxies[i], err = New(b.nodes[i].NetNS, ranges.Services)
		check(t, err)
		defer proxies[i].Close()
	}
	apply := func(services ...network.Service) {
		t.Helper()
		for _, p := range proxies {
			var s network.State
			for _, svc := range services {
				for _, proto := range []network.Protocol{network.TCP, network.UDP} {
					svc.Proto = proto
					s.Services = append(s.Services, svc)
				}
			}
			check(t, p.Apply(s))
		}
	}
	ip := netip.MustParseAddr("10.43.0.5")
	vip, port := "10.43.0.5:80", func(i int) string { return fmt.Sprint(b.nodes[i].IPs[0], ":30080") }
	toD := network.Service{IP: ip, Port: 80, Endpoints: []netip.AddrPort{d}}
	nodePort := network.Service{IP: network.AnyNodeAddress, Port: 30080, Endpoints: []netip.AddrPort{d}}
	apply(toD, nodePort)
	for _, netw := range []string{"tcp", "udp"} {
		b.asks("from a pod", aNS, netw, vip, "d asked by "+b.nodes[0].IPs[0].String())
		b.asks("from the endpoint itself", dNS, netw, vip, "d asked by ")
		b.asks("from a node", one, netw, vip, "d asked by")
		b.asks("a node port from outside", b.hub, netw, port(0), "d asked by "+b.nodes[0].IPs[0].String())
		b.asks("a node port from the loopback", two, netw, "127.0.0.1:30080", "d asked by")
		b.asks("a node port from a pod", aNS, netw, port(1), "d asked by")
		b.asks("where nobody listens", aNS, netw, "10.43.0.6:80", "refused")
		b.asks("another port", aNS, netw, "10.43.0.5:81", "refused")
	}
	for _, p := range proxies {
		if got, err := p.Installed(); err != nil || len(got) != 4 {
			t.Error(got, err)
		}
	}

	// Another endpoint, and one that does not answer beside it.
	dead := netip.AddrPortFrom(a.Addr(), 1)
	apply(network.Service{IP: ip, Port: 80, Endpoints: []netip.AddrPort{a, dead}}, nodePort)
	for range 5 {
		b.asks("another endpoint", dNS, "tcp", vip, "a asked by")
	}
	apply(network.Service{IP: ip, Port: 80, Endpoints: []netip.AddrPort{a}})
	b.asks("another endpoint", dNS, "udp", vip, "a asked by")
	b.asks("a port that was closed", b.hub, "tcp", port(0), "refused")

	// Affinity: always the same of two.
	apply(network.Service{IP: ip, Port: 80, Endpoints: []netip.AddrPort{a, d}, Affinity: time.Hour})
	first := ask(aNS, "tcp", vip)
	for range 10 {
		b.asks("affinity", aNS, "tcp", vip, first)
	}
	// Who may connect.
	apply(network.Service{IP: ip, Port: 80, Endpoints: []netip.AddrPort{d}, Sources: []netip.Prefix{netip.PrefixFrom(a.Addr(), 32)}})
	b.asks("who may", aNS, "tcp", vip, "d asked by")
	b.asks("who may not", dNS, "tcp", vip, "reset")
	// Local: from outside to this node's endpoints alone, from inside to all.
	apply(network.Service{IP: network.AnyNodeAddress, Port: 30080, NodeLocal: true, Inside: []netip.AddrPort{d}})
	b.asks("local from outside", b.hub, "tcp", port(0), "reset")
	b.asks("local from a pod", aNS, "tcp", port(0), "d asked by")
	b.asks("local from the node", one, "tcp", port(0), "d asked by")

	// Beside somebody at all addresses, as the node's Ingress is.
	var l net.Listener
	check(t, network.InNetNS(one, func() (err error) {
		l, err = Listen(t.Context(), ":80")
		return err
	}))
	defer l.Close()
	host := network.Service{IP: network.AnyNodeAddress, Port: 80, Endpoints: []netip.AddrPort{a}}
	apply(toD, host)
	b.asks("a service's port that the node has, too", aNS, "tcp", vip, "d asked by")
	b.asks("a host port comes first", b.hub, "tcp", b.nodes[0].IPs[0].String()+":80", "a asked by")

	for i, p := range proxies {
		check(t, p.Close())
		check(t, Remove(b.nodes[i].NetNS, ranges.Services))
		check(t, Remove(b.nodes[i].NetNS, ranges.Services))
	}
	if got := ask(aNS, "tcp", vip); strings.Contains(got, "asked") {
		t.Error("after the end:", got)
	}
}

// TestAffinity: a client keeps its endpoint as long as it is there and it comes often
// enough, and no more is remembered than may be.
func TestAffinity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := &affinity{}
		now := time.Unix(0, 0)
		type last struct {
			to netip.AddrPort
			at time.Time
		}
		had := map[netip.Addr]last{}
		for range rapid.IntRange(1, 50).Draw(t, "requests") {
			now = now.Add(time.Duration(rapid.IntRange(0, 20).Draw(t, "pause")) * time.Second)
			client := netip.AddrFrom4([4]byte{10, 0, 0, rapid.ByteRange(1, 3).Draw(t, "client")})
			var to []netip.AddrPort
			for _, e := range rapid.SliceOfNDistinct(rapid.ByteRange(1, 5), 1, 5, rapid.ID[byte]).Draw(t, "endpoints") {
				to = append(to, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 42, 0, e}), 80))
			}
			before := append([]netip.AddrPort(nil), to...)
			a.first(client, to, 10*time.Second, now)
			want := before[0]
			if h, ok := had[client]; ok && now.Sub(h.at) < 10*time.Second {
				for _, e := range before {
					if e == h.to {
						want = e
					}
				}
			}
			if to[0] != want {
				t.Fatalf("%s at %s goes to %s, want %s", client, now, to[0], want)
			}
			had[client] = last{to[0], now}
		}
	})
	a := &affinity{}
	to := []netip.AddrPort{netip.MustParseAddrPort("10.42.0.1:80")}
	for i := range maxClients + 100 {
		a.first(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), to, time.Hour, time.Unix(0, 0))
	}
	if len(a.clients) > maxClients {
		t.Error(len(a.clients), "clients are remembered")
	}
}
