package network

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// Ranges are the addresses of a cluster. Each list has one range, or one of IPv4 and one
// of IPv6; all lists have the same families in the same order, and what is of the first
// one is a node's, pod's or service's address where there is only one to be told.
type Ranges struct {
	// Nodes is the network of the hub and the nodes, where a hub joins them.
	Nodes []netip.Prefix `json:"nodes,omitempty"`
	// Pods holds all pods of the cluster.
	Pods []netip.Prefix `json:"pods"`
	// Services holds all addresses of services.
	Services []netip.Prefix `json:"services"`
}

const (
	// firstNode is what the address of worker 0 is above that of the nodes' network.
	firstNode = 10
	// dnsService is the number of the service address at which names are answered.
	dnsService = 10
	// lastInNodes is the last address of an IPv4 network of 256.
	lastInNodes = 254
)

// Hub are the server's addresses in the nodes' network.
func (r Ranges) Hub() []netip.Addr { return each(r.Nodes, 1) }

// Node are the addresses of worker n, counted from 1.
func (r Ranges) Node(n int) []netip.Addr { return each(r.Nodes, uint16(firstNode+n)) }

// SpareNodes are the first and the last address that neither the hub nor any of the
// first n workers has, in a part of the nodes' network of this family that is large
// enough for all. Both are invalid without one.
func (r Ranges) SpareNodes(n int, v6 bool) (first, last netip.Addr) {
	p := ofFamily(r.Nodes, v6)
	if !p.IsValid() {
		return netip.Addr{}, netip.Addr{}
	}
	return nth(p, uint16(firstNode+n+1)), nth(p, lastInNodes)
}

// API are the addresses of the service of the API itself.
func (r Ranges) API() []netip.Addr { return each(r.Services, 1) }

// DNS are the service addresses at which every node answers names itself.
func (r Ranges) DNS() []netip.Addr { return each(r.Services, dnsService) }

// HasIPv6 says whether pods and services have IPv6 addresses.
func (r Ranges) HasIPv6() bool { return hasIPv6(r.Pods) }

func each(ranges []netip.Prefix, n uint16) []netip.Addr {
	out := make([]netip.Addr, 0, len(ranges))
	for _, p := range ranges {
		out = append(out, nth(p, n))
	}
	return out
}

// nth is the address n above the range's first. The range has at least 16 bits after its
// last one that is set, or is large enough for n.
func nth(p netip.Prefix, n uint16) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	low := b[len(b)-2:]
	binary.BigEndian.PutUint16(low, binary.BigEndian.Uint16(low)+n)
	out, _ := netip.AddrFromSlice(b)
	return out
}

// ofFamily is the range of a family, invalid if there is none.
func ofFamily(ranges []netip.Prefix, v6 bool) netip.Prefix {
	for _, p := range ranges {
		if p.Addr().Is6() == v6 {
			return p
		}
	}
	return netip.Prefix{}
}

// Same is the address of the same family as that of p; invalid if there is none.
func Same(p netip.Addr, of []netip.Addr) netip.Addr {
	if i := slices.IndexFunc(of, func(a netip.Addr) bool { return a.Is6() == p.Is6() }); i >= 0 {
		return of[i]
	}
	return netip.Addr{}
}

func hasIPv6(ranges []netip.Prefix) bool { return ofFamily(ranges, true).IsValid() }

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

const familyIPv4, familyIPv6 = netlink.FAMILY_V4, netlink.FAMILY_V6

// family is the number of an address's family to the kernel.
func family(a netip.Addr) int {
	if a.Is6() {
		return familyIPv6
	}
	return familyIPv4
}
