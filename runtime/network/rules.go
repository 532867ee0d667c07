package network

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers of 4 bytes; a concatenated key lies in consecutive ones. The client's
// address comes before the service's port, since it is part of one key of several.
const (
	regClient   = unix.NFT_REG32_00
	regKey      = regClient + 1 // address, protocol, port
	regKind     = regKey + 3
	regSlot     = regKey + 4
	regDrawn    = regKey + 5 // the endpoint that a slot has
	regRecent   = regKey + 3 // the endpoint that a client had
	regScratch  = unix.NFT_REG32_12
	recentLimit = 1 << 18 // clients remembered for each lifetime
)

// masqueradeMark is on connections whose clients' addresses are hidden, as
// kube-proxy has it.
const masqueradeMark = 0x4000

// PodLinks is how the names of the links to a node's pods begin.
const PodLinks = "pod"

var (
	addrPort = concat(nftables.TypeIPAddr, nftables.TypeInetService)
	portType = concat(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
)

func concat(types ...nftables.SetDatatype) nftables.SetDatatype {
	return nftables.MustConcatSetType(types...)
}

// setInfo says how the kernel keeps each set.
var setInfo = [setCount]nftables.Set{
	slots: {
		Name: "slots", IsMap: true, DataType: addrPort,
		KeyType: concat(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeMark, nftables.TypeMark),
	},
	serving:    {Name: "serving", KeyType: portType},
	unserved:   {Name: "unserved", IsMap: true, KeyType: portType, DataType: nftables.TypeVerdict},
	masquerade: {Name: "masquerade", KeyType: portType},
	firewalled: {Name: "firewalled", KeyType: portType},
	allowed:    {Name: "allowed", Interval: true, KeyType: concat(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeIPAddr)},
	members:    {Name: "members", KeyType: concat(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeIPAddr, nftables.TypeInetService)},
	hairpins:   {Name: "hairpins", KeyType: concat(nftables.TypeIPAddr, nftables.TypeIPAddr)},
}

// kernelSet is a set as the library wants it.
func (p *Proxy) kernelSet(s set) *nftables.Set {
	out := setInfo[s]
	out.Table, out.Concatenation = p.table(), true
	return &out
}

// recentSet remembers which endpoint a client had, for as long as its affinity lasts
// after the last connection.
func (p *Proxy) recentSet(seconds uint32) *nftables.Set {
	return &nftables.Set{
		Table: p.table(), Name: recentName(seconds), IsMap: true, Concatenation: true, Dynamic: true, HasTimeout: true, Size: recentLimit,
		KeyType:  concat(nftables.TypeIPAddr, nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService),
		DataType: addrPort,
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
func (p *Proxy) buildChains() {
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
		if base.name == "refuse-prerouting" {
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
func (p *Proxy) guardLoopback(chain string) {
	p.rule(chain, join(inLoopback(destinationOffset), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte("lo\x00")},
		&expr.Verdict{Kind: expr.VerdictDrop},
	})...)
}

// refuseRules answer new connections to services without endpoints, and to service
// addresses that nobody has, at once instead of letting them time out, and drop
// what may not connect.
func (p *Proxy) refuseRules() {
	p.rule(chainRefuse,
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
		&expr.Verdict{Kind: expr.VerdictReturn})
	p.rule(chainRefuse, join(destination(), lookup(firewalled, regKey), []expr.Any{
		payload(regKind, sourceOffset),
		&expr.Lookup{SourceRegister: regKey, SetName: setInfo[allowed].Name, Invert: true},
		&expr.Verdict{Kind: expr.VerdictDrop},
	})...)
	verdict := &expr.Lookup{SourceRegister: regKey, SetName: setInfo[unserved].Name, IsDestRegSet: true, DestRegister: 0}
	p.rule(chainRefuse, append(destination(), verdict)...)
	p.rule(chainRefuse, join(toThisNode(), nodePort(), []expr.Any{verdict})...)
	network := ServiceCIDR.Masked().Addr().As4()
	p.rule(chainRefuse, join(inNetwork(destinationOffset, network[:], ServiceCIDR.Bits()), destination(), []expr.Any{
		&expr.Lookup{SourceRegister: regKey, SetName: setInfo[serving].Name, Invert: true},
		jump(chainReject),
	})...)
	p.rule(chainReject,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(TCP)}},
		&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
	const portUnreachable = 3
	p.rule(chainReject, &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: portUnreachable})
	for _, inside := range fromInside() {
		p.rule(chainOutside, append(inside, &expr.Verdict{Kind: expr.VerdictReturn})...)
	}
	p.rule(chainOutside, &expr.Verdict{Kind: expr.VerdictDrop})
}

// sourceRules hide the client's address where the answers would not come back
// otherwise.
func (p *Proxy) sourceRules() {
	// A pod that reaches itself by way of a service would see its own address as the
	// client's and answer past the translation.
	p.rule("postrouting", payload(regKey, sourceOffset), payload(regKey+1, destinationOffset),
		&expr.Lookup{SourceRegister: regKey, SetName: setInfo[hairpins].Name}, &expr.Masq{})
	mark := binaryutil.NativeEndian.PutUint32(masqueradeMark)
	p.rule("postrouting",
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 2, Len: 4, Mask: mark, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 2, Data: make([]byte, 4)},
		// Taken off again: the packet may pass here once more, in a tunnel.
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(^uint32(masqueradeMark)), Xor: make([]byte, 4)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
		&expr.Masq{FullyRandom: true})
	// What came to a node port on the loopback is answered by a pod.
	p.rule("postrouting", join(inLoopback(sourceOffset), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte("lo\x00")},
		&expr.Masq{},
	})...)
}

