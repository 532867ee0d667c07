package network

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ipFamily is how the rules for IPv4 and those for IPv6 differ.
//
// Registers have 4 bytes; a concatenated key lies in consecutive ones. The client's
// address comes before the service's port, since it is part of one key of several.
type ipFamily struct {
	table       nftables.TableFamily
	protocol    uint32 // to the kernel's translation
	conntrack   netlink.InetFamily
	any         netip.Addr // stands for all addresses of the node
	length      uint32     // of an address, in bytes
	source      uint32     // where the addresses are in the header
	destination uint32
	unreachable uint8  // code of ICMP for a port
	regKey      uint32 // address, protocol, port
	regKind     uint32
	regSlot     uint32
	regEndpoint uint32 // that a slot has or a client had, in place of the above two
	sets        [setCount]nftables.Set
	addr        nftables.SetDatatype
	addrPort    nftables.SetDatatype
}

const (
	regClient   = unix.NFT_REG32_00
	regScratch  = unix.NFT_REG32_12
	recentLimit = 1 << 18 // clients remembered for each lifetime
)

var (
	ipv4 = newFamily(ipFamily{
		table: nftables.TableFamilyIPv4, protocol: unix.NFPROTO_IPV4, conntrack: unix.AF_INET, any: AnyNodeAddress,
		length: 4, source: 12, destination: 16, unreachable: 3, addr: nftables.TypeIPAddr,
	})
	ipv6 = newFamily(ipFamily{
		table: nftables.TableFamilyIPv6, protocol: unix.NFPROTO_IPV6, conntrack: unix.AF_INET6, any: AnyNodeAddress6,
		length: 16, source: 8, destination: 24, unreachable: 4, addr: nftables.TypeIP6Addr,
	})
)

// newFamily fills in what follows from the rest.
func newFamily(f ipFamily) *ipFamily {
	words := f.length / 4
	f.regKey = regClient + words
	f.regKind = f.regKey + words + 2
	f.regSlot = f.regKind + 1
	f.regEndpoint = f.regKind
	f.addrPort = concat(f.addr, nftables.TypeInetService)
	port := concat(f.addr, nftables.TypeInetProto, nftables.TypeInetService)
	f.sets = [setCount]nftables.Set{
		slots: {
			Name: "slots", IsMap: true, DataType: f.addrPort,
			KeyType: concat(f.addr, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeMark, nftables.TypeMark),
		},
		serving:    {Name: "serving", KeyType: port},
		unserved:   {Name: "unserved", IsMap: true, KeyType: port, DataType: nftables.TypeVerdict},
		masquerade: {Name: "masquerade", KeyType: port},
		firewalled: {Name: "firewalled", KeyType: port},
		allowed:    {Name: "allowed", Interval: true, KeyType: concat(f.addr, nftables.TypeInetProto, nftables.TypeInetService, f.addr)},
		members:    {Name: "members", KeyType: concat(f.addr, nftables.TypeInetProto, nftables.TypeInetService, f.addr, nftables.TypeInetService)},
		hairpins:   {Name: "hairpins", KeyType: concat(f.addr, f.addr)},
	}
	return &f
}

// familyOf is that of an address.
func familyOf(a netip.Addr) *ipFamily {
	if a.Is6() {
		return ipv6
	}
	return ipv4
}

// masqueradeMark is on connections whose clients' addresses are hidden, as
// kube-proxy has it.
const masqueradeMark = 0x4000

// PodLinks is how the names of the links to a node's pods begin.
const PodLinks = "pod"

func concat(types ...nftables.SetDatatype) nftables.SetDatatype {
	return nftables.MustConcatSetType(types...)
}

// kernelSet is a set as the library wants it.
func (p *familyProxy) kernelSet(s set) *nftables.Set {
	out := p.sets[s]
	out.Table, out.Concatenation = p.table(), true
	return &out
}

