package scheduler

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
)

// What a node says of itself: that it is cordoned, its name, its taints, its labels
// and its ports. Each of these is a plugin.

var (
	refusedUnschedulable = finally("node(s) were unschedulable")
	refusedNodeName      = finally("node(s) didn't match the requested node name")
	refusedNodeAffinity  = finally("node(s) didn't match Pod's node affinity/selector")
	refusedNodePorts     = because("node(s) didn't have free ports for the requested pod ports")
)

var nodeUnschedulable = Plugin{
	Name: "NodeUnschedulable",
	Filter: func(c *Cluster, p *Pod) Check {
		if c.cordoned == 0 || tolerated(p, &cordon) {
			return nil
		}
		return func(n *Node) []Rejection {
			if n.Spec.Unschedulable {
				return refusedUnschedulable
			}
			return nil
		}
	},
	Wakes: func(c *Cluster, _ *Pod, e *Event) bool {
		return e.is(nodeAdded|nodeTaints) && e.onNode(c, func(n *Node) bool { return !n.Spec.Unschedulable })
	},
}

var cordon = corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}

var nodeName = Plugin{
	Name: "NodeName",
	Filter: func(_ *Cluster, p *Pod) Check {
		if p.Spec.NodeName == "" {
			return nil
		}
		return func(n *Node) []Rejection {
			if p.Spec.NodeName == n.Name {
				return nil
			}
			return refusedNodeName
		}
	},
	Wakes: func(_ *Cluster, p *Pod, e *Event) bool { return e.is(nodeAdded) && e.Node == p.Spec.NodeName },
}

// taintToleration refuses nodes whose taints the pod does not tolerate, and prefers
// those with fewer that only ask to be avoided.
var taintToleration = Plugin{
	Name: "TaintToleration",
	Filter: func(c *Cluster, p *Pod) Check {
		if c.tainted == 0 {
			return nil
		}
		return func(n *Node) []Rejection {
			if t := untolerated(p, n); t != nil {
				return finally("node(s) had untolerated taint {" + t.Key + ": " + t.Value + "}")
			}
			return nil
		}
	},
	Score: func(c *Cluster, p *Pod, nodes []*Node, out []int64) bool {
		if c.tainted == 0 {
			return false
		}
		for i, n := range nodes {
			out[i] = 0
			for j := range n.Spec.Taints {
				if t := &n.Spec.Taints[j]; t.Effect == corev1.TaintEffectPreferNoSchedule && !tolerated(p, t) {
					out[i]++
				}
			}
		}
		proportional(out, true)
		return true
	},
	Weight: 3,
	Wakes: func(c *Cluster, p *Pod, e *Event) bool {
		return e.is(nodeAdded|nodeTaints) && e.onNode(c, func(n *Node) bool { return untolerated(p, n) == nil })
	},
}

// untolerated returns the first taint that keeps a pod off a node.
func untolerated(p *Pod, n *Node) *corev1.Taint {
	for i := range n.Spec.Taints {
		if t := &n.Spec.Taints[i]; t.Effect != corev1.TaintEffectPreferNoSchedule && !tolerated(p, t) {
			return t
		}
	}
	return nil
}

func tolerated(p *Pod, t *corev1.Taint) bool {
	for i := range p.Spec.Tolerations {
		if p.Spec.Tolerations[i].ToleratesTaint(klog.Background(), t, true) {
			return true
		}
	}
	return false
}

// nodeAffinity wants what the pod's nodeSelector and required node affinity ask for,
// and prefers what it prefers.
var nodeAffinity = Plugin{
	Name: "NodeAffinity",
	Filter: func(_ *Cluster, p *Pod) Check {
		if !p.selective {
			return nil
		}
		return func(n *Node) []Rejection {
			if p.admits(n) {
				return nil
			}
			return refusedNodeAffinity
		}
	},
	Score: func(_ *Cluster, p *Pod, nodes []*Node, out []int64) bool {
		if p.preferred == nil {
			return false
		}
		for i, n := range nodes {
			out[i] = p.preferred.Score(n.Node)
		}
		proportional(out, false)
		return true
	},
	Weight: 2,
	Wakes: func(c *Cluster, p *Pod, e *Event) bool {
		return e.is(nodeAdded|nodeLabels) && e.onNode(c, p.admits)
	},
}

// admits says whether a node has what the pod's nodeSelector and required node
// affinity ask for.
func (p *Pod) admits(n *Node) bool {
	if !p.selective {
		return true
	}
	if p.only != nil && !slices.Contains(p.only, n.Name) {
		return false
	}
	ok, err := p.affinity.Match(n.Node)
	return ok && err == nil
}

// onlyNodes returns the names that every term of a required node affinity names;
// nil if one of them names none. Daemon pods ask for their node so.
func onlyNodes(a *corev1.NodeAffinity) []string {
	if a == nil || a.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return nil
	}
	var out []string
	for _, t := range a.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		named := false
		for _, r := range t.MatchFields {
			if r.Key == "metadata.name" && r.Operator == corev1.NodeSelectorOpIn {
				out, named = append(out, r.Values...), true
			}
		}
		if !named {
			return nil
		}
	}
	return out
}

var nodePorts = Plugin{
	Name: "NodePorts",
	Filter: func(_ *Cluster, p *Pod) Check {
		if len(p.Ports) == 0 {
			return nil
		}
		return func(n *Node) []Rejection {
			if p.portsFree(n) {
				return nil
			}
			return refusedNodePorts
		}
	},
	Wakes: func(c *Cluster, p *Pod, e *Event) bool {
		return e.is(podGone|nodeAdded) && e.onNode(c, p.portsFree)
	},
}

func (p *Pod) portsFree(n *Node) bool {
	for _, want := range p.Ports {
		for taken := range n.Ports {
			if want.conflicts(taken) {
				return false
			}
		}
	}
	return true
}
