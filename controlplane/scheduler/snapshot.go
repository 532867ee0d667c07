package scheduler

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Node is a node with the pods that run or are about to run on it.
type Node struct {
	*corev1.Node
	Allocatable Resources
	Requested   Resources
	Pods        map[types.UID]*Pod
	Ports       map[HostPort]int

	// rated is Requested as pods are rated.
	rated  Resources
	images map[string]int64
	// domains by the topologies' indexes.
	domains []int32
}

func (n *Node) add(p *Pod, sign int64) {
	n.Requested.add(&p.Requests, sign)
	n.rated.add(&p.rated, sign)
	for _, hp := range p.Ports {
		if n.Ports[hp] += int(sign); n.Ports[hp] == 0 {
			delete(n.Ports, hp)
		}
	}
}

// Cluster is the snapshot that decisions are made on: all nodes with their pods, as
// seen by watch and with the bindings made and not yet seen; nominations; and the
// labels and selectors that plugins ask for. Each change is taken in as it comes.
// Not safe for concurrent use: a decision may remember what it found out.
type Cluster struct {
	nodes map[string]*Node
	// waiting are pods seen on nodes that have not been seen themselves.
	waiting map[string]map[types.UID]*Pod
	where   map[types.UID]string
	sorted  []*Node
	// nominated are pods that a node is being cleared for, and that node.
	nominated map[string]map[types.UID]*Pod
	nominee   map[types.UID]string

	// cordoned and tainted count nodes, images the nodes that have each.
	cordoned, tainted int
	images            map[string]int
	// priorities counts the pods on nodes by priority.
	priorities map[int32]int

	namespaces map[string]labels.Set
	topologies []*topology
	byKey      map[string]*topology
	classes    map[classKey]*podClass
	queries    map[string]*query
	terms      map[termKey]*term
	// decisions made, and classes and queries added since tidy cleaned up.
	decisions uint64
	fresh     int

	selectors selectors
	scratch   scratch
}

// NewCluster returns an empty cluster.
func NewCluster() *Cluster {
	c := &Cluster{
		nodes: map[string]*Node{}, waiting: map[string]map[types.UID]*Pod{}, where: map[types.UID]string{},
		nominated: map[string]map[types.UID]*Pod{}, nominee: map[types.UID]string{}, images: map[string]int{}, priorities: map[int32]int{},
		namespaces: map[string]labels.Set{}, byKey: map[string]*topology{},
		classes: map[classKey]*podClass{}, queries: map[string]*query{}, terms: map[termKey]*term{},
		selectors: newSelectors(),
	}
	c.topology("") // the first: each node is a domain
	return c
}

// Nodes returns the nodes: few in the order of their names, many so that those of
// different zones take turns, for decisions that look at some of them only.
func (c *Cluster) Nodes() []*Node {
	if c.sorted == nil && len(c.nodes) > 0 {
		for _, name := range slices.Sorted(maps.Keys(c.nodes)) {
			c.sorted = append(c.sorted, c.nodes[name])
		}
		if len(c.sorted) >= minFeasible {
			c.sorted = takingTurns(c.sorted)
		}
	}
	return c.sorted
}

func takingTurns(nodes []*Node) []*Node {
	zones := map[string][]*Node{}
	for _, n := range nodes {
		zone := n.Labels[corev1.LabelTopologyZone]
		zones[zone] = append(zones[zone], n)
	}
	names := slices.Sorted(maps.Keys(zones))
	out := make([]*Node, 0, len(nodes))
	for i := 0; len(out) < len(nodes); i++ {
		for _, zone := range names {
			if i < len(zones[zone]) {
				out = append(out, zones[zone][i])
			}
		}
	}
	return out
}

// SetNode adds or replaces a node; its pods stay.
func (c *Cluster) SetNode(node *corev1.Node) {
	n := c.nodes[node.Name]
	if n == nil {
		n = &Node{Pods: map[types.UID]*Pod{}, Ports: map[HostPort]int{}}
		c.nodes[node.Name] = n
		c.sorted = nil
		c.enter(n, node)
		for _, p := range c.waiting[node.Name] {
			c.put(p, n)
		}
		delete(c.waiting, node.Name)
		return
	}
	if maps.Equal(n.Labels, node.Labels) {
		c.describe(n, -1)
		n.Node = node
		c.describe(n, 1)
		return
	}
	if n.Labels[corev1.LabelTopologyZone] != node.Labels[corev1.LabelTopologyZone] {
		c.sorted = nil
	}
	c.countAll(n, -1)
	c.leave(n)
	c.enter(n, node)
	c.countAll(n, 1)
}

