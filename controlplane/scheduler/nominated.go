package scheduler

import (
	"cmp"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

// besides asks the filters about a node as if the pods were there that it is being
// cleared for, as far as they are no less important than the pod.
func (d *decision) besides(n *Node) verdict {
	others := d.c.nominated[n.Name]
	var there []*Pod
	for _, uid := range slices.SortedFunc(maps.Keys(others), func(a, b types.UID) int { return cmp.Compare(a, b) }) {
		if o := others[uid]; uid != d.p.UID && o.priority >= d.p.priority {
			there = append(there, o)
		}
	}
	if len(there) == 0 {
		return verdict{}
	}
	for _, o := range there {
		d.c.put(o, n)
	}
	d.prepare()
	v := d.asIs(n)
	for _, o := range there {
		d.c.take(o, n)
	}
	d.prepare()
	return v
}
