package policy

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	networkingv1 "k8s.io/api/networking/v1"
)

// Installed are the addresses that the kernel holds back, in order.
type Installed struct {
	Ingress []netip.Addr `json:"ingress,omitempty"`
	Egress  []netip.Addr `json:"egress,omitempty"`
}

// Has says whether an address is held back in one direction.
func (i Installed) Has(ip netip.Addr, t networkingv1.PolicyType) bool {
	if t == networkingv1.PolicyTypeEgress {
		return slices.Contains(i.Egress, ip)
	}
	return slices.Contains(i.Ingress, ip)
}

// Installed reads back from the kernel whom it holds back.
func (e *Enforcer) Installed() (Installed, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.missing != nil {
		return Installed{}, nil
	}
	tables, err := e.conn.ListTablesOfFamily(table().Family)
	if err == nil && !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName }) {
		return Installed{}, nil
	}
	var found [len(directions)][]netip.Addr
	for i, d := range directions {
		var elements []nftables.SetElement
		if err == nil {
			elements, err = e.conn.GetSetElements(podsSet(d.pods))
		}
		for _, el := range elements {
			if ip, ok := netip.AddrFromSlice(el.Key); ok {
				found[i] = append(found[i], ip)
			}
		}
		slices.SortFunc(found[i], netip.Addr.Compare)
	}
	if err != nil {
		return Installed{}, fmt.Errorf("network policies: read the rules from the kernel: %w", err)
	}
	return Installed{Ingress: found[0], Egress: found[1]}, nil
}
