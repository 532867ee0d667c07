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
	return installed(elements)
}

// installed puts together the endpoints of each port from what newPart has laid out.
func installed(elements []nftables.SetElement) ([]Installed, error) {
	found := map[portKey]*Installed{}
	for _, e := range elements {
		const keySize, valueSize = 4 + 4 + 4 + 4 + 4, 4 + 4
		if len(e.Key) != keySize || len(e.Val) != valueSize {
			return nil, fmt.Errorf("service proxy: an endpoint in the kernel has %d and %d bytes", len(e.Key), len(e.Val))
		}
		key := portKey{netip.AddrFrom4([4]byte(e.Key)), Protocol(e.Key[4]), binary.BigEndian.Uint16(e.Key[8:])}
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte(e.Val)), binary.BigEndian.Uint16(e.Val[4:]))
		at := found[key]
		if at == nil {
			at = &Installed{IP: key.ip, Port: key.port, Proto: key.proto}
			found[key] = at
		}
		if binaryutil.NativeEndian.Uint32(e.Key[12:])&insideKind != 0 {
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
