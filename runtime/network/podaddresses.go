package network

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// fits says that a pod's addresses are those that it would be given here.
func (n *PodNetwork) fits(p Pod) bool {
	return slices.EqualFunc(p.IPs, n.cfg.PodCIDRs, func(a netip.Addr, cidr netip.Prefix) bool { return cidr.Contains(a) }) &&
		slices.Equal(p.IPs, n.addresses(ending(p.IPs[0])))
}

func (n *PodNetwork) hold(p Pod) {
	for _, ip := range p.IPs {
		n.used[ending(ip)] = p.UID
	}
}

func (n *PodNetwork) free(p Pod) {
	for _, ip := range p.IPs {
		if n.used[ending(ip)] == p.UID {
			delete(n.used, ending(ip))
		}
	}
}

// ending is the lower half of an IPv4 address, or as much of an IPv6 one.
func ending(a netip.Addr) uint16 {
	b := a.AsSlice()
	return binary.BigEndian.Uint16(b[len(b)-2:])
}

// numbers are the first and the last number that a pod's addresses may end in, less the
// first two and the last: the network, .1, and the broadcast address. They are those
// of the IPv4 range. Without one they are 256 that follow from the number of the IPv6
// network, so that no two pods of a cluster have the same (see UserBase).
func (n *PodNetwork) numbers() (first, last uint16) {
	if p := ofFamily(n.cfg.PodCIDRs, false); p.IsValid() {
		first = ending(p.Addr())
		return first + 1, first + uint16(1<<(32-max(p.Bits(), 16))-1) - 1
	}
	p := n.cfg.PodCIDRs[0]
	b := p.Addr().As16()
	subnet := b[(p.Bits()-1)/8] >> ((8 - p.Bits()%8) % 8) // the last bits of the network
	first = uint16(subnet) << 8
	return first + 1, first + 254
}

// addresses are those of all families that end in a number.
func (n *PodNetwork) addresses(number uint16) []netip.Addr {
	out := make([]netip.Addr, 0, len(n.cfg.PodCIDRs))
	for _, p := range n.cfg.PodCIDRs {
		b := p.Addr().AsSlice()
		binary.BigEndian.PutUint16(b[len(b)-2:], number)
		a, _ := netip.AddrFromSlice(b)
		out = append(out, a)
	}
	return out
}

// allocate walks on from the last number given out, so that an address rests for
// as long as possible before another pod gets it.
func (n *PodNetwork) allocate() ([]netip.Addr, error) {
	first, last := n.numbers()
	number := n.last
	for range int(last - first) {
		if number++; number <= first || number > last {
			number = first + 1
		}
		if _, taken := n.used[number]; !taken {
			n.last = number
			return n.addresses(number), nil
		}
	}
	return nil, fmt.Errorf("all %d addresses of %s are taken", last-first, n.cfg.PodCIDRs[0])
}
