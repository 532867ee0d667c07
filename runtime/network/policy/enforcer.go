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

// Registers of 4 bytes, in the order of the key of a set of what is allowed.
const (
	regGroup = unix.NFT_REG32_00 + iota
	regPeer
	regProto
	regPort
	regPod
	regOther
)

// Where things are in the IPv4 header and in that of TCP, UDP and SCTP.
const (
	sourceOffset      = 12
	destinationOffset = 16
	portOffset        = 2
)

// The two directions: the pod is the destination of what comes in.
var directions = [2]struct {
	name, pods, allowed string
	pod, peer           uint32
}{
	{"ingress", "ingress-pods", "ingress-allowed", destinationOffset, sourceOffset},
	{"egress", "egress-pods", "egress-allowed", sourceOffset, destinationOffset},
}

// element is a key and, for a range, the last one; value is for maps.
type element struct{ key, last, value string }

// layout is what the kernel has: the elements of each set by its name.
type layout map[string]map[element]bool

// Enforcer lays Rules out as an nftables table of its own in a node's network
// namespace. There is no table while there are no rules.
//
// One rule a direction suffices, whatever there is: a map has the group of each pod
// that is held back, a set what is allowed to each group, and what has a group and is
// not allowed is dropped.
type Enforcer struct {
	ns   *os.File
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
// one left there holds until the first Apply.
func NewEnforcer(netNS string) (*Enforcer, error) {
	path := netNS
	if netNS == "" {
		netNS = "/proc/thread-self/ns/net"
	}
	ns, err := os.Open(netNS)
	if err != nil {
		return nil, fmt.Errorf("network policies: %w", err)
	}
	buffers := nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
		return errors.Join(c.SetReadBuffer(socketBuffer), c.SetWriteBuffer(socketBuffer))
	})
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())), buffers)
	if err != nil {
		_ = ns.Close()
		return nil, fmt.Errorf("network policies: %w", err)
	}
	return &Enforcer{ns: ns, conn: conn, missing: network.CheckNFTables(path), ids: map[string]uint32{}}, nil
}

// Close lets go of the kernel; the rules stay.
func (e *Enforcer) Close() error { return e.ns.Close() }

// Apply makes the kernel enforce rules, in one transaction with no more changes than
// needed. After an error the next Apply builds everything anew, and until then what was
// enforced still is.
func (e *Enforcer) Apply(r Rules) error {
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
		e.conn.AddTable(table()) // so that deleting works when there is none
		e.conn.DelTable(table())
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

// Hold lets nothing come to or from an address but what its node sends and gets, until
// the next Apply. All else that is enforced stays as it is, also what an earlier
// Enforcer has left.
func (e *Enforcer) Hold(ip netip.Addr) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.installed = nil
	err := e.missing
	if err == nil {
		err = e.hold(ip)
	}
	if err == nil {
		err = e.conn.Flush()
	}
	if err != nil {
		return fmt.Errorf("network policies: hold back %s: %w", ip, err)
	}
	return nil
}

func (e *Enforcer) hold(ip netip.Addr) error {
	tables, err := e.conn.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return err
	}
	exists := slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName })
	held := kernelElement(element{key: text(ip), value: mark(heldGroup)})
	var stale [len(directions)][]nftables.SetElement
	if exists {
		for i, d := range directions {
			all, err := e.conn.GetSetElements(podsSet(d.pods))
			if err != nil {
				return err
			}
			stale[i] = slices.DeleteFunc(all, func(el nftables.SetElement) bool { return string(el.Key) != text(ip) })
		}
	} else if err := e.build(); err != nil {
		return err
	}
	for i, d := range directions {
		if err := e.conn.SetDeleteElements(podsSet(d.pods), stale[i]); err != nil {
			return err
		}
		if err := e.conn.SetAddElements(podsSet(d.pods), []nftables.SetElement{held}); err != nil {
			return err
		}
	}
	return nil
}

// Remove deletes the table.
func (e *Enforcer) Remove() error { return e.Apply(Rules{}) }

