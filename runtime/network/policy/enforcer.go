package policy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/network"
)

const (
	tableName = "gitk8s-policy"
	// batchSize keeps a list of elements within the 64 KiB of a netlink attribute.
	batchSize = 400
	// rebuildAbove is how many elements are taken out one by one: in a set of ranges each
	// costs the kernel as much as some twenty cost when they are put into a new one.
	rebuildAbove = 20
	// socketBuffer: a large batch is answered by more than a socket takes by default.
	socketBuffer = 8 << 20
)

// portOffset is where the port is in the header of TCP, UDP and SCTP.
const portOffset = 2

// ipFamily is how the tables of IPv4 and IPv6 differ: in where addresses are in the
// header, and so in the registers of 4 bytes, which are in the order of the key of a set
// of what is allowed.
type ipFamily struct {
	table                                nftables.TableFamily
	v6                                   bool
	addr                                 nftables.SetDatatype
	length, source, destination          uint32
	regPeer, regProto, regPort, regOther uint32
}

const regGroup = unix.NFT_REG32_00

var families = [2]*ipFamily{
	newFamily(ipFamily{table: nftables.TableFamilyIPv4, addr: nftables.TypeIPAddr, length: 4, source: 12, destination: 16}),
	newFamily(ipFamily{table: nftables.TableFamilyIPv6, v6: true, addr: nftables.TypeIP6Addr, length: 16, source: 8, destination: 24}),
}

func newFamily(f ipFamily) *ipFamily {
	f.regPeer = regGroup + 1
	f.regProto = f.regPeer + f.length/4
	f.regPort = f.regProto + 1
	f.regOther = f.regPort + 1
	return &f
}

// direction is one of the two: the pod is the destination of what comes in.
type direction struct{ name, pods, allowed string }

var directions = [2]direction{
	{"ingress", "ingress-pods", "ingress-allowed"},
	{"egress", "egress-pods", "egress-allowed"},
}

// ends are where the addresses of the pod and of its peer are.
func (f *ipFamily) ends(d direction) (pod, peer uint32) {
	if d == directions[0] {
		return f.destination, f.source
	}
	return f.source, f.destination
}

// element is a key and, for a range, the last one; value is for maps.
type element struct{ key, last, value string }

// layout is what the kernel has: the elements of each set by its name.
type layout map[string]map[element]bool

// Enforcer lays Rules out as nftables tables of its own in a node's network namespace,
// one for each family. There is no table while there are no rules for it.
//
// One rule a direction suffices, whatever there is: a map has the group of each pod
// that is held back, a set what is allowed to each group, and what has a group and is
// not allowed is dropped.
type Enforcer struct {
	ns       *os.File
	families []*familyEnforcer
}

// familyEnforcer has the table of one family.
type familyEnforcer struct {
	*ipFamily
	conn *nftables.Conn
	// missing is why the kernel has no nftables: no rules can be enforced, but none
	// are, either.
	missing error

	mu        sync.Mutex
	installed layout // nil when it is not known what the kernel has
	ids       map[string]uint32
	next      uint32
}

// NewEnforcer opens the namespace; the empty path is the caller's own. What an earlier
// one left there holds until the first Apply. Pods have addresses of IPv4 alone unless
// told otherwise.
func NewEnforcer(netNS string, ipv6 bool) (*Enforcer, error) {
	missing := network.CheckNFTables(netNS)
	if netNS == "" {
		netNS = "/proc/thread-self/ns/net"
	}
	ns, err := os.Open(netNS)
	if err != nil {
		return nil, fmt.Errorf("network policies: %w", err)
	}
	e := &Enforcer{ns: ns}
	for _, f := range families {
		if f.v6 && !ipv6 {
			continue
		}
		buffers := nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
			return errors.Join(c.SetReadBuffer(socketBuffer), c.SetWriteBuffer(socketBuffer))
		})
		conn, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())), buffers)
		if err != nil {
			_ = ns.Close()
			return nil, fmt.Errorf("network policies: %w", err)
		}
		e.families = append(e.families, &familyEnforcer{ipFamily: f, conn: conn, missing: missing, ids: map[string]uint32{}})
	}
	return e, nil
}