// recentSet remembers which endpoint a client had, for as long as its affinity lasts
// after the last connection.
func (p *familyProxy) recentSet(seconds uint32) *nftables.Set {
	return &nftables.Set{
		Table: p.table(), Name: recentName(seconds), IsMap: true, Concatenation: true, Dynamic: true, HasTimeout: true, Size: recentLimit,
		KeyType:  concat(p.addr, p.addr, nftables.TypeInetProto, nftables.TypeInetService),
		DataType: p.addrPort,
	}
}

func recentName(seconds uint32) string { return fmt.Sprintf("recent-%d", seconds) }

// The chains of our own; each draws or refuses for the hooks that jump to it.
const (
	chainServices  = "services"
	chainNodePorts = "node-ports"
	chainRefuse    = "refuse"
	chainReject    = "reject"
	chainOutside   = "drop-outside"
	insideSuffix   = "-inside"
)

// drawChains hold the rules that depend on what there is.
var drawChains = []string{chainServices, chainServices + insideSuffix, chainNodePorts, chainNodePorts + insideSuffix}

// buildChains queues the chains with the rules that never change.
func (p *familyProxy) buildChains() {
	for _, name := range append([]string{chainRefuse, chainReject, chainOutside}, drawChains...) {
		p.conn.AddChain(p.chain(name))
	}
	before := nftables.ChainPriorityRef(*nftables.ChainPriorityNATDest - 5)
	for _, base := range []struct {
		name string
		kind nftables.ChainType
		hook *nftables.ChainHook
		prio *nftables.ChainPriority
		jump string
	}{
		{"refuse-prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, before, chainRefuse},
		{"refuse-output", nftables.ChainTypeFilter, nftables.ChainHookOutput, before, chainRefuse},
		{"prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, chainServices},
		{"output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest, chainServices},
		{"postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, ""},
	} {
		c := p.chain(base.name)
		c.Type, c.Hooknum, c.Priority = base.kind, base.hook, base.prio
		p.conn.AddChain(c)
		if base.name == "refuse-prerouting" && p.ipFamily == ipv4 {
			p.guardLoopback(base.name)
		}
		if base.jump != "" {
			p.rule(base.name, jump(base.jump))
		}
	}
	p.refuseRules()
	p.sourceRules()
}

// guardLoopback: that a node routes loopback addresses, for node ports there, must
// not open what listens on its loopback to its neighbours (as kube-proxy,
// CVE-2020-8558).
func (p *familyProxy) guardLoopback(chain string) {
	p.rule(chain, join(p.inLoopback(p.destination), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte("lo\x00")},
		&expr.Verdict{Kind: expr.VerdictDrop},
	})...)
}

// refuseRules answer new connections to services without endpoints, and to service
// addresses that nobody has, at once instead of letting them time out, and drop
// what may not connect.
func (p *familyProxy) refuseRules() {
	p.rule(chainRefuse,
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
		&expr.Verdict{Kind: expr.VerdictReturn})
	p.rule(chainRefuse, join(p.toPort(), p.lookup(firewalled), []expr.Any{
		p.load(p.regKind, p.source),
		&expr.Lookup{SourceRegister: p.regKey, SetName: p.sets[allowed].Name, Invert: true},
		&expr.Verdict{Kind: expr.VerdictDrop},
	})...)
	verdict := &expr.Lookup{SourceRegister: p.regKey, SetName: p.sets[unserved].Name, IsDestRegSet: true, DestRegister: 0}
	p.rule(chainRefuse, append(p.toPort(), verdict)...)
	p.rule(chainRefuse, join(p.toThisNode(), p.nodePort(), []expr.Any{verdict})...)
	p.rule(chainRefuse, join(p.inNetwork(p.destination, p.cluster), p.toPort(), []expr.Any{
		&expr.Lookup{SourceRegister: p.regKey, SetName: p.sets[serving].Name, Invert: true},
		jump(chainReject),
	})...)
	p.rule(chainReject,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(TCP)}},
		&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
	p.rule(chainReject, &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: p.unreachable})
	for _, inside := range fromInside() {
		p.rule(chainOutside, append(inside, &expr.Verdict{Kind: expr.VerdictReturn})...)
	}
	p.rule(chainOutside, &expr.Verdict{Kind: expr.VerdictDrop})
}

