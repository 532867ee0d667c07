package network

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"
)

// Protocol of a service's port, as in the IP header.
type Protocol uint8

// The protocols that the proxy handles.
const (
	TCP  Protocol = unix.IPPROTO_TCP
	UDP  Protocol = unix.IPPROTO_UDP
	SCTP Protocol = unix.IPPROTO_SCTP
)

// String names the protocol.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	default:
		return fmt.Sprintf("protocol %d", uint8(p))
	}
}

// AnyNodeAddress in place of a service's address makes its port a node port: it is
// served at every address of the node.
var AnyNodeAddress = netip.IPv4Unspecified()

// State is everything that a Proxy does.
type State struct {
	Services []Service
}

// Service is one port of one address.
type Service struct {
	IP    netip.Addr
	Port  uint16
	Proto Protocol
	// Affinity sends a client to the same endpoint until it has made no connection for
	// that long. Zero: each connection goes anywhere.
	Affinity time.Duration
	// Local: the node itself listens at the address. Endpoints are not looked at.
	Local bool
	// Masquerade hides the clients' addresses behind the node's, so that the answers
	// come back by way of this node wherever the endpoint is.
	Masquerade bool
	// Endpoints to choose from; none refuses connections.
	Endpoints []netip.AddrPort
	// NodeLocal: Endpoints are those of this node alone, and without one connections
	// from outside are dropped, so that whoever balances load tries another node.
	// Clients on this node, pods and the node itself, have the Inside ones.
	NodeLocal bool
	Inside    []netip.AddrPort
	// Sources are the addresses that may connect; empty means all.
	Sources []netip.Prefix
}

// maxEndpoints of one service's port: the number shares 32 bits with the slot.
const maxEndpoints = 1<<16 - 1

// portKey names a service's port.
type portKey struct {
	ip    netip.Addr
	proto Protocol
	port  uint16
}

// bytes is the key as it lies in registers: each field padded to four bytes.
func (k portKey) bytes() []byte {
	out := make([]byte, 0, 32)
	out = append(out, k.ip.AsSlice()...)
	out = append(out, byte(k.proto), 0, 0, 0)
	return append(out, portBytes(k.port)...)
}

func portBytes(port uint16) []byte {
	return append(binary.BigEndian.AppendUint16(nil, port), 0, 0)
}

func addrPortBytes(a netip.AddrPort) []byte {
	return append(a.Addr().AsSlice(), portBytes(a.Port())...)
}

// group is a kind of draw: there is one rule for each that is in use. All of it is
// part of the slots' keys: a rule that draws among n finds only services that have n.
type group struct {
	n       uint32
	seconds uint32 // of affinity
	inside  bool
}

// kind is what tells groups of the same number apart.
func (g group) kind() uint32 {
	if g.inside {
		return g.seconds | 1<<31
	}
	return g.seconds
}

// base is the first slot of the group.
func (g group) base() uint32 { return g.n << 16 }

// slot is the end of the key of an endpoint.
func (g group) slot(i int) []byte {
	return append(binaryutil.NativeEndian.PutUint32(g.kind()), binaryutil.NativeEndian.PutUint32(g.base()+uint32(i))...)
}

// set names a set or map in the kernel; setInfo says what is in it.
type set int

const (
	slots      set = iota // address . protocol . port . kind . slot → endpoint
	serving               // ports of cluster addresses that are not refused
	unserved              // ports of other addresses without endpoints → verdict
	masquerade            // ports whose clients' addresses are hidden
	firewalled            // ports that not everybody may connect to
	allowed               // firewalled port . client, a range
	members               // port . endpoint, with affinity
	hairpins              // endpoint . the same endpoint
	setCount
)

// The verdicts of unserved.
const (
	toRefuse = "refuse"
	toDrop   = "drop"
)

// elements of a set: the value of each key, as they lie in registers. The key of a
// range is its first and its last one.
type elements map[string]string

// table is a state in the form in which the kernel has it.
type table struct {
	sets   [setCount]elements
	groups map[group]bool
	// endpoints are kept to find out when a UDP service's endpoints changed.
	endpoints map[portKey][]netip.AddrPort
}

func newTable() *table {
	t := &table{groups: map[group]bool{}, endpoints: map[portKey][]netip.AddrPort{}}
	for i := range t.sets {
		t.sets[i] = elements{}
	}
	return t
}

// compile checks a state and lays it out.
func compile(s State) (*table, error) {
	t := newTable()
	for i := range s.Services {
		if err := t.add(&s.Services[i]); err != nil {
			return nil, fmt.Errorf("service %s:%d/%s: %w", s.Services[i].IP, s.Services[i].Port, s.Services[i].Proto, err)
		}
	}
	return t, nil
}