// Close lets go of the kernel; the rules stay.
func (e *Enforcer) Close() error { return e.ns.Close() }

// Apply makes the kernel enforce rules, in one transaction for each family with no more
// changes than needed. After an error the next Apply builds everything anew, and until
// then what was enforced still is.
func (e *Enforcer) Apply(r Rules) error {
	var errs []error
	for _, f := range e.families {
		errs = append(errs, f.apply(f.part(r)))
	}
	return errors.Join(append(errs, e.covers(r))...)
}

// covers refuses rules for pods with addresses of a family that is not enforced: they
// must not be taken to be held back.
func (e *Enforcer) covers(r Rules) error {
	for _, d := range []Direction{r.Ingress, r.Egress} {
		for ip := range d.Groups {
			if err := e.has(ip); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *Enforcer) has(ip netip.Addr) error {
	if slices.ContainsFunc(e.families, func(f *familyEnforcer) bool { return f.v6 == ip.Is6() }) {
		return nil
	}
	return fmt.Errorf("network policies: the pod's address %s is of a family that this node does not know: start it with the server's --cluster-cidr", ip)
}

// part is what of rules is about a family.
func (f *ipFamily) part(r Rules) Rules {
	of := func(d Direction) Direction {
		out := Direction{Groups: map[netip.Addr]string{}, Allowed: map[string][]Box{}}
		for ip, key := range d.Groups {
			if ip.Is6() != f.v6 {
				continue
			}
			out.Groups[ip] = key
			if _, done := out.Allowed[key]; !done {
				out.Allowed[key] = slices.DeleteFunc(slices.Clone(d.Allowed[key]), func(b Box) bool { return b.From.Is6() != f.v6 })
			}
		}
		return out
	}
	return Rules{Ingress: of(r.Ingress), Egress: of(r.Egress)}
}

// Hold lets nothing come to or from addresses but what their node sends and gets, until
// the next Apply. All else that is enforced stays as it is, also what an earlier
// Enforcer has left.
func (e *Enforcer) Hold(ips []netip.Addr) error {
	for _, ip := range ips {
		if err := e.has(ip); err != nil {
			return err
		}
		for _, f := range e.families {
			if f.v6 != ip.Is6() {
				continue
			}
			if err := f.hold(ip); err != nil {
				return fmt.Errorf("network policies: hold back %s: %w", ip, err)
			}
		}
	}
	return nil
}

// Remove deletes the tables.
func (e *Enforcer) Remove() error { return e.Apply(Rules{}) }

func (e *familyEnforcer) apply(r Rules) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	want := e.lay(r)
	before := e.installed
	e.installed = nil
	switch empty := len(r.Ingress.Groups)+len(r.Egress.Groups) == 0; {
	case empty && e.missing != nil:
		return nil
	case e.missing != nil:
		return fmt.Errorf("network policies: %w", e.missing)
	case empty && before != nil && len(before) == 0:
	case empty:
		e.conn.AddTable(e.ours()) // so that deleting works when there is none
		e.conn.DelTable(e.ours())
		want = layout{}
	case len(before) == 0 || removed(before, want) > rebuildAbove:
		if err := e.build(); err != nil {
			return fmt.Errorf("network policies: %w", err)
		}
		before = layout{}
		fallthrough
	default:
		if err := e.change(before, want); err != nil {
			return fmt.Errorf("network policies: %w", err)
		}
	}
	if err := e.conn.Flush(); err != nil {
		return fmt.Errorf("network policies: change the rules of %d pods: %w", len(r.Ingress.Groups)+len(r.Egress.Groups), err)
	}
	e.installed = want
	return nil
}

func (e *familyEnforcer) hold(ip netip.Addr) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.installed = nil
	if e.missing != nil {
		return e.missing
	}
	if err := e.queueHold(ip); err != nil {
		return err
	}
	return e.conn.Flush()
}

