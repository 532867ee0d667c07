package scheduler

import (
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Affinity and spreading ask how many pods of some kind are in each domain, for each
// pod that uses them. The answers are kept: pods with equal labels are one class,
// questions about pods are queries, what pods demand of others are terms, and which
// class each query and term is about is found out once, when the later of the two
// appears. A pod that comes or goes changes the counts of its class's queries.

// match selects pods.
type match struct {
	// namespaces and all those that namespaceSelector, unless nil, selects.
	namespaces        []string
	namespaceSelector labels.Selector
	selector          labels.Selector
	// id is the same for what selects the same.
	id string
}

func newMatch(namespaces []string, namespaceSelector *metav1.LabelSelector, selector labels.Selector) match {
	m := match{namespaces: slices.Sorted(slices.Values(namespaces)), selector: selector}
	var id strings.Builder
	for _, ns := range m.namespaces {
		id.WriteString(ns)
		id.WriteByte(',')
	}
	if namespaceSelector != nil {
		m.namespaceSelector = selectorOf(namespaceSelector)
		id.WriteByte('{')
		id.WriteString(m.namespaceSelector.String())
		id.WriteByte('}')
	}
	id.WriteByte('/')
	id.WriteString(selector.String())
	if selector.Empty() {
		id.WriteByte('*') // everything, where Nothing also reads as ""
	}
	m.id = id.String()
	return m
}

// selectorOf reads a selector; nil and one that cannot be read select nothing.
func selectorOf(s *metav1.LabelSelector) labels.Selector {
	out, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return out
}

func (m *match) matches(c *Cluster, cl *podClass) bool {
	if !slices.Contains(m.namespaces, cl.namespace) &&
		(m.namespaceSelector == nil || !m.namespaceSelector.Matches(c.namespaces[cl.namespace])) {
		return false
	}
	return m.selector.Matches(cl.labels)
}

// podClass is all pods of a namespace with the same labels.
type podClass struct {
	namespace string
	labels    labels.Set
	// leaving: they are being deleted.
	leaving bool
	// nodes has how many of them are on each node.
	nodes map[*Node]int32
	// queries, guards and wishes that are about them.
	queries []*query
	guards  []*term
	wishes  []*term
}

// query counts the pods that every one of its matches selects.
type query struct {
	id  string
	all []match
	// staying leaves out pods that are being deleted.
	staying bool
	// tallies by the topologies' indexes; nil for those that nobody has asked for.
	tallies []*tally
	used    uint64
}

func (q *query) matches(c *Cluster, cl *podClass) bool {
	if q.staying && cl.leaving {
		return false
	}
	for i := range q.all {
		if !q.all[i].matches(c, cl) {
			return false
		}
	}
	return true
}

func (q *query) count(n *Node, by int32) {
	for i, t := range q.tallies {
		if t != nil {
			t.add(n.domains[i], by)
		}
	}
}

// tally returns the query's counts by the domains of a topology.
func (q *query) tally(c *Cluster, t *topology) *tally {
	for t.index >= len(q.tallies) {
		q.tallies = append(q.tallies, nil)
	}
	if q.tallies[t.index] == nil {
		fresh := newTally(t)
		for _, cl := range c.classes {
			if slices.Contains(cl.queries, q) {
				for n, by := range cl.nodes {
					fresh.add(n.domains[t.index], by)
				}
			}
		}
		q.tallies[t.index] = fresh
	}
	return q.tallies[t.index]
}

// demand is what a pod on a node says of other pods: a term before it is counted.
type demand struct {
	match
	key string
	// weight of a wish; 0 for a guard, which keeps the pods that it selects out of
	// the domain.
	weight int64
}

// term is a demand with the number of pods that make it, by domain.
type term struct {
	demand
	holders int
	tally   *tally
}

// termKey tells terms apart.
type termKey struct {
	id, key string
	weight  int64
}

// class returns the class of a pod.
func (c *Cluster) class(p *Pod) *podClass {
	key := classKey{p.labelKey, p.DeletionTimestamp != nil}
	if cl := c.classes[key]; cl != nil {
		return cl
	}
	cl := &podClass{namespace: p.Namespace, labels: p.Labels, leaving: key.leaving, nodes: map[*Node]int32{}}
	for _, q := range c.queries {
		if q.matches(c, cl) {
			cl.queries = append(cl.queries, q)
		}
	}
	for _, t := range c.terms {
		cl.take(c, t)
	}
	c.classes[key] = cl
	c.fresh++
	return cl
}

func (cl *podClass) take(c *Cluster, t *term) {
	switch {
	case !t.matches(c, cl):
	case t.weight == 0:
		cl.guards = append(cl.guards, t)
	default:
		cl.wishes = append(cl.wishes, t)
	}
}

type classKey struct {
	labels  string
	leaving bool
}

// labelKey is the same for pods of one namespace and with the same labels.
func labelKey(namespace string, set map[string]string) string {
	var b strings.Builder
	b.WriteString(namespace)
	for _, k := range slices.Sorted(maps.Keys(set)) {
		b.WriteByte('\n')
		b.WriteString(k)
		b.WriteByte('=')
		b.WriteString(set[k])
	}
	return b.String()
}

// query returns the query for the pods that all matches select.
func (c *Cluster) query(staying bool, all ...match) *query {
	id := all[0].id
	for _, m := range all[1:] {
		id += "&" + m.id
	}
	if staying {
		id += "!"
	}
	q := c.queries[id]
	if q == nil {
		q = &query{id: id, all: all, staying: staying}
		for _, cl := range c.classes {
			if q.matches(c, cl) {
				cl.queries = append(cl.queries, q)
			}
		}
		c.queries[id] = q
		c.fresh++
	}
	q.used = c.decisions
	return q
}

// count takes a pod on a node into all counts, or with by -1 out of them.
func (c *Cluster) count(p *Pod, n *Node, by int32) {
	cl := c.class(p)
	if cl.nodes[n] += by; cl.nodes[n] == 0 {
		delete(cl.nodes, n)
	}
	for _, q := range cl.queries {
		q.count(n, by)
	}
	for i := range p.demands {
		c.hold(&p.demands[i], n, by)
	}
}

func (c *Cluster) hold(d *demand, n *Node, by int32) {
	key := termKey{d.id, d.key, d.weight}
	t := c.terms[key]
	if t == nil {
		t = &term{demand: *d, tally: newTally(c.topology(d.key))}
		for _, cl := range c.classes {
			cl.take(c, t)
		}
		c.terms[key] = t
	}
	t.holders += int(by)
	t.tally.add(n.domains[t.tally.index], by)
	if t.holders > 0 {
		return
	}
	delete(c.terms, key)
	is := func(o *term) bool { return o == t }
	for _, cl := range c.classes {
		cl.guards = slices.DeleteFunc(cl.guards, is)
		cl.wishes = slices.DeleteFunc(cl.wishes, is)
	}
}

// Bounds of what is kept for later decisions.
const (
	freshLimit  = 1024
	unusedLimit = 4096
)

// tidy forgets queries that have not been asked for long and classes without pods,
// once there may be many of them.
func (c *Cluster) tidy() {
	c.decisions++
	if c.fresh < freshLimit {
		return
	}
	c.fresh = 0
	maps.DeleteFunc(c.classes, func(_ classKey, cl *podClass) bool { return len(cl.nodes) == 0 })
	old := func(q *query) bool { return q.used+unusedLimit < c.decisions }
	maps.DeleteFunc(c.queries, func(_ string, q *query) bool { return old(q) })
	for _, cl := range c.classes {
		cl.queries = slices.DeleteFunc(cl.queries, old)
	}
}

// SetNamespace says what labels a namespace has; nil when it is gone.
func (c *Cluster) SetNamespace(name string, set map[string]string) {
	if maps.Equal(c.namespaces[name], set) {
		return
	}
	c.namespaces[name] = set
	if set == nil {
		delete(c.namespaces, name)
	}
	if !slices.ContainsFunc(slices.Collect(maps.Values(c.classes)), func(cl *podClass) bool { return cl.namespace == name }) {
		return
	}
	// Which classes the selectors of namespaces are about has to be found out anew.
	for _, n := range c.nodes {
		for _, p := range n.Pods {
			c.count(p, n, -1)
		}
	}
	c.classes, c.queries, c.terms = map[classKey]*podClass{}, map[string]*query{}, map[termKey]*term{}
	for _, n := range c.nodes {
		for _, p := range n.Pods {
			c.count(p, n, 1)
		}
	}
}
