package network

import (
	"fmt"
	"net/netip"
	"slices"
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
		if got := (MeshConfig{Pods: rangesBoth.Pods, Services: rangesBoth.Services, NodeIPs: []netip.Addr{siteIP(0, 1)}, Tunnel: x.tunnel, Key: x.key}).wayTo(x.peer, x.at); got != x.want {
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
		cfg := MeshConfig{
			Pods: rangesBoth.Pods, Services: rangesBoth.Services, Node: "me", NodeIPs: []netip.Addr{siteIP(0, 1), nth(siteCIDRs6[0], 1)},
			Tunnel: rapid.SampledFrom([]Tunnel{TunnelAuto, TunnelAlways, TunnelNever}).Draw(t, "tunnel"),
		}
		if rapid.Bool().Draw(t, "encrypt") {
			cfg.Key = mine
		}
		hops, own := map[netip.Addr]hop{}, map[netip.Addr]bool{cfg.NodeIPs[0]: true, cfg.NodeIPs[1]: true}
		var peers []Peer
		for i := range rapid.IntRange(0, 8).Draw(t, "peers") {
			isNode, name, key := rapid.Bool().Draw(t, "node"), rapid.SampledFrom([]string{"", "me", "other"}).Draw(t, "name"), rapid.SampledFrom(keys).Draw(t, "key")
			for _, v6 := range rapid.SampledFrom([][]bool{{false}, {true}, {false, true}, {true, false}}).Draw(t, "families") {
				p := Peer{NodeIP: nth(map[bool]netip.Prefix{false: siteCIDRs[0], true: siteCIDRs6[0]}[v6], uint16(rapid.IntRange(1, 6).Draw(t, "address")))}
				if isNode {
					p.Name, p.PodCIDR, p.Key = name, ofFamily(podCIDRs(i, rangesBoth), v6), key
				}
				peers = append(peers, p)
				hops[p.NodeIP] = rapid.SampledFrom([]hop{{}, {link: 2, mtu: 1400}, {link: 2, onLink: true, mtu: 1500}, {link: 3, mtu: 9000}}).Draw(t, "hop")
			}
		}
		got := cfg.plan(peers, own, hops, nil)
		checkPlan(t, cfg, peers, own, hops, got)
	})
}

// holder is who has a key, and of which families.
type holder struct {
	name string
	v6   map[bool]bool
}

func checkPlan(t *rapid.T, cfg MeshConfig, peers []Peer, own map[netip.Addr]bool, hops map[netip.Addr]hop, got plan) {
	refusedPeers, used, ends := map[netip.Prefix]bool{}, map[PublicKey]*holder{}, map[PublicKey]wireGuardPeer{}
	for _, r := range got.refused {
		if r.Reason != ReasonNotEncrypted {
			t.Fatalf("refused: %v", r)
		}
		refusedPeers[r.PodCIDR] = true
	}
	for _, w := range got.wireGuardPeers {
		ends[w.key] = w
	}
	if len(ends) != len(got.wireGuardPeers) {
		t.Fatal("two peers of one key")
	}
	for _, p := range peers {
		f := got.of(p.NodeIP)
		r, routed := f.routes[routeKey{unix.RT_TABLE_MAIN, p.PodCIDR}]
		_, addressed := f.routes[routeKey{peersTable, host(p.NodeIP)}]
		if p.Name == cfg.Node && p.isNode() {
			if routed {
				t.Fatalf("the node leads to itself: %v", p)
			}
			continue
		}
		if own[p.NodeIP] {
			if p.isNode() && routed || addressed {
				t.Fatalf("the machine leads to itself: %v", p)
			}
			continue
		}
		want := cfg.wayTo(p, hops[p.NodeIP])
		if has := used[p.Key]; want == encrypted && has != nil && (has.name != p.Name || has.v6[p.NodeIP.Is6()]) {
			want = refused
		}
		if want == encrypted {
			if used[p.Key] == nil {
				used[p.Key] = &holder{p.Name, map[bool]bool{}}
			}
			used[p.Key].v6[p.NodeIP.Is6()] = true
			if !slices.Contains(ends[p.Key].allowed, p.PodCIDR) {
				t.Fatalf("%v may not send: %v", p, ends[p.Key])
			}
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
		end, overhead := p.NodeIP, 0
		switch want {
		case refused:
			continue
		case tunnelled:
			overhead = vxlanOverhead + outerHeader(end)
		case encrypted:
			end = ends[p.Key].endpoint.Addr()
			overhead = wireGuardOverhead + outerHeader(end)
		}
		if outer := hops[end].mtu; outer > 0 && (got.mtu > outer-overhead || r.mtu > outer-overhead) {
			t.Fatalf("%v: pods may send %d and the route takes %d, but %d fit", p, got.mtu, r.mtu, outer-overhead)
		}
	}
	for key, has := range used {
		if ends[key].endpoint.Addr().Is6() && has.v6[false] {
			t.Fatalf("%v is reached by IPv6 though there is IPv4", ends[key])
		}
	}
	for _, f := range got.families {
		if len(f.vxlanPeers) > 0 && !f.vxlan {
			t.Fatal("peers of a tunnel that there is not")
		}
		if len(f.vxlanPeers)+len(got.wireGuardPeers) > 0 && f.guard.empty() {
			t.Fatal("a tunnel without a guard")
		}
	}
	if got.mtu < minMTU {
		t.Fatalf("pods cannot have IPv6 with %d", got.mtu)
	}
}

// Nodes say of themselves which addresses they have; what is another's stays so.
func TestAdmit(t *testing.T) {
	peer := func(name, ip, pods string) Peer {
		return Peer{Name: name, NodeIP: netip.MustParseAddr(ip), PodCIDR: netip.MustParsePrefix(pods)}
	}
	cfg := MeshConfig{Pods: rangesBoth.Pods, Services: rangesBoth.Services, Node: "me", NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
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
	}, map[netip.Addr]bool{cfg.NodeIPs[0]: true})
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
	if text := strings.Join(names, ", "); text != "one 10.42.2.0/24, two 10.42.9.0/24,  invalid Prefix" || ofFamily(pods, false) != podCIDR(1) {
		t.Errorf("admitted: %s; own pods %s", text, pods)
	}
	if text := strings.Join(refusals, " "); text != "mine same part all more other pod service many" {
		t.Errorf("refused: %s", text)
	}
}

