package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/google/nftables"
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

// Proxy sends what is addressed to a service to one of its endpoints: by an nftables
// table of its own for each family in the node's namespace, which is changed in single
// transactions. Connections that are under way are not affected by a change.
//
// The endpoint is drawn per connection: a map with the key
// "address . protocol . port . kind . slot", the slot at random. With affinity the
// kernel remembers which one a client had.
type Proxy struct {
	families []*familyProxy
}

// familyProxy is a proxy for the addresses of one family.
type familyProxy struct {
	*ipFamily
	netNS   string
	ns      *os.File
	conn    *nftables.Conn
	cluster netip.Prefix // that of the services' own addresses

	mu        sync.Mutex
	installed *table // nil when it is not known what the kernel has
}

// NewProxy opens a proxy in the namespace; the empty path is the caller's own. services
// are the ranges of the services' addresses; of another family than these nothing is
// done. The first Apply replaces whatever tables an earlier proxy left there.
func NewProxy(netNS string, services []netip.Prefix) (*Proxy, error) {
	p := &Proxy{}
	for _, cluster := range services {
		f, err := newFamilyProxy(netNS, cluster)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("service proxy: %w", err), p.Close())
		}
		p.families = append(p.families, f)
	}
	return p, nil
}

func newFamilyProxy(netNS string, cluster netip.Prefix) (*familyProxy, error) {
	p := &familyProxy{ipFamily: familyOf(cluster.Addr()), netNS: netNS, cluster: cluster}
	path := netNS
	if path == "" {
		path = "/proc/thread-self/ns/net"
	}
	var err error
	if p.ns, err = os.Open(path); err != nil {
		return nil, err
	}
	buffers := nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
		return errors.Join(c.SetReadBuffer(socketBuffer), c.SetWriteBuffer(socketBuffer))
	})
	if p.conn, err = nftables.New(nftables.WithNetNSFd(int(p.ns.Fd())), buffers); err != nil {
		_ = p.ns.Close()
		return nil, err
	}
	return p, nil
}

// CheckNFTables says whether the kernel has nftables, in a namespace; the empty path is
// the caller's own.
func CheckNFTables(netNS string) error {
	// First without the library, which does not survive a socket that cannot be made.
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("nftables: %w", os.NewSyscallError("socket", err))
	}
	_ = unix.Close(fd)
	p, err := newFamilyProxy(netNS, netip.PrefixFrom(AnyNodeAddress, 0))
	if err != nil {
		return err
	}
	defer p.ns.Close()
	if _, err := p.conn.ListTablesOfFamily(nftables.TableFamilyIPv4); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// Close lets go of the kernel; the services go on working.
func (p *Proxy) Close() error {
	var errs []error
	for _, f := range p.families {
		errs = append(errs, f.ns.Close())
	}
	return errors.Join(errs...)
}

// Remove deletes the tables.
func (p *Proxy) Remove() error {
	var errs []error
	for _, f := range p.families {
		errs = append(errs, f.remove())
	}
	return errors.Join(errs...)
}

func (p *familyProxy) remove() error {
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

// Apply makes the kernel do what desired says, with no more changes than needed, and
// without a moment at which a service that has endpoints before and after has none.
// After an error the next Apply builds everything anew.
func (p *Proxy) Apply(desired State) error {
	var errs []error
	for _, f := range p.families {
		errs = append(errs, f.apply(desired))
	}
	return errors.Join(errs...)
}

func (p *familyProxy) apply(desired State) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.installed
	if before == nil {
		before = newTable(p.cluster)
	}
	want, err := compile(desired, before)
	if err != nil {
		return fmt.Errorf("service proxy: %w", err)
	}
	c := want.diff(before)
	if p.installed != nil && c.empty() {
		return nil
	}
	if p.installed == nil {
		if err = p.build(want); err == nil {
			err = p.conn.Flush()
		}
	} else {
		err = p.update(before, want)
	}
	p.installed = nil
	if err != nil {
		return fmt.Errorf("service proxy: change %d services: %w", len(desired.Services), err)
	}
	p.installed = want
	if err := p.dropStale(c.stale); err != nil {
		return fmt.Errorf("service proxy: %w", err)
	}
	return nil
}

func (p *familyProxy) table() *nftables.Table {
	return &nftables.Table{Family: p.ipFamily.table, Name: tableName}
}

func (p *familyProxy) chain(name string) *nftables.Chain {
	return &nftables.Chain{Name: name, Table: p.table()}
}

