package network

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// plan puts together what the ways to the peers take. mtus are those of the links with the
// machine's own addresses.
func (c MeshConfig) plan(peers []Peer, own map[netip.Addr]bool, hops map[netip.Addr]hop, mtus map[netip.Addr]int) plan {
	b := planning{cfg: c, hops: hops, hosts: map[netip.Addr]bool{}, keys: map[PublicKey]*wireGuardPeer{}, seal: !c.Key.IsZero()}
	admitted, pods, bad := c.admit(peers, own)
	b.out.refused, b.out.mtu, b.peers = bad, lowestOf(mtus), admitted
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		cluster := ofFamily(c.Pods, any.Is6())
		if any.Is6() && !cluster.IsValid() && len(peers) > 0 {
			continue // the kernel may have no IPv6; who leaves looks for what is left
		}
		f := &familyPlan{
			ipFamily: familyOf(any), nodeIP: Same(any, c.NodeIPs), routes: map[routeKey]routeTo{},
			pods: ofFamily(pods, any.Is6()), cluster: cluster,
		}
		f.base = cmp.Or(mtus[f.nodeIP], defaultMTU)
		b.out.families = append(b.out.families, f)
	}
	for _, p := range admitted {
		if f := b.out.of(p.NodeIP); f != nil {
			b.add(f, p)
		}
	}
	for _, p := range b.wireGuard {
		b.out.wireGuardPeers = append(b.out.wireGuardPeers, p.sorted())
	}
	b.finish()
	return b.out
}

// planning is a plan on its way.
type planning struct {
	cfg   MeshConfig
	out   plan
	peers []Peer
	hops  map[netip.Addr]hop
	// hosts are the addresses that there is a way to.
	hosts     map[netip.Addr]bool
	keys      map[PublicKey]*wireGuardPeer
	wireGuard []*wireGuardPeer
	seal      bool
}

// add takes a peer up.
func (b *planning) add(f *familyPlan, p Peer) {
	at, first := b.hops[p.NodeIP], !b.hosts[p.NodeIP]
	if !p.isNode() && !first {
		return
	}
	w := b.cfg.wayTo(p, at)
	reason, why := ReasonNotEncrypted, "traffic of pods is to be encrypted, but its worker runs without --encrypt"
	if has := b.keys[p.Key]; w == encrypted && has != nil && !has.takes(p) {
		w, why = refused, "traffic of pods is to be encrypted, but its key is another node's"
	}
	// The kernel does not take outer packets of VXLAN apart if they are IPv6.
	if outer, needed := cmp.Or(at.mtu, f.base), minMTU+vxlanOverhead+outerHeader(p.NodeIP); w == tunnelled && p.NodeIP.Is6() && outer < needed {
		w = unmanaged
		if p.isNode() {
			w, reason, why = refused, ReasonTooSmall, fmt.Sprintf("IPv6 in VXLAN needs an MTU of %d, and that to %s is %d", needed, p.NodeIP, outer)
		}
	}
	// A Node without a key may be what is left of one that had this address before.
	b.hosts[p.NodeIP] = b.hosts[p.NodeIP] || w != refused
	to := routeTo{way: w}
	switch w {
	case direct:
		to.via, to.link = p.NodeIP, at.link
		b.out.mtu = lowest(b.out.mtu, at.mtu)
	case tunnelled:
		to.via, to.mtu = p.NodeIP, b.inside(p.NodeIP, f.base, vxlanOverhead)
		f.vxlanMTU, b.out.mtu = max(f.vxlanMTU, to.mtu), min(b.out.mtu, to.mtu)
		if first {
			f.vxlanPeers = append(f.vxlanPeers, p.NodeIP)
		}
	case encrypted:
		to.mtu = b.encrypt(f, p, first)
	case refused:
		b.out.refused = append(b.out.refused, Refusal{p, reason, why})
	case unmanaged:
		b.out.mtu = lowest(b.out.mtu, at.mtu)
	}
	if p.isNode() && w != unmanaged {
		f.routes[routeKey{unix.RT_TABLE_MAIN, p.PodCIDR.Masked()}] = to
	}
	if first && (w == tunnelled || w == encrypted || w == refused) {
		f.routes[routeKey{peersTable, host(p.NodeIP)}] = to
	}
	f.guard.add(p, b.seal)
}