func (e *familyEnforcer) queueHold(ip netip.Addr) error {
	tables, err := e.conn.ListTablesOfFamily(e.table)
	if err != nil {
		return err
	}
	exists := slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName })
	held := kernelElement(element{key: text(ip), value: mark(heldGroup)})
	var stale [len(directions)][]nftables.SetElement
	if exists {
		for i, d := range directions {
			all, err := e.conn.GetSetElements(e.podsSet(d.pods))
			if err != nil {
				return err
			}
			stale[i] = slices.DeleteFunc(all, func(el nftables.SetElement) bool { return string(el.Key) != text(ip) })
		}
	} else if err := e.build(); err != nil {
		return err
	}
	for i, d := range directions {
		if err := e.conn.SetDeleteElements(e.podsSet(d.pods), stale[i]); err != nil {
			return err
		}
		if err := e.conn.SetAddElements(e.podsSet(d.pods), []nftables.SetElement{held}); err != nil {
			return err
		}
	}
	return nil
}

// lay turns rules into elements. A group keeps its number for as long as it is there.
func (e *familyEnforcer) lay(r Rules) layout {
	out := layout{selfSet: {}}
	used := map[string]uint32{}
	id := func(direction, key string) uint32 {
		key = direction + " " + key
		n, ok := e.ids[key]
		if !ok {
			if n, ok = used[key]; !ok {
				e.next++
				n = e.next
			}
		}
		used[key] = n
		return n
	}
	for i, d := range []Direction{r.Ingress, r.Egress} {
		at := directions[i]
		pods, allowed := map[element]bool{}, map[element]bool{}
		for addr, key := range d.Groups {
			pods[element{key: text(addr), value: mark(id(at.name, key))}] = true
			out[selfSet][element{key: text(addr) + text(addr)}] = true
		}
		for key, boxes := range d.Allowed {
			group := mark(id(at.name, key))
			for _, b := range boxes {
				allowed[element{
					key:  group + text(b.From) + string([]byte{byte(b.FirstProto), 0, 0, 0}) + port(b.FirstPort),
					last: group + text(b.To) + string([]byte{byte(b.Proto), 0, 0, 0}) + port(b.LastPort),
				}] = true
			}
		}
		out[at.pods], out[at.allowed] = pods, allowed
	}
	e.ids = used
	return out
}

// removed is how many elements of before are not wanted any more.
func removed(before, want layout) int {
	n := 0
	for set, elements := range before {
		for el := range elements {
			if !want[set][el] {
				n++
			}
		}
	}
	return n
}

func text(a netip.Addr) string { return string(a.AsSlice()) }
func mark(n uint32) string     { return string(binaryutil.NativeEndian.PutUint32(n)) }
func port(n uint16) string     { return string(binary.BigEndian.AppendUint16(nil, n)) + "\x00\x00" }

func (f *ipFamily) ours() *nftables.Table {
	return &nftables.Table{Family: f.table, Name: tableName}
}

const (
	selfSet = "self"
	chain   = "forward"
	// heldGroup has nothing allowed; those of rules are counted from 1.
	heldGroup = 0
)

// sets are the table's, in the order in which they are made.
func (f *ipFamily) sets() []*nftables.Set {
	out := []*nftables.Set{{
		Table: f.ours(), Name: selfSet, Concatenation: true, KeyType: nftables.MustConcatSetType(f.addr, f.addr),
	}}
	for _, d := range directions {
		out = append(out,
			f.podsSet(d.pods),
			&nftables.Set{
				Table: f.ours(), Name: d.allowed, Concatenation: true, Interval: true,
				KeyType: nftables.MustConcatSetType(nftables.TypeMark, f.addr, nftables.TypeInetProto, nftables.TypeInetService),
			})
	}
	return out
}

func (f *ipFamily) podsSet(name string) *nftables.Set {
	return &nftables.Set{Table: f.ours(), Name: name, IsMap: true, KeyType: f.addr, DataType: nftables.TypeMark}
}