// sourceRules hide the client's address where the answers would not come back
// otherwise.
func (p *familyProxy) sourceRules() {
	// A pod that reaches itself by way of a service would see its own address as the
	// client's and answer past the translation.
	p.rule("postrouting", p.load(p.regKey, p.source), p.load(p.regKey+p.length/4, p.destination),
		&expr.Lookup{SourceRegister: p.regKey, SetName: p.sets[hairpins].Name}, &expr.Masq{})
	mark := binaryutil.NativeEndian.PutUint32(masqueradeMark)
	p.rule("postrouting",
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 2, Len: 4, Mask: mark, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 2, Data: make([]byte, 4)},
		// Taken off again: the packet may pass here once more, in a tunnel.
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(^uint32(masqueradeMark)), Xor: make([]byte, 4)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
		&expr.Masq{FullyRandom: true})
	if p.ipFamily == ipv6 {
		return // its loopback address has no node ports
	}
	// What came to a node port on the loopback is answered by a pod.
	p.rule("postrouting", join(p.inLoopback(p.source), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte("lo\x00")},
		&expr.Masq{},
	})...)
}

// drawRules choose endpoints: for the address that a packet has, and then for node
// ports if the address is one of the node's.
func (p *familyProxy) drawRules(want *table) {
	for _, at := range []struct {
		chain string
		key   []expr.Any
	}{{chainServices, p.toPort()}, {chainNodePorts, p.nodePort()}} {
		mark := binaryutil.NativeEndian.PutUint32(masqueradeMark)
		p.rule(at.chain, join(at.key, p.lookup(masquerade), []expr.Any{
			&expr.Meta{Key: expr.MetaKeyMARK, Register: regScratch},
			&expr.Bitwise{SourceRegister: regScratch, DestRegister: regScratch, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(^uint32(masqueradeMark)), Xor: mark},
			&expr.Meta{Key: expr.MetaKeyMARK, Register: regScratch, SourceRegister: true},
		})...)
		for _, seconds := range want.timeouts() {
			p.recentRules(at.chain, at.key, seconds)
		}
		for _, inside := range fromInside() {
			p.rule(at.chain, append(inside, jump(at.chain+insideSuffix))...)
		}
		for _, g := range want.sortedGroups() {
			if g.inside {
				p.drawRule(at.chain+insideSuffix, at.key, g)
			} else {
				p.drawRule(at.chain, at.key, g)
			}
		}
	}
	p.rule(chainServices, append(p.toThisNode(), jump(chainNodePorts))...)
}

// drawRule sends a connection to one of n endpoints, and with affinity remembers
// which. Where nothing more can be remembered it is sent all the same.
func (p *familyProxy) drawRule(chain string, key []expr.Any, g group) {
	drawn := join(key, []expr.Any{
		&expr.Immediate{Register: p.regKind, Data: binaryutil.NativeEndian.PutUint32(g.kind())},
		&expr.Numgen{Register: p.regSlot, Modulus: g.n, Type: unix.NFT_NG_RANDOM, Offset: g.base()},
		&expr.Lookup{SourceRegister: p.regKey, DestRegister: p.regEndpoint, IsDestRegSet: true, SetName: p.sets[slots].Name},
	})
	if g.seconds > 0 {
		p.rule(chain, join(drawn, []expr.Any{
			p.load(regClient, p.source),
			p.remember(unix.NFT_DYNSET_OP_ADD, g.seconds),
			p.translate(),
		})...)
	}
	p.rule(chain, append(drawn, p.translate())...)
}

