package scheduler

import (
	"slices"
)

// A decision looks at as many nodes as it takes to find this many that fit: half of
// them in a cluster of a few, a twentieth in one of thousands, never fewer than 100
// ("Scheduler Performance Tuning").
const (
	minFeasible     = 100
	basePercentage  = 50
	leastPercentage = 5
	nodesPerPercent = 125
)

func enough(nodes int) int {
	return max(nodes*max(basePercentage-nodes/nodesPerPercent, leastPercentage)/100, minFeasible)
}

// Result of placing a pod.
type Result struct {
	Node  string
	Score int64
	// Next is the node, by its place in Nodes, at which the next decision may begin
	// so that all nodes have their turn; 0 if all have been looked at.
	Next int
}

// scratch is memory that decisions use again.
type scratch struct {
	fit   []*Node
	total []int64
	one   []int64
	seen  []bool
}

// marks returns n unset marks.
func (s *scratch) marks(n int) []bool {
	s.seen = slices.Grow(s.seen[:0], n)[:n]
	clear(s.seen)
	return s.seen
}

// verdict is what the filters say about a node; plugin is nil if it fits.
type verdict struct {
	plugin  *Plugin
	reasons []Rejection
}

func (v *verdict) fits() bool { return v.plugin == nil }

// final says whether the node would not fit without the pods on it, either.
func (v *verdict) final() bool {
	return slices.ContainsFunc(v.reasons, func(r Rejection) bool { return r.Final })
}

// decision is a pod with what the plugins have to ask about each node.
type decision struct {
	c      *Cluster
	p      *Pod
	checks []pluginCheck
}

type pluginCheck struct {
	plugin *Plugin
	check  Check
}

func (c *Cluster) decision(p *Pod) *decision {
	d := &decision{c: c, p: p, checks: make([]pluginCheck, 0, len(Plugins))}
	d.prepare()
	return d
}

func (d *decision) prepare() {
	d.checks = d.checks[:0]
	for _, plugin := range Plugins {
		if plugin.Filter == nil {
			continue
		}
		if check := plugin.Filter(d.c, d.p); check != nil {
			d.checks = append(d.checks, pluginCheck{plugin, check})
		}
	}
}

// on asks the filters about a node. Where it is being cleared for others that are
// no less important the pod must fit with and without them: they may come, or not.
func (d *decision) on(n *Node) verdict {
	if len(d.c.nominated) > 0 {
		if v := d.besides(n); !v.fits() {
			return v
		}
	}
	return d.asIs(n)
}

func (d *decision) asIs(n *Node) verdict {
	for i := range d.checks {
		if r := d.checks[i].check(n); len(r) > 0 {
			return verdict{d.checks[i].plugin, r}
		}
	}
	return verdict{}
}

// accepts says whether a node fits. Why not takes longer: here the check that objected
// last is the first to be asked about the next node.
func (d *decision) accepts(n *Node) bool {
	if len(d.c.nominated) > 0 {
		v := d.on(n)
		return v.fits()
	}
	for i := range d.checks {
		if len(d.checks[i].check(n)) > 0 {
			d.checks[0], d.checks[i] = d.checks[i], d.checks[0]
			return false
		}
	}
	return true
}

// all asks the filters, in their order, about all nodes.
func (d *decision) all(nodes []*Node) []verdict {
	d.prepare()
	out := make([]verdict, len(nodes))
	for i, n := range nodes {
		out[i] = d.on(n)
	}
	return out
}

// Schedule chooses the node for a pod: of those that no filter rejects the one with
// the highest score, the first among equals. It begins with the node at place from
// and, where there are many, leaves it at a part of them. A node that was cleared for
// the pod comes before all others. It is a pure function of its arguments; the error
// is a *FitError.
func Schedule(c *Cluster, p *Pod, from int) (Result, error) {
	c.tidy()
	nodes := c.Nodes()
	d := c.decision(p)
	if n := c.nodes[c.nominee[p.UID]]; n != nil {
		if v := d.on(n); v.fits() {
			return Result{Node: n.Name, Next: from}, nil
		}
	}
	want := enough(len(nodes))
	if len(nodes) <= want || from >= len(nodes) {
		from = 0
	}
	fit, looked := c.scratch.fit[:0], 0
	for at := from; looked < len(nodes) && len(fit) < want; looked++ {
		if at == len(nodes) {
			at = 0
		}
		if d.accepts(nodes[at]) {
			fit = append(fit, nodes[at])
		}
		at++
	}
	c.scratch.fit = fit
	if len(fit) == 0 {
		return Result{Next: from}, newFitError(nodes, d.all(nodes))
	}
	res := Result{}
	if len(nodes) > want {
		res.Next = (from + looked) % len(nodes)
	}
	total := d.rate(fit, nil)
	best := 0
	for i := range total {
		if total[i] > total[best] {
			best = i
		}
	}
	res.Node, res.Score = fit[best].Name, total[best]
	return res, nil
}

// rate adds up the weighted scores of nodes that fit, and tells each if asked to.
func (d *decision) rate(nodes []*Node, tell func(plugin *Plugin, scores []int64)) []int64 {
	s := &d.c.scratch
	s.total = slices.Grow(s.total[:0], len(nodes))[:len(nodes)]
	s.one = slices.Grow(s.one[:0], len(nodes))[:len(nodes)]
	clear(s.total)
	for _, plugin := range Plugins {
		if plugin.Score == nil || !plugin.Score(d.c, d.p, nodes, s.one) {
			continue
		}
		for i, v := range s.one {
			s.total[i] += plugin.Weight * v
		}
		if tell != nil {
			tell(plugin, s.one)
		}
	}
	return s.total
}
