package network

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Protocol of a service's port, as in the IP header.
type Protocol uint8

// The protocols that the proxy handles.
const (
	TCP Protocol = unix.IPPROTO_TCP
	UDP Protocol = unix.IPPROTO_UDP
)

// String names the protocol.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	default:
		return fmt.Sprintf("protocol %d", uint8(p))
	}
}

// State is everything that a Proxy does.
type State struct {
	Services []Service
}

// Service is one port of one address.
type Service struct {
	IP    netip.Addr
	Port  uint16
	Proto Protocol
	// Affinity sends a client to the same endpoint for as long as the endpoints stay
	// the same.
	Affinity bool
	// Local: the node itself listens at the address. Endpoints are not looked at.
	Local bool
	// Endpoints to choose from; none refuses connections.
	Endpoints []netip.AddrPort
}

// maxEndpoints of one service's port: the number shares 32 bits with the slot.
const maxEndpoints = 1<<15 - 1

// portKey names a service's port.
type portKey struct {
	ip    netip.Addr
	proto Protocol
	port  uint16
}

// slotKey names one endpoint of a service's port. The number of endpoints is part
// of the key: a rule that draws among n finds only services that have n.
type slotKey struct {
	portKey
	slot uint32
}

// group is a kind of draw: there is one rule for each that is in use.
type group struct {
	n        uint32
	affinity bool
}

// base is the first slot of the group.
func (g group) base() uint32 {
	b := g.n << 16
	if g.affinity {
		b |= 1 << 31
	}
	return b
}

// table is a state in the form in which the kernel has it.
type table struct {
	slots    map[slotKey]netip.AddrPort
	serving  map[portKey]bool
	hairpins map[netip.Addr]bool
	groups   map[group]bool
	// endpoints are kept to find out when a UDP service's endpoints changed.
	endpoints map[portKey][]netip.AddrPort
}

func newTable() *table {
	return &table{
		slots: map[slotKey]netip.AddrPort{}, serving: map[portKey]bool{}, hairpins: map[netip.Addr]bool{},
		groups: map[group]bool{}, endpoints: map[portKey][]netip.AddrPort{},
	}
}

// compile checks a state and lays it out.
func compile(s State) (*table, error) {
	t := newTable()
	for _, svc := range s.Services {
		key := portKey{svc.IP, svc.Proto, svc.Port}
		name := fmt.Sprintf("service %s:%d/%s", svc.IP, svc.Port, svc.Proto)
		if !svc.IP.Is4() || svc.Port == 0 || (svc.Proto != TCP && svc.Proto != UDP) {
			return nil, fmt.Errorf("%s: not an IPv4 address with a TCP or UDP port", name)
		}
		if _, twice := t.endpoints[key]; twice {
			return nil, fmt.Errorf("%s: given twice", name)
		}
		if len(svc.Endpoints) > maxEndpoints {
			return nil, fmt.Errorf("%s: %d endpoints, more than %d", name, len(svc.Endpoints), maxEndpoints)
		}
		if svc.Local {
			t.serving[key] = true
			continue
		}
		endpoints := slices.Clone(svc.Endpoints)
		slices.SortFunc(endpoints, netip.AddrPort.Compare)
		endpoints = slices.Compact(endpoints)
		t.endpoints[key] = endpoints
		if len(endpoints) == 0 {
			continue
		}
		g := group{n: uint32(len(endpoints)), affinity: svc.Affinity}
		t.groups[g] = true
		t.serving[key] = true
		for i, e := range endpoints {
			if !e.Addr().Is4() || e.Port() == 0 {
				return nil, fmt.Errorf("%s: endpoint %s is not an IPv4 address with a port", name, e)
			}
			t.slots[slotKey{key, g.base() + uint32(i)}] = e
			t.hairpins[e.Addr()] = true
		}
	}
	return t, nil
}

// change is the difference between two tables.
type change struct {
	delSlots, addSlots       []slotKey
	delServing, addServing   []portKey
	delHairpins, addHairpins []netip.Addr
	rules                    bool
	// stale are the UDP flows that must not go on as they did.
	stale []staleFlow
}

// staleFlow is a service's port with the endpoint that it no longer has. An
// endpoint that is not valid stands for "was not translated".
type staleFlow struct {
	service  portKey
	endpoint netip.Addr
}

func (c *change) empty() bool {
	return len(c.delSlots)+len(c.addSlots)+len(c.delServing)+len(c.addServing)+len(c.delHairpins)+len(c.addHairpins) == 0 && !c.rules
}

// diff returns what leads from old to t. An endpoint that changed is deleted and
// added.
func (t *table) diff(old *table) *change {
	c := &change{}
	for k, v := range old.slots {
		if now, ok := t.slots[k]; !ok || now != v {
			c.delSlots = append(c.delSlots, k)
		}
	}
	for k, v := range t.slots {
		if was, ok := old.slots[k]; !ok || was != v {
			c.addSlots = append(c.addSlots, k)
		}
	}
	c.delServing, c.addServing = diffKeys(old.serving, t.serving)
	c.delHairpins, c.addHairpins = diffKeys(old.hairpins, t.hairpins)
	gone, new := diffKeys(old.groups, t.groups)
	c.rules = len(gone)+len(new) > 0
	for key, was := range old.endpoints {
		if key.proto != UDP {
			continue
		}
		now := t.endpoints[key]
		for _, e := range was {
			if !slices.ContainsFunc(now, func(n netip.AddrPort) bool { return n == e }) {
				c.stale = append(c.stale, staleFlow{key, e.Addr()})
			}
		}
	}
	for key, now := range t.endpoints {
		if key.proto == UDP && len(now) > 0 && len(old.endpoints[key]) == 0 {
			c.stale = append(c.stale, staleFlow{service: key})
		}
	}
	return c
}

func diffKeys[K comparable](old, now map[K]bool) (gone, added []K) {
	for k := range old {
		if !now[k] {
			gone = append(gone, k)
		}
	}
	for k := range now {
		if !old[k] {
			added = append(added, k)
		}
	}
	return gone, added
}

// sortedGroups puts the rules in a fixed order.
func (t *table) sortedGroups() []group {
	out := make([]group, 0, len(t.groups))
	for g := range t.groups {
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b group) int { return int(int64(a.base()) - int64(b.base())) })
	return out
}
