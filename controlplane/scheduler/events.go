package scheduler

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
)

// eventKind is what can happen in a cluster that lets a waiting pod fit.
type eventKind uint16

const (
	nodeAdded eventKind = 1 << iota
	nodeGone
	nodeCapacity // of a node
	nodeLabels
	nodeTaints // or its cordon
	podPlaced  // on a node
	podGone    // from a node
	podLabels  // of a pod on a node
	storageChanged
	namespaceLabels
)

// Event is something that happened, after the cluster has taken it in.
type Event struct {
	kind eventKind
	// Node is the name of the node that it happened to, or on.
	Node string
	// Pod, and Old before the event.
	Pod, Old *Pod
	// Namespace of the pod.
	Namespace string
}

func (e *Event) is(kinds eventKind) bool { return e.kind&kinds != 0 }

// onNode says whether the event's node is such that ok.
func (e *Event) onNode(c *Cluster, ok func(*Node) bool) bool {
	n := c.nodes[e.Node]
	return n != nil && ok(n)
}

func podEvent(kind eventKind, p *Pod, node string) *Event {
	return &Event{kind: kind, Node: node, Pod: p, Namespace: p.Namespace}
}

// nodeEvent says what changed of a node; nil, if nothing that matters.
func nodeEvent(old, n *corev1.Node) *Event {
	if old == nil {
		return &Event{kind: nodeAdded, Node: n.Name}
	}
	e := &Event{Node: n.Name}
	if before, now := resourcesOf(old.Status.Allocatable), resourcesOf(n.Status.Allocatable); !before.equal(&now) {
		e.kind |= nodeCapacity
	}
	if !maps.Equal(old.Labels, n.Labels) {
		e.kind |= nodeLabels
	}
	if old.Spec.Unschedulable != n.Spec.Unschedulable || !apiequality.Semantic.DeepEqual(old.Spec.Taints, n.Spec.Taints) {
		e.kind |= nodeTaints
	}
	if e.kind == 0 {
		return nil
	}
	return e
}