// TestSameLinkAddress: a node whose end of the tunnel would be another's is not led to.
func TestSameLinkAddress(t *testing.T) {
	one, two := netip.MustParseAddr("2001:db8::7:3cd2"), netip.MustParseAddr("2001:db8::10:fc7a")
	mac := vxlanMAC(one)
	if mac.String() != vxlanMAC(two).String() || mac[0]&3 != 2 {
		t.Fatalf("%s and %s", mac, vxlanMAC(two))
	}
	if got, want := linkLocal([]byte{0x06, 0x11, 0x22, 0x33, 0x44, 0x55}).String(), "fe80::411:22ff:fe33:4455"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	node := func(n int, ip netip.Addr) Peer {
		return Peer{Name: fmt.Sprint("n", n), NodeIP: ip, PodCIDR: ofFamily(podCIDRs(n, rangesBoth), true)}
	}
	cfg := MeshConfig{Pods: rangesBoth.Pods, Services: rangesBoth.Services, NodeIPs: []netip.Addr{netip.MustParseAddr("2001:db8::1")}, Tunnel: TunnelAlways}
	got := cfg.plan([]Peer{node(1, one), node(2, two), node(3, netip.MustParseAddr("2001:db8::3")), {NodeIP: two}}, nil, nil, nil)
	if f := got.of(one); !slices.Equal(f.vxlanPeers, []netip.Addr{one, netip.MustParseAddr("2001:db8::3")}) || len(got.refused) != 1 || got.refused[0].Name != "n2" || got.refused[0].Reason != ReasonBadAddresses {
		t.Errorf("%v, refused %+v", f.vxlanPeers, got.refused)
	}
	cfg.NodeIPs[0] = two // the machine itself has the other one
	if got := cfg.plan([]Peer{node(1, one)}, nil, nil, nil); len(got.of(one).routes) > 0 || len(got.refused) != 1 {
		t.Errorf("%+v", got.refused)
	}
}

// A Node that is left from before a machine was renamed keeps nothing from the new one.
func TestRenamedNode(t *testing.T) {
	old := Peer{Name: "old", NodeIP: siteIP(0, 2), PodCIDR: podCIDR(2)}
	renamed := Peer{Name: "new", NodeIP: siteIP(0, 2), PodCIDR: podCIDR(3), Key: testKey(t).Public()}
	cfg := MeshConfig{Pods: rangesBoth.Pods, Services: rangesBoth.Services, Node: "me", NodeIPs: []netip.Addr{siteIP(0, 1)}, Tunnel: TunnelAuto, Key: testKey(t)}
	got := cfg.plan([]Peer{old, renamed}, nil, map[netip.Addr]hop{old.NodeIP: {link: 2, onLink: true, mtu: 1500}}, nil)
	if r := got.of(old.NodeIP).routes[routeKey{peersTable, host(old.NodeIP)}]; r.way != encrypted || len(got.wireGuardPeers) != 1 || len(got.wireGuardPeers[0].allowed) != 2 || len(got.refused) != 1 {
		t.Errorf("%+v %+v %+v", r, got.wireGuardPeers, got.refused)
	}
}

func TestMergedRanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "IPv6")
		var in []addrRange
		inside := map[netip.Addr]bool{}
		for range rapid.IntRange(0, 6).Draw(t, "ranges") {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, 0, rapid.Byte().Draw(t, "address")}), rapid.IntRange(25, 32).Draw(t, "bits")).Masked()
			if v6 {
				p = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 15: p.Addr().As4()[3]}), p.Bits()+96)
			}
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
