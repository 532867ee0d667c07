package scheduler

// topology is a key of node labels that pods are placed by, with a small number for
// each of its domains: what is counted by domain is counted in slices.
type topology struct {
	// key is the label; empty for the topology in which each node is a domain.
	key   string
	index int
	ids   map[string]int32
	// nodes of each domain. A domain without any is free to get another value.
	nodes []int32
	free  []int32
	// live domains have nodes; members are the nodes that are in a domain.
	live, members int
}

// none is the domain of a node that does not have the label.
const none = int32(-1)

// join puts a node with a value into its domain.
func (t *topology) join(value string) int32 {
	id, ok := t.ids[value]
	if !ok {
		if last := len(t.free) - 1; last >= 0 {
			id, t.free = t.free[last], t.free[:last]
		} else {
			id = int32(len(t.nodes))
			t.nodes = append(t.nodes, 0)
		}
		t.ids[value] = id
		t.live++
	}
	t.nodes[id]++
	t.members++
	return id
}

// leave takes a node out of its domain.
func (t *topology) leave(value string) {
	id := t.ids[value]
	t.nodes[id]--
	t.members--
	if t.nodes[id] == 0 {
		delete(t.ids, value)
		t.free = append(t.free, id)
		t.live--
	}
}

// valueOf returns the node's domain by name.
func (t *topology) valueOf(n *Node) (string, bool) {
	if t.key == "" {
		return n.Name, true
	}
	value, ok := n.Labels[t.key]
	return value, ok
}

// tally counts something by the domains of a topology, and knows the lowest count
// without looking for it.
type tally struct {
	*topology
	counts []int32
	total  int64
	// having is the number of domains that have each count above zero, some the
	// number of all of these, and least a lower bound of their counts.
	having      []int32
	some, least int32
}

func newTally(t *topology) *tally { return &tally{topology: t, least: 1} }

// add counts by more in a domain.
func (t *tally) add(domain, by int32) {
	if domain == none || by == 0 {
		return
	}
	for int(domain) >= len(t.counts) {
		t.counts = append(t.counts, 0)
	}
	before := t.counts[domain]
	now := before + by
	t.counts[domain] = now
	t.total += int64(by)
	if before > 0 {
		t.having[before]--
		t.some--
	}
	if now > 0 {
		for int(now) >= len(t.having) {
			t.having = append(t.having, 0)
		}
		t.having[now]++
		t.some++
		t.least = min(t.least, now)
	}
}

// of returns the count of a domain.
func (t *tally) of(domain int32) int32 {
	if domain == none || int(domain) >= len(t.counts) {
		return 0
	}
	return t.counts[domain]
}

// lowest returns the lowest count of all domains that have nodes.
func (t *tally) lowest() int32 {
	if int(t.some) < t.live || t.some == 0 {
		return 0
	}
	for t.having[t.least] == 0 {
		t.least++
	}
	return t.least
}

// topology returns the topology of a key, which from now on is kept up to date.
func (c *Cluster) topology(key string) *topology {
	if t := c.byKey[key]; t != nil {
		return t
	}
	t := &topology{key: key, index: len(c.topologies), ids: map[string]int32{}}
	c.topologies, c.byKey[key] = append(c.topologies, t), t
	for _, n := range c.nodes {
		n.domains = append(n.domains, t.domain(n))
	}
	return t
}

// domain puts a node into its domain, if it has one.
func (t *topology) domain(n *Node) int32 {
	if value, ok := t.valueOf(n); ok {
		return t.join(value)
	}
	return none
}
