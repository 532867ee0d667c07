package scheduler

import (
	"math"

	"k8s.io/apimachinery/pkg/labels"
)

// interPodAffinity places pods by the pods that are there: near those that the pod's
// affinity selects, apart from those of its anti-affinity and from those whose
// anti-affinity selects it; and it prefers nodes by the preferred terms of both
// sides ("Inter-pod affinity and anti-affinity").
var interPodAffinity = Plugin{
	Name: "InterPodAffinity", Filter: affinityFilter, Score: affinityScore, Weight: 2,
	Wakes: func(c *Cluster, p *Pod, e *Event) bool {
		switch {
		case e.is(nodeAdded | nodeLabels | namespaceLabels):
			return true
		case e.is(podPlaced):
			return e.selectedByAny(c, p.near)
		case e.is(podLabels):
			return e.selectedByAny(c, p.near) || e.selectedByAny(c, p.apart)
		case e.is(podGone):
			return e.selectedByAny(c, p.apart) || e.Pod.guardsAgainst(c, p)
		}
		return false
	},
}

var (
	refusedAffinity       = finally("node(s) didn't match pod affinity rules")
	refusedAntiAffinity   = because("node(s) didn't match pod anti-affinity rules")
	refusedGuardedAgainst = because("node(s) didn't satisfy existing pods anti-affinity rules")
)

// guardsAgainst says whether a pod's required anti-affinity is about another.
func (p *Pod) guardsAgainst(c *Cluster, other *Pod) bool {
	cl := c.class(other)
	for i := range p.apart {
		if p.apart[i].matches(c, cl) {
			return true
		}
	}
	return false
}

func affinityFilter(c *Cluster, p *Pod) Check {
	guards := c.class(p).guards
	if len(p.near)+len(p.apart)+len(guards) == 0 {
		return nil
	}
	near, first := c.near(p)
	apart := make([]*tally, 0, len(p.apart))
	for i := range p.apart {
		if t := c.query(false, p.apart[i].match).tally(c, c.topology(p.apart[i].key)); t.total > 0 {
			apart = append(apart, t)
		}
	}
	return func(n *Node) []Rejection {
		for _, t := range near {
			if domain := n.domains[t.index]; domain == none || (!first && t.of(domain) == 0) {
				return refusedAffinity
			}
		}
		for _, t := range apart {
			if t.of(n.domains[t.index]) > 0 {
				return refusedAntiAffinity
			}
		}
		for _, g := range guards {
			if g.tally.of(n.domains[g.tally.index]) > 0 {
				return refusedGuardedAgainst
			}
		}
		return nil
	}
}

// near counts the pods that all required affinity terms of a pod select. The first
// of a group that has affinity to itself may run anywhere.
func (c *Cluster) near(p *Pod) (out []*tally, first bool) {
	if len(p.near) == 0 {
		return nil, false
	}
	all := make([]match, len(p.near))
	first = true
	for i := range p.near {
		all[i] = p.near[i].match
		first = first && all[i].matches(c, c.class(p))
	}
	q := c.query(false, all...)
	for i := range p.near {
		t := q.tally(c, c.topology(p.near[i].key))
		out = append(out, t)
		first = first && t.total == 0
	}
	return out, first
}

// affinityScore adds the weights of the preferred terms of the pod for each pod that
// they select in the node's domain, and those of the terms of such pods that select
// this one.
func affinityScore(c *Cluster, p *Pod, nodes []*Node, out []int64) bool {
	type part struct {
		*tally
		weight int64
	}
	var parts []part
	for i := range p.wishes {
		w := &p.wishes[i]
		if t := c.query(false, w.match).tally(c, c.topology(w.key)); t.total > 0 {
			parts = append(parts, part{t, w.weight})
		}
	}
	for _, w := range c.class(p).wishes {
		if w.tally.total > 0 {
			parts = append(parts, part{w.tally, w.weight})
		}
	}
	if len(parts) == 0 {
		return false
	}
	least, most := int64(math.MaxInt64), int64(math.MinInt64)
	for i, n := range nodes {
		var score int64
		for _, t := range parts {
			score += t.weight * int64(t.of(n.domains[t.index]))
		}
		out[i] = score
		least, most = min(least, score), max(most, score)
	}
	if most == least {
		return false
	}
	for i := range out {
		out[i] = int64(MaxScore * float64(out[i]-least) / float64(most-least))
	}
	return true
}

// selectedByAny says whether one of a pod's terms is about the pod of an event.
func (e *Event) selectedByAny(c *Cluster, list []demand) bool {
	for i := range list {
		if e.selected(c, &list[i].match) {
			return true
		}
	}
	return false
}

// selected says whether the pod of an event is, or was before it, one of those that
// are selected.
func (e *Event) selected(c *Cluster, m *match) bool {
	return e.Pod != nil && m.matches(c, &podClass{namespace: e.Pod.Namespace, labels: labels.Set(e.Pod.Labels)}) ||
		e.Old != nil && m.matches(c, &podClass{namespace: e.Old.Namespace, labels: labels.Set(e.Old.Labels)})
}
