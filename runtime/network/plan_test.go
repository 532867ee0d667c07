package network

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"
)

func testKey(t interface{ Fatal(...any) }) PrivateKey {
	k, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return PrivateKey{k}
}

func TestWayTo(t *testing.T) {
	key := testKey(t)
	node := Peer{Name: "n", NodeIP: siteIP(0, 2), PodCIDR: podCIDR(2)}
	withKey, server := node, Peer{NodeIP: siteIP(0, 3)}
	withKey.Key = key.Public()
	near, far, lost := hop{link: 2, onLink: true, mtu: 1500}, hop{link: 2, mtu: 1500}, hop{}
	for _, x := range []struct {
		name   string
		tunnel Tunnel
		key    PrivateKey
		peer   Peer
		at     hop
		want   way
	}{
		{"same link", TunnelAuto, PrivateKey{}, node, near, direct},
		{"behind a router", TunnelAuto, PrivateKey{}, node, far, tunnelled},
		{"no way at present", TunnelAuto, PrivateKey{}, node, lost, tunnelled},
		{"a key that is not wanted", TunnelAuto, PrivateKey{}, withKey, near, direct},
		{"same link, always", TunnelAlways, PrivateKey{}, node, near, tunnelled},
		{"same link, never", TunnelNever, PrivateKey{}, node, near, direct},
		{"behind a router, never", TunnelNever, PrivateKey{}, node, far, unmanaged},
		{"server on the same link", TunnelAuto, PrivateKey{}, server, near, unmanaged},
		{"server behind a router", TunnelAuto, PrivateKey{}, server, far, tunnelled},
		{"server, always", TunnelAlways, PrivateKey{}, server, near, tunnelled},
		{"encrypted", TunnelAuto, key, withKey, near, encrypted},
		{"encrypted, behind a router", TunnelAuto, key, withKey, far, encrypted},
		{"encrypted, always", TunnelAlways, key, withKey, near, encrypted},
		{"no key", TunnelAuto, key, node, near, refused},
		{"no key, behind a router", TunnelNever, key, node, far, refused},
		{"server has no key", TunnelAuto, key, server, near, unmanaged},
		{"server has no key, behind a router", TunnelAuto, key, server, far, tunnelled},
	} {
		if got := (MeshConfig{Pods: rangesBoth.Pods, Services: rangesBoth.Services, Tunnel: x.tunnel, Key: x.key}).wayTo(x.peer, x.at); got != x.want {
			t.Errorf("%s: %d, want %d", x.name, got, x.want)
		}
	}
}

// Whatever peers there are: nobody is led by a way that was not chosen for them, with
// encryption nothing of a node's pods goes otherwise, and what a pod may send fits.
func TestPlan(t *testing.T) {
	keys := []PublicKey{{}, testKey(t).Public(), testKey(t).Public(), testKey(t).Public()}
	mine := testKey(t)
	rapid.Check(t, func(t *rapid.T) {
		cfg := MeshConfig{Pods: rangesBoth.Pods, Services: rangesBoth.Services, Node: "me", NodeIP: siteIP(0, 1), Tunnel: rapid.SampledFrom([]Tunnel{TunnelAuto, TunnelAlways, TunnelNever}).Draw(t, "tunnel")}
		if rapid.Bool().Draw(t, "encrypt") {
			cfg.Key = mine
		}
		hops := map[netip.Addr]hop{}
		var peers []Peer
		for i := range rapid.IntRange(0, 8).Draw(t, "peers") {
			p := Peer{NodeIP: siteIP(0, rapid.IntRange(1, 6).Draw(t, "address"))}
			if rapid.Bool().Draw(t, "node") {
				p.Name, p.PodCIDR, p.Key = rapid.SampledFrom([]string{"", "me", "other"}).Draw(t, "name"), podCIDR(i), rapid.SampledFrom(keys).Draw(t, "key")
			}
			peers = append(peers, p)
			hops[p.NodeIP] = rapid.SampledFrom([]hop{{}, {link: 2, mtu: 1400}, {link: 2, onLink: true, mtu: 1500}, {link: 3, mtu: 9000}}).Draw(t, "hop")
		}
		got := cfg.plan(peers, map[netip.Addr]bool{cfg.NodeIP: true}, hops, 1500)
		refusedPeers, used := map[netip.Prefix]bool{}, map[PublicKey]bool{}
		for _, r := range got.refused {
			if r.Reason != ReasonNotEncrypted {
				t.Fatalf("refused: %v", r)
			}
			refusedPeers[r.PodCIDR] = true
		}
		for _, p := range peers {
			r, routed := got.routes[routeKey{unix.RT_TABLE_MAIN, p.PodCIDR}]
			_, addressed := got.routes[routeKey{peersTable, host(p.NodeIP)}]
			if p.Name == cfg.Node && p.isNode() {
				if routed {
					t.Fatalf("the node leads to itself: %v", p)
				}
				continue
			}
			if p.NodeIP == cfg.NodeIP {
				if p.isNode() && routed || addressed {
					t.Fatalf("the machine leads to itself: %v", p)
				}
				continue
			}
			want := cfg.wayTo(p, hops[p.NodeIP])
			if want == encrypted && used[p.Key] {
				want = refused
			}
			if want == encrypted {
				used[p.Key] = true
			}
			if !p.isNode() {
				continue
			}
			if routed != (want != unmanaged) || routed && r.way != want || refusedPeers[p.PodCIDR] != (want == refused) {
				t.Fatalf("%v: %v, want %d", p, r, want)
			}
			if !cfg.Key.IsZero() && r.way != encrypted && r.way != refused {
				t.Fatalf("%v goes in the clear: %v", p, r)
			}
			if outer := hops[p.NodeIP].mtu; outer > 0 && want != refused {
				if fits := outer - map[way]int{tunnelled: vxlanOverhead, encrypted: wireGuardOverhead}[want]; got.mtu > fits || r.mtu > fits {
					t.Fatalf("%v: pods may send %d and the route takes %d, but %d fit", p, got.mtu, r.mtu, fits)
				}
			}
		}
		if len(got.vxlanPeers) > 0 && !got.vxlan {
			t.Fatal("peers of a tunnel that there is not")
		}
		if len(got.vxlanPeers)+len(got.wireGuardPeers) > 0 && got.guard.empty() {
			t.Fatal("a tunnel without a guard")
		}
	})
}

