package network

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
)

// Installed is what the kernel does with connections to one port of one address.
type Installed struct {
	// IP is AnyNodeAddress for a port that every address of the node has.
	IP    netip.Addr `json:"ip"`
	Port  uint16     `json:"port"`
	Proto Protocol   `json:"proto"`
	// Endpoints are those that a connection may go to, in order; Inside those of the
	// node itself and its pods, where they are others.
	Endpoints []netip.AddrPort `json:"endpoints,omitempty"`
	Inside    []netip.AddrPort `json:"inside,omitempty"`
}

// Installed reads back from the kernel what it does, in no order. Ports without endpoints
// are left out.
func (p *Proxy) Installed() ([]Installed, error) {
	var out []Installed
	for _, f := range p.families {
		found, err := f.installedServices()
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

func (p *familyProxy) installedServices() ([]Installed, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	tables, err := p.conn.ListTablesOfFamily(p.table().Family)
	if err == nil && !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName }) {
		return nil, nil
	}
	var elements []nftables.SetElement
	if err == nil {
		elements, err = p.conn.GetSetElements(p.kernelSet(slots))
	}
	if err != nil {
		return nil, fmt.Errorf("service proxy: read the services from the kernel: %w", err)
	}
	return p.parse(elements)
}

// parse puts together the endpoints of each port from what newPart has laid out.
func (f *ipFamily) parse(elements []nftables.SetElement) ([]Installed, error) {
	found := map[portKey]*Installed{}
	for _, e := range elements {
		n := int(f.length)
		if len(e.Key) != n+16 || len(e.Val) != n+4 {
			return nil, fmt.Errorf("service proxy: an endpoint in the kernel has %d and %d bytes", len(e.Key), len(e.Val))
		}
		rest := e.Key[n:]
		key := portKey{addrOf(e.Key[:n]), Protocol(rest[0]), binary.BigEndian.Uint16(rest[4:])}
		to := netip.AddrPortFrom(addrOf(e.Val[:n]), binary.BigEndian.Uint16(e.Val[n:]))
		at := found[key]
		if at == nil {
			at = &Installed{IP: key.ip, Port: key.port, Proto: key.proto}
			found[key] = at
		}
		if binaryutil.NativeEndian.Uint32(rest[8:])&insideKind != 0 {
			at.Inside = append(at.Inside, to)
		} else {
			at.Endpoints = append(at.Endpoints, to)
		}
	}
	out := make([]Installed, 0, len(found))
	for _, at := range found {
		slices.SortFunc(at.Endpoints, netip.AddrPort.Compare)
		slices.SortFunc(at.Inside, netip.AddrPort.Compare)
		out = append(out, *at)
	}
	return out, nil
}
