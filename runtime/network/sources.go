package network

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// sourcesTable holds the rule of guardSources.
const sourcesTable = "gitk8s-pods"

// guardSources drops what a pod sends by IPv6 with an address that is not its own, as
// rp_filter, which there is for IPv4 alone, does: the route back to the source must lead
// to the link that the packet came by. Questions for a neighbour, which have no source
// yet, are let through by the kernel's lookup.
func guardSources(netNS string) error {
	return onTable(netNS, func(c *nftables.Conn, t *nftables.Table) {
		c.AddTable(t)
		c.DelTable(t)
		c.AddTable(t)
		chain := c.AddChain(&nftables.Chain{
			Name: "sources", Table: t, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
		})
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(PodLinks)},
			&expr.Fib{Register: 1, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	})
}

// removeSourcesGuard takes it away, if it is there.
func removeSourcesGuard(netNS string) error {
	return onTable(netNS, func(c *nftables.Conn, t *nftables.Table) {
		c.AddTable(t)
		c.DelTable(t)
	})
}

func onTable(netNS string, queue func(*nftables.Conn, *nftables.Table)) error {
	c, err := nftIn(netNS)
	if err != nil {
		return fmt.Errorf("sources of pods: %w", err)
	}
	defer c.CloseLasting()
	queue(c, &nftables.Table{Family: nftables.TableFamilyIPv6, Name: sourcesTable})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("sources of pods: %w", err)
	}
	return nil
}
