package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// guardPeersTable is the nftables table, of each family, that keeps strangers out of a
// machine's tunnels. It is there as long as they are.
const guardPeersTable = "gitk8s-peers"

// guard says from whom packets of a family are taken.
type guard struct {
	// peers may send in VXLAN; with encryption only servers may.
	peers []netip.Addr
	// pods are the ranges of addresses that they may have sent for.
	pods []addrRange
	// seal: whatever has a pod's address is taken from this node's pods, and in WireGuard,
	// from nobody else. sealed are nodes that this node's pods, own, hear in it alone.
	// cluster are all pods' addresses.
	seal         bool
	sealed       []netip.Addr
	own, cluster netip.Prefix
}

type addrRange struct{ first, last netip.Addr }

// add takes a peer into account.
func (g *guard) add(p Peer, seal bool) {
	switch {
	case !seal || !p.isNode():
		g.peers = append(g.peers, p.NodeIP)
		if p.isNode() {
			g.pods = append(g.pods, rangeOf(p.PodCIDR))
		}
	default:
		g.sealed = append(g.sealed, p.NodeIP)
	}
}

// finish puts what was added in order. Without tunnels there is nothing to guard.
func (g *guard) finish(of *familyPlan, seal bool) {
	if !of.vxlan && !seal {
		*g = guard{}
		return
	}
	for _, list := range []*[]netip.Addr{&g.peers, &g.sealed} {
		slices.SortFunc(*list, netip.Addr.Compare)
		*list = slices.Compact(*list)
	}
	g.pods = merged(g.pods)
	if g.seal = seal; seal {
		g.own, g.cluster = of.pods, of.cluster
	}
}

func rangeOf(p netip.Prefix) addrRange {
	bytes := p.Masked().Addr().AsSlice()
	for i := range bytes {
		bytes[i] |= byte(0xff >> min(8, max(0, p.Bits()-8*i)))
	}
	last, _ := netip.AddrFromSlice(bytes)
	return addrRange{p.Masked().Addr(), last}
}

// merged sorts ranges and joins those that touch: the kernel takes no others.
func merged(in []addrRange) []addrRange {
	slices.SortFunc(in, func(a, b addrRange) int { return a.first.Compare(b.first) })
	var out []addrRange
	for _, r := range in {
		if n := len(out); n > 0 && (r.first.Compare(out[n-1].last) <= 0 || r.first == out[n-1].last.Next()) {
			if out[n-1].last.Less(r.last) {
				out[n-1].last = r.last
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

func (g guard) empty() bool { return !g.seal && len(g.peers) == 0 }

// nftIn opens nftables in a namespace. It does not enter the namespace later on: from a
// user namespace there is no way back.
func nftIn(ns string) (conn *nftables.Conn, err error) {
	err = inNetNS(ns, func() (err error) {
		conn, err = nftables.New(nftables.AsLasting())
		return err
	})
	return conn, err
}

// applyGuard makes the kernel guard a family as g says, in one transaction, if that is a
// change.
func (m *Mesh) applyGuard(f *ipFamily, g guard) error {
	if err := CheckNFTables(m.cfg.NetNS); err != nil {
		if g.empty() {
			return nil // there is no guard where there are no tables
		}
		return fmt.Errorf("guard the ways to other nodes: %w", err)
	}
	conn, err := nftIn(m.cfg.NetNS)
	if err != nil {
		return fmt.Errorf("guard the ways to other nodes: %w", err)
	}
	defer conn.CloseLasting()
	there, err := conn.ListTableOfFamily(guardPeersTable, f.table)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOENT) && !(g.empty() && errors.Is(err, unix.EPERM)) {
		return fmt.Errorf("guard the ways to other nodes: %w", err)
	}
	if has, known := m.guarded[f]; (there != nil) == !g.empty() && (g.empty() || known && reflect.DeepEqual(has, g)) {
		return nil
	}
	delete(m.guarded, f)
	table := &nftables.Table{Name: guardPeersTable, Family: f.table}
	conn.AddTable(table) // so that deleting works when there is none
	conn.DelTable(table)
	if !g.empty() {
		conn.AddTable(table)
		if err := g.build(conn, table, f); err != nil {
			return fmt.Errorf("guard the ways to other nodes: %w", err)
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("guard the ways to other nodes, of %d: %w", len(g.peers)+len(g.sealed), err)
	}
	m.guarded[f] = g
	return nil
}

func (g guard) build(conn *nftables.Conn, table *nftables.Table, f *ipFamily) error {
	set := func(name string, elements []nftables.SetElement, ranges bool) error {
		s := &nftables.Set{Table: table, Name: name, KeyType: f.addr, Interval: ranges}
		return conn.AddSet(s, elements)
	}
	if err := errors.Join(
		set("peers", addressElements(g.peers), false), set("pods", rangeElements(g.pods), true),
		set("sealed", addressElements(g.sealed), false),
	); err != nil {
		return err
	}
	chain := func(name string, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		return conn.AddChain(&nftables.Chain{Table: table, Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: prio})
	}
	input := chain("input", nftables.ChainHookInput, nftables.ChainPriorityFilter)
	prerouting := chain("prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	drop := func(c *nftables.Chain, conditions ...[]expr.Any) {
		conn.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: append(join(conditions...), &expr.Verdict{Kind: expr.VerdictDrop})})
	}
	from := func(set string, not bool) []expr.Any {
		return []expr.Any{f.load(1, f.source), &expr.Lookup{SourceRegister: 1, SetName: set, Invert: not}}
	}
	drop(input, inVXLAN(), from("peers", true))
	drop(prerouting, incoming(f.vxlanLink(), true), from("peers", true), from("pods", true))
	if !g.seal {
		return nil
	}
	inClear := incoming(wireGuardLink, false)
	local := []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte(PodLinks)}}
	drop(prerouting, inClear, local, f.inNetwork(f.source, g.cluster))
	if g.own.IsValid() {
		drop(prerouting, inClear, from("sealed", false), f.inNetwork(f.destination, g.own))
	}
	return nil
}

// inVXLAN matches packets of our own tunnel, before they are unpacked.
func inVXLAN() []expr.Any {
	const idOffset = 8 + 4 // the UDP header, and flags
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(vxlanPort)},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: idOffset, Len: 3},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{vxlanID >> 16, vxlanID >> 8 & 0xff, vxlanID & 0xff}},
	}
}

// incoming matches packets that came in by a link, or by any other.
func incoming(link string, is bool) []expr.Any {
	op := expr.CmpOpEq
	if !is {
		op = expr.CmpOpNeq
	}
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, link)
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: name}}
}

func addressElements(list []netip.Addr) []nftables.SetElement {
	out := make([]nftables.SetElement, 0, len(list))
	for _, a := range list {
		out = append(out, nftables.SetElement{Key: a.AsSlice()})
	}
	return out
}

// rangeElements are those of a set of ranges: the first address of each, and the one
// after its last.
func rangeElements(list []addrRange) []nftables.SetElement {
	out := make([]nftables.SetElement, 0, 2*len(list))
	for _, r := range list {
		out = append(out, nftables.SetElement{Key: r.first.AsSlice()})
		if end := r.last.Next(); end.IsValid() {
			out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}