// recentRules send a client where it was before, unless that endpoint is gone: then
// it is forgotten.
func (p *familyProxy) recentRules(chain string, key []expr.Any, seconds uint32) {
	known := join(key, []expr.Any{
		p.load(regClient, p.source),
		&expr.Lookup{SourceRegister: regClient, DestRegister: p.regEndpoint, IsDestRegSet: true, SetName: recentName(seconds)},
	})
	const forget = 2 // NFT_DYNSET_OP_DELETE
	p.rule(chain, join(known, []expr.Any{
		&expr.Lookup{SourceRegister: p.regKey, SetName: p.sets[members].Name, Invert: true},
		&expr.Dynset{SrcRegKey: regClient, SrcRegData: p.regEndpoint, SetName: recentName(seconds), Operation: forget},
	})...)
	p.rule(chain, join(known, []expr.Any{
		p.remember(unix.NFT_DYNSET_OP_UPDATE, seconds),
		p.translate(),
	})...)
}

func (f *ipFamily) remember(operation, seconds uint32) expr.Any {
	return &expr.Dynset{
		SrcRegKey: regClient, SrcRegData: f.regEndpoint, SetName: recentName(seconds),
		Operation: operation, Timeout: time.Duration(seconds) * time.Second,
	}
}

func (f *ipFamily) translate() expr.Any {
	return &expr.NAT{Type: expr.NATTypeDestNAT, Family: f.protocol, RegAddrMin: f.regEndpoint, RegProtoMin: f.regEndpoint + f.length/4}
}

func jump(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictJump, Chain: chain} }

// load loads an address of the packet.
func (f *ipFamily) load(register, offset uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.length}
}

// toPort loads "address . protocol . port" of the packet's destination.
func (f *ipFamily) toPort() []expr.Any { return f.withPort(f.load(f.regKey, f.destination)) }

// nodePort is toPort with the address that stands for all of the node's.
func (f *ipFamily) nodePort() []expr.Any {
	return f.withPort(&expr.Immediate{Register: f.regKey, Data: f.any.AsSlice()})
}

func (f *ipFamily) withPort(address expr.Any) []expr.Any {
	at := f.regKey + f.length/4
	return []expr.Any{
		address,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: at},
		&expr.Payload{DestRegister: at + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

func (f *ipFamily) lookup(s set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: f.regKey, SetName: f.sets[s].Name}}
}

// toThisNode matches packets to an address of the node at which there are node ports. Of
// IPv6 these are not the loopback's and those of links: what comes from there cannot
// leave the node again.
func (f *ipFamily) toThisNode() []expr.Any {
	out := []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
	if f == ipv6 {
		for _, p := range []netip.Prefix{host(netip.IPv6Loopback()), netip.MustParsePrefix("fe80::/10")} {
			out = append(out, f.compare(f.destination, p, expr.CmpOpNeq)...)
		}
	}
	return out
}

// fromInside are the conditions one of which a packet from this node meets: from its
// pods, or from itself.
func fromInside() [][]expr.Any {
	return [][]expr.Any{{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(PodLinks)},
	}, {
		&expr.Fib{Register: 1, FlagSADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}}
}

func (f *ipFamily) inLoopback(offset uint32) []expr.Any {
	return f.inNetwork(offset, netip.MustParsePrefix("127.0.0.0/8"))
}

func (f *ipFamily) inNetwork(offset uint32, network netip.Prefix) []expr.Any {
	return f.compare(offset, network, expr.CmpOpEq)
}

func (f *ipFamily) compare(offset uint32, network netip.Prefix, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		f.load(1, offset),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: f.length, Mask: net.CIDRMask(network.Bits(), int(f.length)*8), Xor: make([]byte, f.length)},
		&expr.Cmp{Op: op, Register: 1, Data: network.Masked().Addr().AsSlice()},
	}
}

func join(parts ...[]expr.Any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}
