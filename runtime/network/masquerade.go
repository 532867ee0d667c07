package network

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// outsideTable is the nftables table, of each family, by which pods reach what is outside
// of the cluster: nobody there knows the way to a pod, so the node's address stands for it.
const outsideTable = "gitk8s-outside"

// hidden says whose addresses are hidden, and from whom they are not.
type hidden struct {
	// pods are this node's, cluster all pods, of one family.
	pods, cluster netip.Prefix
	// peers are the machines that know the way to pods.
	peers []netip.Addr
}

// masquerades are those of a node, by family; without addresses of pods there are none.
func (c MeshConfig) masquerades(peers []Peer) map[*ipFamily]hidden {
	out := map[*ipFamily]hidden{}
	if !c.Masquerade {
		return out
	}
	for _, p := range peers {
		if c.isSelf(p) {
			out[familyOf(p.PodCIDR.Addr())] = hidden{pods: p.PodCIDR.Masked(), cluster: ofFamily(c.Pods, p.PodCIDR.Addr().Is6())}
		}
	}
	for f, m := range out {
		for _, p := range peers {
			if familyOf(p.NodeIP) == f {
				m.peers = append(m.peers, p.NodeIP)
			}
		}
		slices.SortFunc(m.peers, netip.Addr.Compare)
		m.peers = slices.Compact(m.peers)
		out[f] = m
	}
	return out
}

// applyMasquerades makes the kernel hide what want says, if that is a change.
func (m *Mesh) applyMasquerades(want map[*ipFamily]hidden) error {
	if m.cfg.Server || m.masqueraded != nil && reflect.DeepEqual(m.masqueraded, want) {
		return nil
	}
	m.masqueraded = nil
	if CheckNFTables(m.cfg.NetNS) != nil {
		return nil // which `gitk8s check` says
	}
	conn, err := nftIn(m.cfg.NetNS)
	if err != nil {
		return fmt.Errorf("hide pods from outside: %w", err)
	}
	defer conn.CloseLasting()
	for _, f := range []*ipFamily{ipv4, ipv6} {
		t := &nftables.Table{Family: f.table, Name: outsideTable}
		w, wanted := want[f]
		if !wanted && f == ipv6 && !hasIPv6(m.cfg.Pods) {
			continue // the kernel may have no IPv6
		}
		conn.AddTable(t) // so that deleting works when there is none
		conn.DelTable(t)
		if !wanted {
			continue
		}
		conn.AddTable(t)
		peers := &nftables.Set{Table: t, Name: "peers", KeyType: f.addr}
		if err := conn.AddSet(peers, addressElements(w.peers)); err != nil {
			return fmt.Errorf("hide pods from outside: %w", err)
		}
		chain := conn.AddChain(&nftables.Chain{
			Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
		conn.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: join(
			f.inNetwork(f.source, w.pods),
			f.compare(f.destination, w.cluster, expr.CmpOpNeq),
			[]expr.Any{
				f.load(1, f.destination),
				&expr.Lookup{SourceRegister: 1, SetName: peers.Name, Invert: true},
				&expr.Masq{FullyRandom: true},
			},
		)})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("hide pods from outside: %w", err)
	}
	m.masqueraded = want
	return nil
}