// build queues the whole table.
func (p *familyProxy) build(want *table) error {
	t := p.table()
	p.conn.AddTable(t)
	p.conn.DelTable(t)
	p.conn.AddTable(t)
	for s := range setCount {
		if err := p.conn.AddSet(p.kernelSet(s), nil); err != nil {
			return err
		}
	}
	if err := p.addRecent(want.timeouts()); err != nil {
		return err
	}
	p.buildChains()
	p.drawRules(want)
	return p.queueElements(want.diff(newTable(p.cluster)))
}

// update sends what has changed. Which client had which endpoint is kept.
func (p *familyProxy) update(before, want *table) error {
	for _, s := range want.steps(before) {
		now := &table{groups: s.groups}
		if err := p.queue(before, now, s.change); err != nil {
			return err
		}
		if err := p.conn.Flush(); err != nil {
			return err
		}
		before = now
	}
	return nil
}

// queue queues a step, between two tables of which the rules count.
func (p *familyProxy) queue(before, after *table, c *change) error {
	if c.rules {
		old, now := before.timeouts(), after.timeouts()
		if err := p.addRecent(without(now, old)); err != nil {
			return err
		}
		for _, chain := range drawChains {
			p.conn.FlushChain(p.chain(chain))
		}
		p.drawRules(after)
		for _, seconds := range without(old, now) {
			p.conn.DelSet(p.recentSet(seconds))
		}
	}
	return p.queueElements(c)
}

func (p *familyProxy) addRecent(timeouts []uint32) error {
	for _, seconds := range timeouts {
		if err := p.conn.AddSet(p.recentSet(seconds), nil); err != nil {
			return err
		}
	}
	return nil
}

func without(a, b []uint32) []uint32 {
	return slices.DeleteFunc(slices.Clone(a), func(x uint32) bool { return slices.Contains(b, x) })
}

func (p *familyProxy) rule(chain string, exprs ...expr.Any) {
	p.conn.AddRule(&nftables.Rule{Table: p.table(), Chain: p.chain(chain), Exprs: exprs})
}

// queueElements deletes before it adds: a changed element is both.
func (p *familyProxy) queueElements(c *change) error {
	var errs []error
	for s := range setCount {
		errs = append(errs, inBatches(p.kernelElements(c.del[s], false), p.kernelSet(s), p.conn.SetDeleteElements))
	}
	for s := range setCount {
		errs = append(errs, inBatches(p.kernelElements(c.add[s], true), p.kernelSet(s), p.conn.SetAddElements))
	}
	return errors.Join(errs...)
}

// kernelElements are the elements as the library wants them, with or without values.
func (f *ipFamily) kernelElements(elements []element, values bool) []nftables.SetElement {
	out := make([]nftables.SetElement, 0, len(elements))
	for _, e := range elements {
		k := nftables.SetElement{Key: []byte(e.key)}
		if half := len(e.key) / 2; f.sets[e.set].Interval {
			k.Key, k.KeyEnd = k.Key[:half], k.Key[half:]
		}
		switch {
		case !values:
		case e.value == toRefuse:
			k.VerdictData = &expr.Verdict{Kind: expr.VerdictJump, Chain: chainReject}
		case e.value == toDrop:
			k.VerdictData = &expr.Verdict{Kind: expr.VerdictJump, Chain: chainOutside}
		case e.value != "":
			k.Val = []byte(e.value)
		}
		out = append(out, k)
	}
	return out
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

// dropStale ends UDP flows to endpoints that are gone: without an end of their own
// they would be translated to them for as long as the client keeps sending.
func (p *familyProxy) dropStale(flows []staleFlow) error {
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
			filter.AddPort(netlink.ConntrackOrigDstPort, f.service.port))
		if !f.service.ip.IsUnspecified() {
			err = errors.Join(err, filter.AddIP(netlink.ConntrackOrigDstIP, net.IP(f.service.ip.AsSlice())))
		}
		if f.endpoint.IsValid() {
			err = errors.Join(err, filter.AddIP(netlink.ConntrackReplySrcIP, net.IP(f.endpoint.AsSlice())))
		}
		if err != nil {
			return fmt.Errorf("flows of %s: %w", f.service.ip, err)
		}
		filters = append(filters, filter)
	}
	if _, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, p.conntrack, filters...); err != nil {
		return fmt.Errorf("drop flows to endpoints that are gone: %w", err)
	}
	return nil
}
