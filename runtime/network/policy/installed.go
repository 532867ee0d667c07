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
	var out Installed
	for _, f := range e.families {
		found, err := f.read()
		if err != nil {
			return Installed{}, fmt.Errorf("network policies: read the rules from the kernel: %w", err)
		}
		out.Ingress, out.Egress = append(out.Ingress, found[0]...), append(out.Egress, found[1]...)
	}
	return out, nil
}

func (e *familyEnforcer) read() (found [len(directions)][]netip.Addr, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.missing != nil {
		return found, nil
	}
	tables, err := e.conn.ListTablesOfFamily(e.table)
	if err != nil || !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName }) {
		return found, err
	}
	for i, d := range directions {
		elements, err := e.conn.GetSetElements(e.podsSet(d.pods))
		if err != nil {
			return found, err
		}
		for _, el := range elements {
			if ip, ok := netip.AddrFromSlice(el.Key); ok {
				found[i] = append(found[i], ip)
			}
		}
		slices.SortFunc(found[i], netip.Addr.Compare)
	}
	return found, nil
}
