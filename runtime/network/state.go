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
// served at every IPv4 address of the node. AnyNodeAddress6 is the same for IPv6.
var AnyNodeAddress, AnyNodeAddress6 = netip.IPv4Unspecified(), netip.IPv6Unspecified()

// anyNodeAddress is that of the family of an address.
func anyNodeAddress(v6 bool) netip.Addr {
	if v6 {
		return AnyNodeAddress6
	}
	return AnyNodeAddress
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

// insideKind is the bit of a kind that says inside.
const insideKind = 1 << 31

// kind is what tells groups of the same number apart.
func (g group) kind() uint32 {
	if g.inside {
		return g.seconds | insideKind
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

// element of a set, key and value as they lie in registers. The key of a range is its
// first and its last one.
type element struct {
	set        set
	key, value string
}

// part is what one service's port has in the kernel of its own.
type part struct {
	service  *Service
	elements []element
	groups   []group
	// endpoints are kept to find out when a UDP service's endpoints changed.
	endpoints []netip.AddrPort
}

// table is what a state has of one family in the form in which the kernel has it: a part
// for each service, and what they share. It is not changed once it is made.
type table struct {
	cluster  netip.Prefix // that of the services' own addresses
	parts    map[portKey]*part
	hairpins map[netip.Addr]bool
	groups   map[group]bool
}

func newTable(cluster netip.Prefix) *table {
	return &table{cluster: cluster, parts: map[portKey]*part{}, hairpins: map[netip.Addr]bool{}, groups: map[group]bool{}}
}

// compile checks what a state has of the family of a former one and lays it out. Parts of
// services that are as they were in before are taken over.
func compile(s State, before *table) (*table, error) {
	t := newTable(before.cluster)
	for i := range s.Services {
		svc := &s.Services[i]
		if svc.IP.Is6() != t.cluster.Addr().Is6() {
			continue
		}
		key := portKey{svc.IP, svc.Proto, svc.Port}
		p := before.parts[key]
		var err error
		if p == nil || !p.service.equal(svc) {
			p, err = newPart(key, svc, t.cluster)
		}
		if err == nil && t.parts[key] != nil {
			err = fmt.Errorf("given twice")
		}
		if err != nil {
			return nil, fmt.Errorf("service %s:%d/%s: %w", svc.IP, svc.Port, svc.Proto, err)
		}
		t.parts[key] = p
		for _, e := range p.endpoints {
			t.hairpins[e.Addr()] = true
		}
		for _, g := range p.groups {
			t.groups[g] = true
		}
	}
	return t, nil
}

func (s *Service) equal(o *Service) bool {
	return s.IP == o.IP && s.Port == o.Port && s.Proto == o.Proto && s.Affinity == o.Affinity && s.Local == o.Local &&
		s.Masquerade == o.Masquerade && s.NodeLocal == o.NodeLocal && slices.Equal(s.Endpoints, o.Endpoints) &&
		slices.Equal(s.Inside, o.Inside) && slices.Equal(s.Sources, o.Sources)
}

func newPart(key portKey, svc *Service, cluster netip.Prefix) (*part, error) {
	if !svc.IP.IsValid() || svc.Port == 0 || (svc.Proto != TCP && svc.Proto != UDP && svc.Proto != SCTP) {
		return nil, fmt.Errorf("not an address with a TCP, UDP or SCTP port")
	}
	own := *svc
	own.Endpoints, own.Inside, own.Sources = slices.Clone(svc.Endpoints), slices.Clone(svc.Inside), slices.Clone(svc.Sources)
	p := &part{service: &own}
	at := string(key.bytes())
	if svc.Local {
		p.add(serving, at, "")
		return p, nil
	}
	here, inside := distinct(svc.Endpoints), distinct(svc.Inside)
	p.endpoints = distinct(append(slices.Clone(here), inside...))
	seconds := uint32(svc.Affinity / time.Second)
	if err := p.draw(at, group{n: uint32(len(here)), seconds: seconds}, here); err != nil {
		return nil, err
	}
	if svc.NodeLocal {
		if err := p.draw(at, group{n: uint32(len(inside)), seconds: seconds, inside: true}, inside); err != nil {
			return nil, err
		}
	}
	if seconds > 0 {
		for _, e := range p.endpoints {
			p.add(members, at+string(addrPortBytes(e)), "")
		}
	}
	switch {
	case cluster.Contains(svc.IP) && len(here) > 0:
		p.add(serving, at, "")
	case cluster.Contains(svc.IP): // refused by its range
	case len(here) == 0 && len(inside) > 0:
		p.add(unserved, at, toDrop)
	case len(here) == 0:
		p.add(unserved, at, toRefuse)
	}
	if svc.Masquerade {
		p.add(masquerade, at, "")
	}
	return p, p.allow(at, svc.Sources)
}

func (p *part) add(s set, key, value string) {
	p.elements = append(p.elements, element{s, key, value})
}

// draw adds the endpoints of a group.
func (p *part) draw(at string, g group, endpoints []netip.AddrPort) error {
	if len(endpoints) == 0 {
		return nil
	}
	if len(endpoints) > maxEndpoints {
		return fmt.Errorf("%d endpoints, more than %d", len(endpoints), maxEndpoints)
	}
	p.groups = append(p.groups, g)
	for i, e := range endpoints {
		if e.Addr().Is6() != p.service.IP.Is6() || !e.IsValid() || e.Port() == 0 {
			return fmt.Errorf("endpoint %s is not an address of the service's family with a port", e)
		}
		p.add(slots, at+string(g.slot(i)), string(addrPortBytes(e)))
	}
	return nil
}

func (p *part) allow(at string, sources []netip.Prefix) error {
	if len(sources) == 0 {
		return nil
	}
	p.add(firewalled, at, "")
	for _, r := range outermost(sources) {
		if r.Addr().Is6() != p.service.IP.Is6() {
			return fmt.Errorf("source range %s is not of the service's family", r)
		}
		p.add(allowed, at+string(r.Addr().AsSlice())+at+string(lastOf(r).AsSlice()), "")
	}
	return nil
}

// lastOf is the last address of a range.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	out, _ := netip.AddrFromSlice(b)
	return out
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
	del, add [setCount][]element
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
	nothing := &part{}
	for key, was := range old.parts {
		if t.parts[key] == nil {
			c.part(key, was, nothing)
		}
	}
	for key, now := range t.parts {
		if was := old.parts[key]; was == nil {
			c.part(key, nothing, now)
		} else if was != now {
			c.part(key, was, now)
		}
	}
	for ip := range old.hairpins {
		if !t.hairpins[ip] {
			c.del[hairpins] = append(c.del[hairpins], hairpin(ip))
		}
	}
	for ip := range t.hairpins {
		if !old.hairpins[ip] {
			c.add[hairpins] = append(c.add[hairpins], hairpin(ip))
		}
	}
	return c
}

func hairpin(ip netip.Addr) element {
	return element{set: hairpins, key: string(append(ip.AsSlice(), ip.AsSlice()...))}
}

// part adds the difference of one service.
func (c *change) part(key portKey, was, now *part) {
	before := make(map[element]bool, len(was.elements))
	for _, e := range was.elements {
		before[e] = true
	}
	for _, e := range now.elements {
		if !before[e] {
			c.add[e.set] = append(c.add[e.set], e)
		}
		delete(before, e)
	}
	for e := range before {
		c.del[e.set] = append(c.del[e.set], e)
	}
	if key.proto != UDP {
		return
	}
	for _, e := range was.endpoints {
		if _, kept := slices.BinarySearchFunc(now.endpoints, e, netip.AddrPort.Compare); !kept {
			c.stale = append(c.stale, staleFlow{key, e.Addr()})
		}
	}
	if len(now.endpoints) > 0 && len(was.endpoints) == 0 {
		c.stale = append(c.stale, staleFlow{service: key})
	}
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