// lay turns rules into elements. A group keeps its number for as long as it is there.
func (e *Enforcer) lay(r Rules) layout {
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

func text(a netip.Addr) string { b := a.As4(); return string(b[:]) }
func mark(n uint32) string     { return string(binaryutil.NativeEndian.PutUint32(n)) }
func port(n uint16) string     { return string(binary.BigEndian.AppendUint16(nil, n)) + "\x00\x00" }

func table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName}
}

const (
	selfSet = "self"
	chain   = "forward"
	// heldGroup has nothing allowed; those of rules are counted from 1.
	heldGroup = 0
)

// sets are the table's, in the order in which they are made.
func sets() []*nftables.Set {
	out := []*nftables.Set{{
		Table: table(), Name: selfSet, Concatenation: true, KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr),
	}}
	for _, d := range directions {
		out = append(out,
			podsSet(d.pods),
			&nftables.Set{
				Table: table(), Name: d.allowed, Concatenation: true, Interval: true,
				KeyType: nftables.MustConcatSetType(nftables.TypeMark, nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService),
			})
	}
	return out
}

func podsSet(name string) *nftables.Set {
	return &nftables.Set{Table: table(), Name: name, IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeMark}
}

// build queues the table with its rules, which never change.
func (e *Enforcer) build() error {
	e.conn.AddTable(table()) // so that deleting works when there is none
	e.conn.DelTable(table())
	e.conn.AddTable(table())
	for _, s := range sets() {
		if err := e.conn.AddSet(s, nil); err != nil {
			return err
		}
	}
	forward := e.conn.AddChain(&nftables.Chain{
		Table: table(), Name: chain, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	e.rule(forward, // what belongs to a connection that was let through
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Xor: make([]byte, 4), Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
		&expr.Verdict{Kind: expr.VerdictAccept})
	e.rule(forward, // a pod that reaches itself by way of a service
		header(regPeer, sourceOffset), header(regProto, destinationOffset),
		&expr.Lookup{SourceRegister: regPeer, SetName: selfSet},
		&expr.Verdict{Kind: expr.VerdictAccept})
	for _, d := range slices.Backward(directions[:]) {
		c := e.conn.AddChain(&nftables.Chain{Table: table(), Name: d.name})
		e.rule(forward, &expr.Verdict{Kind: expr.VerdictJump, Chain: d.name})
		group := []expr.Any{header(regPod, d.pod), &expr.Lookup{SourceRegister: regPod, SetName: d.pods, IsDestRegSet: true, DestRegister: regGroup}}
		allowed := []expr.Any{&expr.Lookup{SourceRegister: regGroup, SetName: d.allowed}, &expr.Verdict{Kind: expr.VerdictReturn}}
		peer := []expr.Any{header(regPeer, d.peer), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: regProto}}
		for _, proto := range []Protocol{TCP, UDP, SCTP} {
			e.rule(c, slices.Concat(group, peer, []expr.Any{
				&expr.Cmp{Op: expr.CmpOpEq, Register: regProto, Data: []byte{byte(proto)}},
				&expr.Payload{DestRegister: regPort, Base: expr.PayloadBaseTransportHeader, Offset: portOffset, Len: 2},
			}, allowed)...)
		}
		// Other protocols have no ports: they are let through where all are.
		e.rule(c, slices.Concat(group, peer, []expr.Any{&expr.Immediate{Register: regPort, Data: make([]byte, 4)}},
			exceptPorts(), allowed)...)
		e.rule(c, append(slices.Clone(group), &expr.Verdict{Kind: expr.VerdictDrop})...)
	}
	return nil
}

// exceptPorts leaves out the protocols that have ports.
func exceptPorts() []expr.Any {
	var out []expr.Any
	for _, proto := range []Protocol{TCP, UDP, SCTP} {
		out = append(out, &expr.Cmp{Op: expr.CmpOpNeq, Register: regProto, Data: []byte{byte(proto)}})
	}
	return out
}

func header(register, offset uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}
}

func (e *Enforcer) rule(c *nftables.Chain, exprs ...expr.Any) {
	e.conn.AddRule(&nftables.Rule{Table: table(), Chain: c, Exprs: exprs})
}

// change queues what makes one layout out of another. Nothing of a set of ranges may
// overlap at any time, so what goes is taken out first.
func (e *Enforcer) change(before, want layout) error {
	for _, s := range sets() {
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