// encrypt takes up a node's addresses of one family and returns the MTU of its route. All
// of a node's packets go between the same two addresses, of IPv4 where there are such.
func (b *planning) encrypt(f *familyPlan, p Peer, first bool) int {
	outer, base := p.NodeIP, f.base
	if v4 := netip.IPv4Unspecified(); p.NodeIP.Is6() && Same(v4, b.cfg.NodeIPs).IsValid() {
		for _, o := range b.peers {
			if o.Name == p.Name && o.Key == p.Key && o.NodeIP.Is4() {
				outer, base = o.NodeIP, b.out.of(v4).base
				break
			}
		}
	}
	has := b.keys[p.Key]
	if has == nil {
		has = &wireGuardPeer{key: p.Key, name: p.Name, endpoint: netip.AddrPortFrom(outer, wireGuardPort)}
		b.keys[p.Key], b.wireGuard = has, append(b.wireGuard, has)
	}
	has.add(p, first)
	mtu := b.inside(outer, base, wireGuardOverhead)
	b.out.wireGuardMTU, b.out.mtu = max(b.out.wireGuardMTU, mtu), min(b.out.mtu, mtu)
	return mtu
}

// finish adds what is there whoever the peers are.
func (b *planning) finish() {
	b.out.wireGuard = b.seal
	for _, f := range b.out.families {
		has := func(a netip.Addr) bool { return familyOf(a) == f.ipFamily }
		if b.seal && f.cluster.IsValid() {
			// What is not known yet, or not any more, is not sent by the default route.
			f.routes[sealed(f.cluster)] = routeTo{way: refused}
		}
		// A node is ready for peers that tunnel to it even if it need not do so itself:
		// the two may see the network between them differently.
		known := slices.ContainsFunc(slices.Collect(maps.Keys(b.hosts)), has)
		f.vxlan = len(f.vxlanPeers) > 0 || b.cfg.Tunnel != TunnelNever && !b.seal && !b.cfg.Server && known && f.nodeIP.IsValid()
		if f.vxlanMTU == 0 {
			f.vxlanMTU = b.least(f.base - vxlanOverhead - outerHeader(f.nodeIP))
		}
		f.guard.finish(f, b.seal && f.cluster.IsValid())
	}
	if b.out.wireGuardMTU == 0 && b.seal {
		v4 := Same(netip.IPv4Unspecified(), b.cfg.NodeIPs)
		b.out.wireGuardMTU = b.least(b.out.mtu - wireGuardOverhead - outerHeader(cmp.Or(v4, netip.IPv6Unspecified())))
	}
}

// inside is what fits into an encapsulated packet to an address, by the link with the MTU
// base where there is no way at present.
func (b *planning) inside(to netip.Addr, base, overhead int) int {
	return b.least(cmp.Or(b.hops[to].mtu, base) - overhead - outerHeader(to))
}

// least is an MTU with which pods can have IPv6, if they are to: what does not fit then, is
// sent in two outer packets, of IPv4 or of WireGuard.
func (b *planning) least(mtu int) int {
	if hasIPv6(b.cfg.Pods) {
		return max(mtu, minMTU)
	}
	return mtu
}

// outerHeader is the length of the IP header of an address's family.
func outerHeader(a netip.Addr) int {
	if a.Is6() {
		return 40
	}
	return 20
}

// lowestOf is the smallest MTU of those with which the machine's own addresses are.
func lowestOf(mtus map[netip.Addr]int) int {
	out := 0
	for _, mtu := range mtus {
		out = lowest(mtu, out)
	}
	return cmp.Or(out, defaultMTU)
}

// lowest is the smaller MTU, unless the second one is not known.
func lowest(a, b int) int {
	if b == 0 {
		return a
	}
	return min(a, b)
}