// Nodes say of themselves which addresses they have; what is another's stays so.
func TestAdmit(t *testing.T) {
	peer := func(name, ip, pods string) Peer {
		return Peer{Name: name, NodeIP: netip.MustParseAddr(ip), PodCIDR: netip.MustParsePrefix(pods)}
	}
	cfg := MeshConfig{Pods: rangesBoth.Pods, Services: rangesBoth.Services, Node: "me", NodeIP: netip.MustParseAddr("192.0.2.1")}
	got, pods, bad := cfg.admit([]Peer{
		peer("mine", "192.0.2.8", "10.42.1.0/25"),
		peer("one", "192.0.2.2", "10.42.2.5/24"),
		peer("me", "192.0.2.99", "10.42.1.0/24"),
		peer("same", "192.0.2.3", "10.42.2.0/24"),
		peer("part", "192.0.2.3", "10.42.2.7/32"),
		peer("all", "192.0.2.3", "0.0.0.0/0"),
		peer("more", "192.0.2.3", "10.42.0.0/15"),
		peer("other", "192.0.2.3", "192.0.2.0/24"),
		peer("pod", "10.42.9.9", "10.42.9.0/24"),
		peer("service", "10.43.0.1", "10.42.9.0/24"),
		peer("many", "224.0.0.1", "10.42.9.0/24"),
		peer("old", "192.0.2.1", "10.42.8.0/24"),
		peer("two", "192.0.2.4", "10.42.9.0/24"),
		{NodeIP: netip.MustParseAddr("192.0.2.7")},
		{NodeIP: netip.MustParseAddr("10.42.2.9")},
		{NodeIP: netip.MustParseAddr("192.0.2.1")},
	}, map[netip.Addr]bool{cfg.NodeIP: true})
	var names, refusals []string
	for _, p := range got {
		names = append(names, p.Name+" "+p.PodCIDR.String())
	}
	for _, r := range bad {
		refusals = append(refusals, r.Name)
		if r.Reason != ReasonBadAddresses || r.Message == "" {
			t.Errorf("%+v", r)
		}
	}
	if text := strings.Join(names, ", "); text != "one 10.42.2.0/24, two 10.42.9.0/24,  invalid Prefix" || pods != podCIDR(1) {
		t.Errorf("admitted: %s; own pods %s", text, pods)
	}
	if text := strings.Join(refusals, " "); text != "mine same part all more other pod service many" {
		t.Errorf("refused: %s", text)
	}
}

// A Node that is left from before a machine was renamed keeps nothing from the new one.
func TestRenamedNode(t *testing.T) {
	old := Peer{Name: "old", NodeIP: siteIP(0, 2), PodCIDR: podCIDR(2)}
	renamed := Peer{Name: "new", NodeIP: siteIP(0, 2), PodCIDR: podCIDR(3), Key: testKey(t).Public()}
	cfg := MeshConfig{Pods: rangesBoth.Pods, Services: rangesBoth.Services, Node: "me", NodeIP: siteIP(0, 1), Tunnel: TunnelAuto, Key: testKey(t)}
	got := cfg.plan([]Peer{old, renamed}, nil, map[netip.Addr]hop{old.NodeIP: {link: 2, onLink: true, mtu: 1500}}, 1500)
	if r := got.routes[routeKey{peersTable, host(old.NodeIP)}]; r.way != encrypted || len(got.wireGuardPeers) != 1 || len(got.wireGuardPeers[0].allowed) != 2 || len(got.refused) != 1 {
		t.Errorf("%+v %+v %+v", r, got.wireGuardPeers, got.refused)
	}
}

func TestMergedRanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var in []addrRange
		inside := map[netip.Addr]bool{}
		for range rapid.IntRange(0, 6).Draw(t, "ranges") {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, 0, rapid.Byte().Draw(t, "address")}), rapid.IntRange(25, 32).Draw(t, "bits")).Masked()
			in = append(in, rangeOf(p))
			for a := p.Addr(); p.Contains(a); a = a.Next() {
				inside[a] = true
			}
		}
		out := merged(in)
		for i, r := range out {
			if r.last.Less(r.first) || i > 0 && !out[i-1].last.Next().Less(r.first) {
				t.Fatalf("%v are not apart", out)
			}
			for a := r.first; !r.last.Less(a); a = a.Next() {
				if !inside[a] {
					t.Fatalf("%s is in none of %v", a, in)
				}
				delete(inside, a)
			}
		}
		if len(inside) > 0 {
			t.Fatalf("%v lack %v", out, inside)
		}
	})
}
