package scheduler

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// Resources are amounts in milli-CPUs for cpu and in the resource's own unit for
// everything else.
type Resources map[corev1.ResourceName]int64

func resourcesOf(list corev1.ResourceList) Resources {
	r := make(Resources, len(list))
	for name, q := range list {
		if name == corev1.ResourceCPU {
			r[name] = q.MilliValue()
		} else {
			r[name] = q.Value()
		}
	}
	return r
}

func (r Resources) add(o Resources, sign int64) {
	for name, v := range o {
		r[name] += sign * v
	}
}

// Pod is a pod with everything that a decision asks of it computed once.
type Pod struct {
	*corev1.Pod
	// Requests of the whole pod, init containers and overhead considered.
	Requests Resources
	// Ports that the pod takes on its node.
	Ports []HostPort
	// Owner is the controller of the pod; pods of one owner are spread.
	Owner types.UID

	// volumes is set before each decision: what the pod's claims ask of its node.
	volumes   *podVolumes
	affinity  nodeaffinity.RequiredNodeAffinity
	preferred *nodeaffinity.PreferredSchedulingTerms
}

// HostPort is a port on a node's address.
type HostPort struct {
	IP       string
	Protocol corev1.Protocol
	Port     int32
}

func (a HostPort) conflicts(b HostPort) bool {
	return a.Port == b.Port && a.Protocol == b.Protocol && (a.IP == b.IP || a.IP == anyIP || b.IP == anyIP)
}

const anyIP = "0.0.0.0"

// NewPod prepares a pod for decisions.
func NewPod(p *corev1.Pod) *Pod {
	pod := &Pod{
		Pod:      p,
		Requests: resourcesOf(resource.PodRequests(p, resource.PodResourcesOptions{})),
		affinity: nodeaffinity.GetRequiredNodeAffinity(p),
	}
	pod.Requests[corev1.ResourcePods] = 1
	if ref := metav1.GetControllerOf(p); ref != nil {
		pod.Owner = ref.UID
	}
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		for _, port := range c.Ports {
			if port.HostPort == 0 {
				continue
			}
			hp := HostPort{IP: port.HostIP, Protocol: port.Protocol, Port: port.HostPort}
			if hp.IP == "" {
				hp.IP = anyIP
			}
			if hp.Protocol == "" {
				hp.Protocol = corev1.ProtocolTCP
			}
			pod.Ports = append(pod.Ports, hp)
		}
	}
	if a := p.Spec.Affinity; a != nil && a.NodeAffinity != nil {
		// An invalid term was refused by the API; one that got in prefers nothing.
		pod.preferred, _ = nodeaffinity.NewPreferredSchedulingTerms(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	return pod
}

// Node is a node with the pods that run or are about to run on it.
type Node struct {
	*corev1.Node
	Allocatable Resources
	Requested   Resources
	Pods        map[types.UID]*Pod
	Ports       map[HostPort]int
	// Owners counts the pods of each owner.
	Owners map[types.UID]int
}

func newNode(n *corev1.Node) *Node {
	return &Node{
		Node: n, Allocatable: resourcesOf(n.Status.Allocatable), Requested: Resources{},
		Pods: map[types.UID]*Pod{}, Ports: map[HostPort]int{}, Owners: map[types.UID]int{},
	}
}

func (n *Node) add(p *Pod) {
	if _, ok := n.Pods[p.UID]; ok {
		return
	}
	n.Pods[p.UID] = p
	n.Requested.add(p.Requests, 1)
	for _, hp := range p.Ports {
		n.Ports[hp]++
	}
	if p.Owner != "" {
		n.Owners[p.Owner]++
	}
}

func (n *Node) remove(uid types.UID) {
	p, ok := n.Pods[uid]
	if !ok {
		return
	}
	delete(n.Pods, uid)
	n.Requested.add(p.Requests, -1)
	for _, hp := range p.Ports {
		if n.Ports[hp]--; n.Ports[hp] == 0 {
			delete(n.Ports, hp)
		}
	}
	if p.Owner != "" {
		if n.Owners[p.Owner]--; n.Owners[p.Owner] == 0 {
			delete(n.Owners, p.Owner)
		}
	}
}

// Cluster is all nodes with their pods: what the scheduler has seen by watch, and
// the bindings that it has made and not yet seen. Not safe for concurrent use.
type Cluster struct {
	nodes map[string]*Node
	// waiting are pods seen on nodes that have not been seen themselves.
	waiting map[string]map[types.UID]*Pod
	where   map[types.UID]string
	sorted  []*Node
}

// NewCluster returns an empty cluster.
func NewCluster() *Cluster {
	return &Cluster{nodes: map[string]*Node{}, waiting: map[string]map[types.UID]*Pod{}, where: map[types.UID]string{}}
}

// Nodes returns the nodes in the order of their names.
func (c *Cluster) Nodes() []*Node {
	if c.sorted == nil {
		for _, name := range slices.Sorted(maps.Keys(c.nodes)) {
			c.sorted = append(c.sorted, c.nodes[name])
		}
	}
	return c.sorted
}

// SetNode adds or replaces a node; its pods stay.
func (c *Cluster) SetNode(n *corev1.Node) {
	fresh := newNode(n)
	if old := c.nodes[n.Name]; old != nil {
		fresh.Pods, fresh.Requested, fresh.Ports, fresh.Owners = old.Pods, old.Requested, old.Ports, old.Owners
	}
	for _, p := range c.waiting[n.Name] {
		fresh.add(p)
	}
	delete(c.waiting, n.Name)
	c.nodes[n.Name] = fresh
	c.sorted = nil
}

// RemoveNode removes a node. Its pods are remembered until they are removed.
func (c *Cluster) RemoveNode(name string) {
	if n := c.nodes[name]; n != nil {
		c.waiting[name] = n.Pods
		delete(c.nodes, name)
		c.sorted = nil
	}
}

// Place puts a pod on a node: one that is bound, or that is about to be.
func (c *Cluster) Place(p *Pod, node string) {
	if was, ok := c.where[p.UID]; ok {
		if was == node {
			return // requests of a bound pod do not change
		}
		c.Remove(p.UID)
	}
	c.where[p.UID] = node
	if n := c.nodes[node]; n != nil {
		n.add(p)
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
		n.remove(uid)
	}
	delete(c.waiting[node], uid)
}