func (t *table) add(svc *Service) error {
	key := portKey{svc.IP, svc.Proto, svc.Port}
	if !svc.IP.Is4() || svc.Port == 0 || (svc.Proto != TCP && svc.Proto != UDP && svc.Proto != SCTP) {
		return fmt.Errorf("not an IPv4 address with a TCP, UDP or SCTP port")
	}
	if _, twice := t.endpoints[key]; twice {
		return fmt.Errorf("given twice")
	}
	at := string(key.bytes())
	if svc.Local {
		t.endpoints[key] = nil
		t.sets[serving][at] = ""
		return nil
	}
	here, inside := distinct(svc.Endpoints), distinct(svc.Inside)
	t.endpoints[key] = distinct(append(slices.Clone(here), inside...))
	seconds := uint32(svc.Affinity / time.Second)
	if err := t.draw(at, group{n: uint32(len(here)), seconds: seconds}, here); err != nil {
		return err
	}
	if svc.NodeLocal {
		if err := t.draw(at, group{n: uint32(len(inside)), seconds: seconds, inside: true}, inside); err != nil {
			return err
		}
	}
	switch {
	case ServiceCIDR.Contains(svc.IP) && len(here) > 0:
		t.sets[serving][at] = ""
	case ServiceCIDR.Contains(svc.IP): // refused by its range
	case len(here) == 0 && len(inside) > 0:
		t.sets[unserved][at] = toDrop
	case len(here) == 0:
		t.sets[unserved][at] = toRefuse
	}
	if svc.Masquerade {
		t.sets[masquerade][at] = ""
	}
	return t.allow(at, svc.Sources)
}

// draw adds the endpoints of a group.
func (t *table) draw(at string, g group, endpoints []netip.AddrPort) error {
	if len(endpoints) == 0 {
		return nil
	}
	if len(endpoints) > maxEndpoints {
		return fmt.Errorf("%d endpoints, more than %d", len(endpoints), maxEndpoints)
	}
	t.groups[g] = true
	for i, e := range endpoints {
		if !e.Addr().Is4() || e.Port() == 0 {
			return fmt.Errorf("endpoint %s is not an IPv4 address with a port", e)
		}
		to := string(addrPortBytes(e))
		t.sets[slots][at+string(g.slot(i))] = to
		if g.seconds > 0 {
			t.sets[members][at+to] = ""
		}
		ip := string(e.Addr().AsSlice())
		t.sets[hairpins][ip+ip] = ""
	}
	return nil
}

func (t *table) allow(at string, sources []netip.Prefix) error {
	if len(sources) == 0 {
		return nil
	}
	t.sets[firewalled][at] = ""
	for _, p := range outermost(sources) {
		if !p.Addr().Is4() {
			return fmt.Errorf("source range %s is not IPv4", p)
		}
		first := p.Addr().As4()
		last := first
		binary.BigEndian.PutUint32(last[:], binary.BigEndian.Uint32(first[:])|uint32(1<<(32-p.Bits())-1))
		t.sets[allowed][at+string(first[:])+at+string(last[:])] = ""
	}
	return nil
}

// outermost leaves out the ranges that lie in others: the kernel takes none that
// overlap.
func outermost(ranges []netip.Prefix) []netip.Prefix {
	all := make([]netip.Prefix, len(ranges))
	for i, p := range ranges {
		all[i] = p.Masked()
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	var out []netip.Prefix
	for _, p := range all {
		if !slices.ContainsFunc(out, p.Overlaps) {
			out = append(out, p)
		}
	}
	return out
}

func distinct(endpoints []netip.AddrPort) []netip.AddrPort {
	out := slices.Clone(endpoints)
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// change is the difference between two tables.
type change struct {
	del, add [setCount][]string // keys
	rules    bool
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
	for i := range setCount {
		if len(c.del[i])+len(c.add[i]) > 0 {
			return false
		}
	}
	return !c.rules
}

// diff returns what leads from old to t. An element whose value changed is deleted
// and added.
func (t *table) diff(old *table) *change {
	c := &change{rules: !maps.Equal(old.groups, t.groups)}
	for i := range t.sets {
		before, now := old.sets[i], t.sets[i]
		for k, v := range before {
			if next, ok := now[k]; !ok || next != v {
				c.del[i] = append(c.del[i], k)
			}
		}
		for k, v := range now {
			if was, ok := before[k]; !ok || was != v {
				c.add[i] = append(c.add[i], k)
			}
		}
	}
	for key, was := range old.endpoints {
		if key.proto != UDP {
			continue
		}
		now := t.endpoints[key]
		for _, e := range was {
			if _, kept := slices.BinarySearchFunc(now, e, netip.AddrPort.Compare); !kept {
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

// sortedGroups puts the rules in a fixed order.
func (t *table) sortedGroups() []group {
	return slices.SortedFunc(maps.Keys(t.groups), func(a, b group) int {
		if a.n != b.n {
			return int(a.n) - int(b.n)
		}
		return int(int64(a.kind()) - int64(b.kind()))
	})
}

// timeouts are the lifetimes of affinity in use, in seconds.
func (t *table) timeouts() []uint32 {
	seen := map[uint32]bool{}
	for g := range t.groups {
		if g.seconds > 0 {
			seen[g.seconds] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}
