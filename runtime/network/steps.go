package network

import (
	"maps"
	"slices"
)

// step is one transaction on the way from a table to the next.
type step struct {
	*change
	groups map[group]bool // the rules that there are afterwards
}

// steps are what leads from old to t, in one transaction or two. While one is committed
// the kernel may look at a packet by the rules from before it and at the sets from after
// it: it must find an endpoint nevertheless, or its connection is never translated. So
// where a service gets another number of endpoints, it has those of both until all
// rules are there.
func (t *table) steps(old *table) []step {
	c := t.diff(old)
	kept := map[string]bool{}
	for _, e := range c.add[slots] {
		kept[e.key] = true
	}
	var late []element
	c.del[slots] = slices.DeleteFunc(c.del[slots], func(e element) bool {
		if !kept[e.key] {
			late = append(late, e)
		}
		return !kept[e.key]
	})
	if len(late) == 0 {
		return []step{{c, t.groups}}
	}
	both := maps.Clone(old.groups)
	maps.Copy(both, t.groups)
	c.rules = !maps.Equal(old.groups, both)
	rest := &change{rules: !maps.Equal(both, t.groups)}
	rest.del[slots] = late
	return []step{{c, both}, {rest, t.groups}}
}
