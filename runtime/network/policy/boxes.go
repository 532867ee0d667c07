package policy

import (
	"cmp"
	"net/netip"
	"slices"
)

// boxes is the union of rules about one family as boxes without a point in common, which is what a set
// of ranges in nftables can have: the addresses are cut where a rule begins or ends,
// each piece has the ports of the rules that cover it, and neighbours with the same
// ports are one.
func boxes(rules []rule) []Box {
	type edge struct {
		at    netip.Addr // the first address that it concerns; invalid after the last one
		rule  int
		delta int
	}
	var edges []edge
	for i, r := range rules {
		if len(r.ports) == 0 {
			continue
		}
		for _, s := range r.addrs {
			edges = append(edges, edge{s.from, i, 1}, edge{s.to.Next(), i, -1})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return compareEnds(a.at, b.at) })
	covering := make([]int, len(rules)) // how many spans of each rule cover the piece
	var out []Box
	var open []ports // of the piece that ends at the next edge
	var from netip.Addr
	finish := func(end netip.Addr) {
		for _, p := range open {
			last := end.Prev()
			if !end.IsValid() {
				last = prefix(netip.PrefixFrom(from, 0)).to
			}
			out = append(out, Box{from, last, p.firstProto, p.proto, p.first, p.last})
		}
	}
	for i := 0; i < len(edges); {
		at := edges[i].at
		for ; i < len(edges) && edges[i].at == at; i++ {
			covering[edges[i].rule] += edges[i].delta
		}
		var all []ports
		for r, n := range covering {
			if n > 0 {
				all = append(all, rules[r].ports...)
			}
		}
		if now := disjoint(all); !slices.Equal(now, open) {
			finish(at)
			open, from = now, at
		}
	}
	return out
}

// compareEnds compares addresses, of which an invalid one is after all others.
func compareEnds(a, b netip.Addr) int {
	if a.IsValid() != b.IsValid() {
		if a.IsValid() {
			return -1
		}
		return 1
	}
	return a.Compare(b)
}

// disjoint is the union of ranges of ports, in order and without overlap. All ports of
// all protocols are one range; the others are of one protocol each.
func disjoint(all []ports) []ports {
	if slices.Contains(all, anyPort[0]) {
		return anyPort
	}
	slices.SortFunc(all, func(a, b ports) int { return cmp.Or(cmp.Compare(a.proto, b.proto), cmp.Compare(a.first, b.first)) })
	var out []ports
	for _, p := range all {
		if n := len(out); n > 0 && out[n-1].proto == p.proto && uint32(p.first) <= uint32(out[n-1].last)+1 {
			out[n-1].last = max(out[n-1].last, p.last)
			continue
		}
		out = append(out, p)
	}
	return out
}
