package serviceloadbalancer

import (
	"fmt"
	"net/netip"
	"strings"
)

// Pool is a set of addresses to give out, in order.
type Pool []Range

// Range has all addresses from First to Last.
type Range struct{ First, Last netip.Addr }

// ParsePool reads ranges with commas between, each a CIDR, two addresses with a dash
// between, or one address. Of a CIDR of more than two addresses the first and the
// last are left out: they mean the network and all of it.
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
		if !prefix.Addr().Is4() {
			return Range{}, fmt.Errorf("not IPv4")
		}
		return ofPrefix(prefix.Masked()), nil
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
	if !first.Is4() || !last.Is4() || last.Less(first) {
		return Range{}, fmt.Errorf("not a range of IPv4 addresses")
	}
	return Range{first, last}, nil
}

func ofPrefix(p netip.Prefix) Range {
	last := p.Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		last[bit/8] |= 1 << (7 - bit%8)
	}
	r := Range{p.Addr(), netip.AddrFrom4(last)}
	if p.Bits() < 31 {
		r.First, r.Last = r.First.Next(), r.Last.Prev()
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

// free is the first address that is not taken.
func (p Pool) free(taken map[netip.Addr]bool) (netip.Addr, bool) {
	for _, r := range p {
		for ip := r.First; ; ip = ip.Next() {
			if !taken[ip] {
				return ip, true
			}
			if ip == r.Last {
				break
			}
		}
	}
	return netip.Addr{}, false
}
