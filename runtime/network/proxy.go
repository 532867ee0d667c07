package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	tableName = "gitk8s"
	// batchSize keeps a list of elements within the 64 KiB of a netlink attribute.
	batchSize = 400
	// socketBuffer: a large batch is answered by more than a socket takes by default.
	socketBuffer = 8 << 20
)

// Registers of 4 bytes; a concatenated key lies in consecutive ones.
const (
	regKey    = unix.NFT_REG32_00
	regResult = unix.NFT_REG32_04
)

var (
	slotType    = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeMark)
	portType    = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	addrPort    = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	hairpinType = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)
)

// Proxy sends what is addressed to a service to one of its endpoints: by one
// nftables table of its own in the node's namespace, which is changed in single
// transactions. Connections that are under way are not affected by a change.
//
// The endpoint is drawn per connection: a map with the key
// "address . protocol . port . slot", the slot at random or, with affinity, by a
// hash of the client's address.
type Proxy struct {
	netNS string
	ns    *os.File
	conn  *nftables.Conn

	mu        sync.Mutex
	installed *table // nil when it is not known what the kernel has
}

// NewProxy opens a proxy in the namespace; the empty path is the caller's own. The
// first Apply replaces whatever table an earlier proxy left there.
func NewProxy(netNS string) (*Proxy, error) {
	p := &Proxy{netNS: netNS}
	path := netNS
	if path == "" {
		path = "/proc/thread-self/ns/net"
	}
	var err error
	if p.ns, err = os.Open(path); err != nil {
		return nil, fmt.Errorf("service proxy: %w", err)
	}
	buffers := nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
		return errors.Join(c.SetReadBuffer(socketBuffer), c.SetWriteBuffer(socketBuffer))
	})
	if p.conn, err = nftables.New(nftables.WithNetNSFd(int(p.ns.Fd())), buffers); err != nil {
		_ = p.ns.Close()
		return nil, fmt.Errorf("service proxy: %w", err)
	}
	return p, nil
}

// Close lets go of the kernel; the services go on working.
func (p *Proxy) Close() error { return p.ns.Close() }

// Remove deletes the table.
func (p *Proxy) Remove() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.installed = nil
	t := p.table()
	p.conn.AddTable(t) // so that deleting works when there is none
	p.conn.DelTable(t)
	if err := p.conn.Flush(); err != nil {
		return fmt.Errorf("service proxy: delete table: %w", err)
	}
	return nil
}

// Apply makes the kernel do what desired says, in one transaction with no more
// changes than needed. After an error the next Apply builds everything anew.
func (p *Proxy) Apply(desired State) error {
	want, err := compile(desired)
	if err != nil {
		return fmt.Errorf("service proxy: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.installed
	if before == nil {
		before = newTable()
	}
	c := want.diff(before)
	if p.installed != nil && c.empty() {
		return nil
	}
	if p.installed == nil {
		err = p.build(want)
	} else {
		err = p.update(want, c)
	}
	p.installed = nil
	if err == nil {
		err = p.conn.Flush()
	}
	if err != nil {
		return fmt.Errorf("service proxy: change %d services: %w", len(desired.Services), err)
	}
	p.installed = want
	if err := p.dropStale(c.stale); err != nil {
		return fmt.Errorf("service proxy: %w", err)
	}
	return nil
}

func (p *Proxy) table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName}
}

func (p *Proxy) chain(name string) *nftables.Chain {
	return &nftables.Chain{Name: name, Table: p.table()}
}

func (p *Proxy) slotSet() *nftables.Set {
	return &nftables.Set{Table: p.table(), Name: "slots", IsMap: true, Concatenation: true, KeyType: slotType, DataType: addrPort}
}

func (p *Proxy) servingSet() *nftables.Set {
	return &nftables.Set{Table: p.table(), Name: "serving", Concatenation: true, KeyType: portType}
}

func (p *Proxy) hairpinSet() *nftables.Set {
	return &nftables.Set{Table: p.table(), Name: "hairpins", Concatenation: true, KeyType: hairpinType}
}

