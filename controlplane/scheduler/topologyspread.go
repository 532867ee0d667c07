package scheduler

import "math"

// podTopologySpread keeps the numbers of matching pods in the domains of a topology
// close to each other: it refuses nodes where the pod would break a constraint with
// DoNotSchedule, and prefers the emptier domains for ScheduleAnyway ("Pod Topology
// Spread Constraints").
var podTopologySpread = Plugin{
	Name: "PodTopologySpread", Filter: spreadFilter, Score: spreadScore, Weight: 2,
	Wakes: func(c *Cluster, p *Pod, e *Event) bool {
		if e.is(nodeAdded | nodeGone | nodeLabels | nodeTaints) {
			return true // domains come, go, grow or are counted now
		}
		if !e.is(podPlaced|podGone|podLabels) || e.Namespace != p.Namespace {
			return false
		}
		for i := range p.hard {
			if e.selected(c, &p.hard[i].match) {
				return true
			}
		}
		return false
	},
}

var (
	refusedSpread        = because("node(s) didn't match pod topology spread constraints")
	refusedSpreadMissing = finally("node(s) didn't match pod topology spread constraints (missing required label)")
)

// spreadConstraint is a topology spread constraint of a pod.
type spreadConstraint struct {
	match
	key                 string
	maxSkew, minDomains int32
	// anyAffinity and anyTaints count nodes that the pod's node affinity or
	// tolerations keep it from.
	anyAffinity, anyTaints bool
	// self: the pod itself is one of those that are counted.
	self bool
}

// includes says whether pods on a node count for a constraint of a pod.
func (s *spreadConstraint) includes(p *Pod, n *Node) bool {
	return (s.anyAffinity || p.admits(n)) && (s.anyTaints || untolerated(p, n) == nil)
}

// everywhere says whether all nodes count.
func (s *spreadConstraint) everywhere(c *Cluster, p *Pod) bool {
	return (s.anyAffinity || !p.selective) && (s.anyTaints || c.tainted == 0)
}

// spread is a constraint with what is counted for it.
type spread struct {
	*spreadConstraint
	topology *topology
	// counts by domain, and the lowest of those that count.
	counts *tally
	lowest int32
}

// spreads counts for constraints. Nodes that lack the label of one of them count
// for none, if all are required.
func (c *Cluster) spreads(p *Pod, list []spreadConstraint, all bool) []spread {
	out := make([]spread, len(list))
	full := true
	for i := range list {
		t := c.topology(list[i].key)
		out[i] = spread{spreadConstraint: &list[i], topology: t}
		full = full && t.members == len(c.nodes)
	}
	for i := range out {
		s := &out[i]
		q := c.query(true, s.match)
		domains := s.topology.live
		if s.everywhere(c, p) && (full || !all) {
			s.counts = q.tally(c, s.topology)
			s.lowest = s.counts.lowest()
		} else {
			s.counts, s.lowest, domains = c.countSome(p, s, q, out, all)
		}
		if int32(domains) < s.minDomains {
			s.lowest = 0
		}
	}
	return out
}

// countSome counts on those nodes alone that count for a constraint.
func (c *Cluster) countSome(p *Pod, s *spread, q *query, spreads []spread, all bool) (counts *tally, lowest int32, domains int) {
	here := q.tally(c, c.topologies[0])
	counts = newTally(s.topology)
	known := make([]bool, len(s.topology.nodes))
	for _, n := range c.nodes {
		if (all && !complete(n, spreads)) || !s.includes(p, n) {
			continue
		}
		domain := n.domains[s.topology.index]
		if domain == none {
			continue
		}
		if !known[domain] {
			known[domain] = true
			domains++
		}
		counts.add(domain, here.of(n.domains[0]))
	}
	lowest = math.MaxInt32
	for domain, ok := range known {
		if ok {
			lowest = min(lowest, counts.of(int32(domain)))
		}
	}
	if domains == 0 {
		lowest = 0
	}
	return counts, lowest, domains
}

func complete(n *Node, spreads []spread) bool {
	for i := range spreads {
		if n.domains[spreads[i].topology.index] == none {
			return false
		}
	}
	return true
}

func spreadFilter(c *Cluster, p *Pod) Check {
	if len(p.hard) == 0 {
		return nil
	}
	// most is how many pods a domain may have for this one to join them.
	type bound struct {
		topology int
		counts   []int32
		most     int32
	}
	bounds := make([]bound, len(p.hard))
	for i, s := range c.spreads(p, p.hard, true) {
		bounds[i] = bound{s.topology.index, s.counts.counts, s.lowest + s.maxSkew}
		if s.self {
			bounds[i].most--
		}
	}
	return func(n *Node) []Rejection {
		for i := range bounds {
			b := &bounds[i]
			domain := n.domains[b.topology]
			if domain == none {
				return refusedSpreadMissing
			}
			count := int32(0)
			if int(domain) < len(b.counts) {
				count = b.counts[domain]
			}
			if count > b.most {
				return refusedSpread
			}
		}
		return nil
	}
}

func spreadScore(c *Cluster, p *Pod, nodes []*Node, out []int64) bool {
	list, all := p.soft, true
	if len(p.hard)+len(p.soft) == 0 {
		list, all = c.selectors.defaults(p), false
	}
	if len(list) == 0 {
		return false
	}
	spreads := c.spreads(p, list, all)
	weights := spreadWeights(c, spreads, nodes, all)
	least, most := int64(math.MaxInt64), int64(0)
	for i, n := range nodes {
		if all && !complete(n, spreads) {
			out[i] = -1
			continue
		}
		score := 0.0
		for j := range spreads {
			s := &spreads[j]
			if domain := n.domains[s.topology.index]; domain != none {
				score += float64(s.counts.of(domain))*weights[j] + float64(s.maxSkew-1)
			}
		}
		out[i] = int64(math.Round(score))
		least, most = min(least, out[i]), max(most, out[i])
	}
	for i, score := range out {
		switch {
		case score < 0:
			out[i] = 0
		case most == 0:
			out[i] = MaxScore
		default:
			out[i] = MaxScore * (most + least - score) / most
		}
	}
	return true
}

// spreadWeights gives a topology with more domains among the nodes more weight: each
// of them has fewer pods.
func spreadWeights(c *Cluster, spreads []spread, nodes []*Node, all bool) []float64 {
	out := make([]float64, len(spreads))
	for i := range spreads {
		t := spreads[i].topology
		seen := c.scratch.marks(len(t.nodes))
		size := 0
		for _, n := range nodes {
			if domain := n.domains[t.index]; domain != none && !seen[domain] && (!all || complete(n, spreads)) {
				seen[domain] = true
				size++
			}
		}
		out[i] = math.Log(float64(size + 2))
	}
	return out
}