// drawRules choose endpoints: for the address that a packet has, and then for node
// ports if the address is one of the node's.
func (p *Proxy) drawRules(want *table) {
	for _, at := range []struct {
		chain string
		key   []expr.Any
	}{{chainServices, destination()}, {chainNodePorts, nodePort()}} {
		mark := binaryutil.NativeEndian.PutUint32(masqueradeMark)
		p.rule(at.chain, join(at.key, lookup(masquerade, regKey), []expr.Any{
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
	p.rule(chainServices, append(toThisNode(), jump(chainNodePorts))...)
}

// drawRule sends a connection to one of n endpoints, and with affinity remembers
// which. Where nothing more can be remembered it is sent all the same.
func (p *Proxy) drawRule(chain string, key []expr.Any, g group) {
	drawn := join(key, []expr.Any{
		&expr.Immediate{Register: regKind, Data: binaryutil.NativeEndian.PutUint32(g.kind())},
		&expr.Numgen{Register: regSlot, Modulus: g.n, Type: unix.NFT_NG_RANDOM, Offset: g.base()},
		&expr.Lookup{SourceRegister: regKey, DestRegister: regDrawn, IsDestRegSet: true, SetName: setInfo[slots].Name},
	})
	if g.seconds > 0 {
		p.rule(chain, join(drawn, []expr.Any{
			payload(regClient, sourceOffset),
			remember(unix.NFT_DYNSET_OP_ADD, g.seconds, regDrawn),
			translate(regDrawn),
		})...)
	}
	p.rule(chain, append(drawn, translate(regDrawn))...)
}

// recentRules send a client where it was before, unless that endpoint is gone: then
// it is forgotten.
func (p *Proxy) recentRules(chain string, key []expr.Any, seconds uint32) {
	known := join(key, []expr.Any{
		payload(regClient, sourceOffset),
		&expr.Lookup{SourceRegister: regClient, DestRegister: regRecent, IsDestRegSet: true, SetName: recentName(seconds)},
	})
	const forget = 2 // NFT_DYNSET_OP_DELETE
	p.rule(chain, join(known, []expr.Any{
		&expr.Lookup{SourceRegister: regKey, SetName: setInfo[members].Name, Invert: true},
		&expr.Dynset{SrcRegKey: regClient, SrcRegData: regRecent, SetName: recentName(seconds), Operation: forget},
	})...)
	p.rule(chain, join(known, []expr.Any{
		remember(unix.NFT_DYNSET_OP_UPDATE, seconds, regRecent),
		translate(regRecent),
	})...)
}

func remember(operation, seconds, endpoint uint32) expr.Any {
	return &expr.Dynset{
		SrcRegKey: regClient, SrcRegData: endpoint, SetName: recentName(seconds),
		Operation: operation, Timeout: time.Duration(seconds) * time.Second,
	}
}

func translate(register uint32) expr.Any {
	return &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: register, RegProtoMin: register + 1}
}

func jump(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictJump, Chain: chain} }

// Where the addresses are in an IPv4 header.
const (
	sourceOffset      = 12
	destinationOffset = 16
)

func payload(register, offset uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}
}

// destination loads "address . protocol . port" of the packet.
func destination() []expr.Any { return withPort(payload(regKey, destinationOffset)) }

// nodePort is destination with the address that stands for all of the node's.
func nodePort() []expr.Any {
	return withPort(&expr.Immediate{Register: regKey, Data: AnyNodeAddress.AsSlice()})
}

func withPort(address expr.Any) []expr.Any {
	return []expr.Any{
		address,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: regKey + 1},
		&expr.Payload{DestRegister: regKey + 2, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

func lookup(s set, register uint32) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: register, SetName: setInfo[s].Name}}
}

// toThisNode matches packets to an address of the node.
func toThisNode() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
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

func inLoopback(offset uint32) []expr.Any {
	return inNetwork(offset, netip.AddrFrom4([4]byte{127}).AsSlice(), 8)
}

func inNetwork(offset uint32, network []byte, bits int) []expr.Any {
	return []expr.Any{
		payload(1, offset),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: net.CIDRMask(bits, 32), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: network},
	}
}

func join(parts ...[]expr.Any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}
