package serviceloadbalancer

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Pool is a set of addresses to give out, in order.
type Pool []Range

// Range has all addresses from First to Last.
type Range struct{ First, Last netip.Addr }

// ParsePool reads ranges with commas between, each a CIDR, two addresses with a dash
// between, or one address. Of an IPv4 CIDR of more than two addresses the first and the
// last are left out: they mean the network and all of it. Of an IPv6 one the first is: it
// means the network's routers (RFC 4291, section 2.6.1).
func ParsePool(text string) (Pool, error) {
	var out Pool
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		r, err := parseRange(part)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", part, err)
		}
		out = append(out, r)
	}
	return out, nil
}

func parseRange(text string) (Range, error) {
	if prefix, err := netip.ParsePrefix(text); err == nil {
		return checked(ofPrefix(prefix.Masked()))
	}
	from, to, isRange := strings.Cut(text, "-")
	if !isRange {
		to = from
	}
	first, err := netip.ParseAddr(strings.TrimSpace(from))
	if err != nil {
		return Range{}, err
	}
	last, err := netip.ParseAddr(strings.TrimSpace(to))
	if err != nil {
		return Range{}, err
	}
	return checked(Range{first, last})
}

func checked(r Range) (Range, error) {
	switch {
	case r.First.Is4() != r.Last.Is4() || r.First.Zone()+r.Last.Zone() != "" || r.First.Is4In6() || r.Last.Is4In6():
		return Range{}, fmt.Errorf("not addresses of one family")
	case r.Last.Less(r.First):
		return Range{}, fmt.Errorf("the last address is before the first")
	case !r.First.IsGlobalUnicast() || !r.Last.IsGlobalUnicast():
		return Range{}, fmt.Errorf("not addresses that a machine can have")
	}
	return r, nil
}

func ofPrefix(p netip.Prefix) Range {
	last := p.Addr().AsSlice()
	for bit := p.Bits(); bit < 8*len(last); bit++ {
		last[bit/8] |= 1 << (7 - bit%8)
	}
	r := Range{First: p.Addr()}
	r.Last, _ = netip.AddrFromSlice(last)
	if p.Bits() < 8*len(last)-1 {
		r.First = r.First.Next()
		if r.First.Is4() {
			r.Last = r.Last.Prev()
		}
	}
	return r
}

// Contains tells whether an address is in the pool.
func (p Pool) Contains(ip netip.Addr) bool {
	for _, r := range p {
		if !ip.Less(r.First) && !r.Last.Less(ip) {
			return true
		}
	}
	return false
}

// has tells whether there are addresses of a family.
func (p Pool) has(v6 bool) bool {
	return slices.ContainsFunc(p, func(r Range) bool { return r.First.Is6() == v6 })
}

// free is the first address of a family that is not taken.
func (p Pool) free(v6 bool, taken map[netip.Addr]string) (netip.Addr, bool) {
	for _, r := range p {
		if r.First.Is6() != v6 {
			continue
		}
		for ip := r.First; ; ip = ip.Next() {
			if taken[ip] == "" {
				return ip, true
			}
			if ip == r.Last {
				break
			}
		}
	}
	return netip.Addr{}, false
}