// enter puts a node into its domains, and leave takes it out of them.
func (c *Cluster) enter(n *Node, node *corev1.Node) {
	n.Node = node
	c.describe(n, 1)
	n.domains = n.domains[:0]
	for _, t := range c.topologies {
		n.domains = append(n.domains, t.domain(n))
	}
}

func (c *Cluster) leave(n *Node) {
	for _, t := range c.topologies {
		if value, ok := t.valueOf(n); ok {
			t.leave(value)
		}
	}
	c.describe(n, -1)
}

// describe counts what a node says of itself.
func (c *Cluster) describe(n *Node, by int) {
	if n.Spec.Unschedulable {
		c.cordoned += by
	}
	if len(n.Spec.Taints) > 0 {
		c.tainted += by
	}
	if by > 0 {
		n.Allocatable, n.images = resourcesOf(n.Status.Allocatable), present(n.Node)
	}
	for name := range n.images {
		if c.images[name] += by; c.images[name] == 0 {
			delete(c.images, name)
		}
	}
}

func (c *Cluster) countAll(n *Node, by int32) {
	for _, p := range n.Pods {
		c.count(p, n, by)
	}
}

// RemoveNode removes a node. Its pods are remembered until they are removed.
func (c *Cluster) RemoveNode(name string) {
	n := c.nodes[name]
	if n == nil {
		return
	}
	pods := maps.Clone(n.Pods)
	for _, p := range pods {
		c.take(p, n)
	}
	c.leave(n)
	if len(pods) > 0 {
		c.waiting[name] = pods
	}
	delete(c.nodes, name)
	c.sorted = nil
}

func (c *Cluster) put(p *Pod, n *Node) {
	n.Pods[p.UID] = p
	n.add(p, 1)
	c.priorities[p.priority]++
	c.count(p, n, 1)
}

func (c *Cluster) take(p *Pod, n *Node) {
	delete(n.Pods, p.UID)
	n.add(p, -1)
	if c.priorities[p.priority]--; c.priorities[p.priority] == 0 {
		delete(c.priorities, p.priority)
	}
	c.count(p, n, -1)
}

// Place puts a pod on a node: one that is bound, or that is about to be. Of a pod
// that is there already the newer state is taken.
func (c *Cluster) Place(p *Pod, node string) {
	c.Nominate(p, "")
	if n := c.nodes[node]; n != nil && c.where[p.UID] == node && n.Pods[p.UID].countsAs(p) {
		n.Pods[p.UID] = p
		return
	}
	c.Remove(p.UID)
	c.where[p.UID] = node
	if n := c.nodes[node]; n != nil {
		c.put(p, n)
		return
	}
	if c.waiting[node] == nil {
		c.waiting[node] = map[types.UID]*Pod{}
	}
	c.waiting[node][p.UID] = p
}

// Remove takes a pod off its node, when it has ended or its binding failed.
func (c *Cluster) Remove(uid types.UID) {
	node, ok := c.where[uid]
	if !ok {
		return
	}
	delete(c.where, uid)
	if n := c.nodes[node]; n != nil {
		c.take(n.Pods[uid], n)
		return
	}
	if delete(c.waiting[node], uid); len(c.waiting[node]) == 0 {
		delete(c.waiting, node)
	}
}

// Nominate says which node is being cleared for a pod that waits; none, if the name
// is empty.
func (c *Cluster) Nominate(p *Pod, node string) {
	if was, ok := c.nominee[p.UID]; ok {
		if delete(c.nominated[was], p.UID); len(c.nominated[was]) == 0 {
			delete(c.nominated, was)
		}
		delete(c.nominee, p.UID)
	}
	if node == "" {
		return
	}
	if c.nominated[node] == nil {
		c.nominated[node] = map[types.UID]*Pod{}
	}
	c.nominee[p.UID], c.nominated[node][p.UID] = node, p
}