// build queues the table with its rules, which never change.
func (e *familyEnforcer) build() error {
	e.conn.AddTable(e.ours()) // so that deleting works when there is none
	e.conn.DelTable(e.ours())
	e.conn.AddTable(e.ours())
	for _, s := range e.sets() {
		if err := e.conn.AddSet(s, nil); err != nil {
			return err
		}
	}
	forward := e.conn.AddChain(&nftables.Chain{
		Table: e.ours(), Name: chain, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	e.rule(forward, // what belongs to a connection that was let through
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Xor: make([]byte, 4), Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
		&expr.Verdict{Kind: expr.VerdictAccept})
	e.rule(forward, // a pod that reaches itself by way of a service
		e.header(e.regPeer, e.source), e.header(e.regPeer+e.length/4, e.destination),
		&expr.Lookup{SourceRegister: e.regPeer, SetName: selfSet},
		&expr.Verdict{Kind: expr.VerdictAccept})
	for _, d := range slices.Backward(directions[:]) {
		c := e.conn.AddChain(&nftables.Chain{Table: e.ours(), Name: d.name})
		e.rule(forward, &expr.Verdict{Kind: expr.VerdictJump, Chain: d.name})
		pod, other := e.ends(d)
		group := []expr.Any{e.header(e.regOther, pod), &expr.Lookup{SourceRegister: e.regOther, SetName: d.pods, IsDestRegSet: true, DestRegister: regGroup}}
		allowed := []expr.Any{&expr.Lookup{SourceRegister: regGroup, SetName: d.allowed}, &expr.Verdict{Kind: expr.VerdictReturn}}
		peer := []expr.Any{e.header(e.regPeer, other), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: e.regProto}}
		for _, proto := range []Protocol{TCP, UDP, SCTP} {
			e.rule(c, slices.Concat(group, peer, []expr.Any{
				&expr.Cmp{Op: expr.CmpOpEq, Register: e.regProto, Data: []byte{byte(proto)}},
				&expr.Payload{DestRegister: e.regPort, Base: expr.PayloadBaseTransportHeader, Offset: portOffset, Len: 2},
			}, allowed)...)
		}
		// Other protocols have no ports: they are let through where all are.
		e.rule(c, slices.Concat(group, peer, []expr.Any{&expr.Immediate{Register: e.regPort, Data: make([]byte, 4)}},
			e.exceptPorts(), allowed)...)
		e.rule(c, append(slices.Clone(group), &expr.Verdict{Kind: expr.VerdictDrop})...)
	}
	return nil
}

// exceptPorts leaves out the protocols that have ports.
func (f *ipFamily) exceptPorts() []expr.Any {
	var out []expr.Any
	for _, proto := range []Protocol{TCP, UDP, SCTP} {
		out = append(out, &expr.Cmp{Op: expr.CmpOpNeq, Register: f.regProto, Data: []byte{byte(proto)}})
	}
	return out
}

func (f *ipFamily) header(register, offset uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.length}
}

func (e *familyEnforcer) rule(c *nftables.Chain, exprs ...expr.Any) {
	e.conn.AddRule(&nftables.Rule{Table: e.ours(), Chain: c, Exprs: exprs})
}

// change queues what makes one layout out of another. Nothing of a set of ranges may
// overlap at any time, so what goes is taken out first.
func (e *familyEnforcer) change(before, want layout) error {
	for _, s := range e.sets() {
		var gone, fresh []nftables.SetElement
		for el := range before[s.Name] {
			if !want[s.Name][el] {
				gone = append(gone, kernelElement(el))
			}
		}
		for el := range want[s.Name] {
			if !before[s.Name][el] {
				fresh = append(fresh, kernelElement(el))
			}
		}
		for batch := range slices.Chunk(gone, batchSize) {
			if err := e.conn.SetDeleteElements(s, batch); err != nil {
				return err
			}
		}
		for batch := range slices.Chunk(fresh, batchSize) {
			if err := e.conn.SetAddElements(s, batch); err != nil {
				return err
			}
		}
	}
	return nil
}

func kernelElement(e element) nftables.SetElement {
	out := nftables.SetElement{Key: []byte(e.key)}
	if e.last != "" {
		out.KeyEnd = []byte(e.last)
	}
	if e.value != "" {
		out.Val = []byte(e.value)
	}
	return out
}