// build queues the whole table.
func (p *Proxy) build(want *table) error {
	t := p.table()
	p.conn.AddTable(t)
	p.conn.DelTable(t)
	p.conn.AddTable(t)
	for _, s := range []*nftables.Set{p.slotSet(), p.servingSet(), p.hairpinSet()} {
		if err := p.conn.AddSet(s, nil); err != nil {
			return err
		}
	}
	for _, name := range []string{"services", "refuse"} {
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
		{"refuse-prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, before, "refuse"},
		{"refuse-output", nftables.ChainTypeFilter, nftables.ChainHookOutput, before, "refuse"},
		{"prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, "services"},
		{"output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest, "services"},
		{"postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, ""},
	} {
		c := p.chain(base.name)
		c.Type, c.Hooknum, c.Priority = base.kind, base.hook, base.prio
		p.conn.AddChain(c)
		if base.jump != "" {
			p.rule(base.name, &expr.Verdict{Kind: expr.VerdictJump, Chain: base.jump})
		}
	}
	p.refuseRules()
	// A pod that reaches itself by way of a service would see its own address as the
	// client's and answer past the translation.
	p.rule("postrouting", append(addressPair(), &expr.Lookup{SourceRegister: regKey, SetName: "hairpins"}, &expr.Masq{})...)
	p.drawRules(want)
	return p.queueElements(want, want.diff(newTable()))
}

func (p *Proxy) update(want *table, c *change) error {
	if c.rules {
		p.conn.FlushChain(p.chain("services"))
		p.drawRules(want)
	}
	return p.queueElements(want, c)
}

func (p *Proxy) rule(chain string, exprs ...expr.Any) {
	p.conn.AddRule(&nftables.Rule{Table: p.table(), Chain: p.chain(chain), Exprs: exprs})
}

// destination loads "address . protocol . port" of the packet.
func destination() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: regKey, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: regKey + 1},
		&expr.Payload{DestRegister: regKey + 2, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

func addressPair() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: regKey, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Payload{DestRegister: regKey + 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
	}
}

// drawRules has one rule for each number of endpoints in use.
func (p *Proxy) drawRules(want *table) {
	for _, g := range want.sortedGroups() {
		exprs := destination()
		if g.affinity {
			exprs = append(exprs,
				&expr.Payload{DestRegister: regResult, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
				&expr.Hash{SourceRegister: regResult, DestRegister: regKey + 3, Length: 4, Modulus: g.n, Seed: 0x6b3873, Offset: g.base(), Type: expr.HashTypeJenkins})
		} else {
			exprs = append(exprs, &expr.Numgen{Register: regKey + 3, Modulus: g.n, Type: unix.NFT_NG_RANDOM, Offset: g.base()})
		}
		exprs = append(exprs,
			&expr.Lookup{SourceRegister: regKey, DestRegister: regResult, IsDestRegSet: true, SetName: "slots"},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: regResult, RegProtoMin: regResult + 1})
		p.rule("services", exprs...)
	}
}

// refuseRules answer new connections to services without endpoints, and to service
// addresses that nobody has, at once instead of letting them time out.
func (p *Proxy) refuseRules() {
	network := ServiceCIDR.Masked().Addr().As4()
	mask := net.CIDRMask(ServiceCIDR.Bits(), 32)
	match := []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: network[:]},
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
	match = append(append(match, destination()...), &expr.Lookup{SourceRegister: regKey, SetName: "serving", Invert: true})
	tcp := append(append([]expr.Any{}, match...),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(TCP)}},
		&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
	p.rule("refuse", tcp...)
	const portUnreachable = 3
	p.rule("refuse", append(match, &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: portUnreachable})...)
}

// queueElements deletes before it adds: a changed endpoint is both.
func (p *Proxy) queueElements(want *table, c *change) error {
	slots, serving, hairpins := p.slotSet(), p.servingSet(), p.hairpinSet()
	slotElements := func(keys []slotKey, values bool) []nftables.SetElement {
		out := make([]nftables.SetElement, 0, len(keys))
		for _, k := range keys {
			e := nftables.SetElement{Key: append(k.bytes(), binaryutil.NativeEndian.PutUint32(k.slot)...)}
			if values {
				to := want.slots[k]
				e.Val = append(to.Addr().AsSlice(), portBytes(to.Port())...)
			}
			out = append(out, e)
		}
		return out
	}
	ports := func(keys []portKey) []nftables.SetElement {
		out := make([]nftables.SetElement, 0, len(keys))
		for _, k := range keys {
			out = append(out, nftables.SetElement{Key: k.bytes()})
		}
		return out
	}
	pairs := func(addrs []netip.Addr) []nftables.SetElement {
		out := make([]nftables.SetElement, 0, len(addrs))
		for _, a := range addrs {
			out = append(out, nftables.SetElement{Key: append(a.AsSlice(), a.AsSlice()...)})
		}
		return out
	}
	return errors.Join(
		inBatches(slotElements(c.delSlots, false), slots, p.conn.SetDeleteElements),
		inBatches(ports(c.delServing), serving, p.conn.SetDeleteElements),
		inBatches(pairs(c.delHairpins), hairpins, p.conn.SetDeleteElements),
		inBatches(slotElements(c.addSlots, true), slots, p.conn.SetAddElements),
		inBatches(ports(c.addServing), serving, p.conn.SetAddElements),
		inBatches(pairs(c.addHairpins), hairpins, p.conn.SetAddElements),
	)
}

func inBatches(elements []nftables.SetElement, set *nftables.Set, do func(*nftables.Set, []nftables.SetElement) error) error {
	for len(elements) > 0 {
		n := min(batchSize, len(elements))
		if err := do(set, elements[:n]); err != nil {
			return err
		}
		elements = elements[n:]
	}
	return nil
}

// bytes is the key as it lies in registers: each field padded to four bytes.
func (k portKey) bytes() []byte {
	out := k.ip.AsSlice()
	out = append(out, byte(k.proto), 0, 0, 0)
	return append(out, portBytes(k.port)...)
}

func portBytes(port uint16) []byte {
	return append(binary.BigEndian.AppendUint16(nil, port), 0, 0)
}

// dropStale ends UDP flows to endpoints that are gone: without an end of their own
// they would be translated to them for as long as the client keeps sending.
func (p *Proxy) dropStale(flows []staleFlow) error {
	if len(flows) == 0 {
		return nil
	}
	h, err := handle(p.netNS, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer h.Close()
	filters := make([]netlink.CustomConntrackFilter, 0, len(flows))
	for _, f := range flows {
		filter := &netlink.ConntrackFilter{}
		err := errors.Join(
			filter.AddProtocol(uint8(f.service.proto)),
			filter.AddIP(netlink.ConntrackOrigDstIP, net.IP(f.service.ip.AsSlice())),
			filter.AddPort(netlink.ConntrackOrigDstPort, f.service.port))
		if f.endpoint.IsValid() {
			err = errors.Join(err, filter.AddIP(netlink.ConntrackReplySrcIP, net.IP(f.endpoint.AsSlice())))
		}
		if err != nil {
			return fmt.Errorf("flows of %s: %w", f.service.ip, err)
		}
		filters = append(filters, filter)
	}
	if _, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filters...); err != nil {
		return fmt.Errorf("drop flows to endpoints that are gone: %w", err)
	}
	return nil
}
