package scheduler

import (
	"cmp"
	"errors"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Explanation is a decision with all that it rests on.
type Explanation struct {
	Pod string `json:"pod"`
	// RunsOn is the node of a pod that has one: the rest is about the same pod
	// without it.
	RunsOn string `json:"runsOn,omitempty"`
	// Gates keep the scheduler from looking at the pod.
	Gates []string `json:"gates,omitempty"`
	// NominatedNode is being cleared for the pod.
	NominatedNode string `json:"nominatedNode,omitempty"`
	// Chosen is the node that the pod goes to; where it fits nowhere, Message says
	// why, and Preemption what is to be done.
	Chosen     string                 `json:"chosen,omitempty"`
	Message    string                 `json:"message,omitempty"`
	Preemption *PreemptionExplanation `json:"preemption,omitempty"`
	// Nodes are those that fit, the best first, and then the others by name.
	Nodes []NodeExplanation `json:"nodes"`
}

// PreemptionExplanation is a node that would be cleared, and the pods that would go.
type PreemptionExplanation struct {
	Node    string   `json:"node"`
	Victims []string `json:"victims"`
}

// NodeExplanation says why or why not.
type NodeExplanation struct {
	Node string `json:"node"`
	Fits bool   `json:"fits"`
	// Plugin that refuses the node, and Reasons.
	Plugin  string   `json:"plugin,omitempty"`
	Reasons []string `json:"reasons,omitempty"`
	// Score is the sum of Scores, which have the plugins' weights in them.
	Score  int64         `json:"score"`
	Scores []PluginScore `json:"scores,omitempty"`
}

// PluginScore is what a plugin adds to a node's score.
type PluginScore struct {
	Plugin string `json:"plugin"`
	Score  int64  `json:"score"`
}

// Explain decides for a pod on a snapshot as the scheduler does, but on every node
// even where there are many, and says why.
func (s *Snapshot) Explain(pod *corev1.Pod) Explanation {
	out := Explanation{Pod: pod.Namespace + "/" + pod.Name, RunsOn: pod.Spec.NodeName, NominatedNode: pod.Status.NominatedNodeName}
	for _, g := range pod.Spec.SchedulingGates {
		out.Gates = append(out.Gates, g.Name)
	}
	c := s.Cluster
	if c.Remove(pod.UID); pod.Spec.NodeName != "" {
		pod = pod.DeepCopy()
		pod.Spec.NodeName = ""
	}
	p := NewPod(pod)
	volumes, err := s.storage.volumesOf(pod, c.Nodes())
	var why *FitError
	if errors.As(err, &why) {
		s.refuse(&out, p, why)
		return out
	}
	p.volumes = volumes
	d := c.decision(p)
	fit, verdicts := []*Node{}, make([]verdict, len(c.Nodes()))
	var refused []NodeExplanation
	for i, n := range c.Nodes() {
		if verdicts[i] = d.on(n); verdicts[i].fits() {
			fit = append(fit, n)
		} else {
			refused = append(refused, verdicts[i].explain(n.Name))
		}
	}
	if len(fit) == 0 {
		s.refuse(&out, p, newFitError(c.Nodes(), verdicts))
	} else {
		out.Nodes = d.explain(fit)
		out.Chosen = out.Nodes[0].Node
		if n := c.nominee[p.UID]; slices.ContainsFunc(fit, func(f *Node) bool { return f.Name == n }) {
			out.Chosen = n
		}
	}
	slices.SortFunc(refused, func(a, b NodeExplanation) int { return cmp.Compare(a.Node, b.Node) })
	out.Nodes = append(out.Nodes, refused...)
	return out
}

func (v *verdict) explain(node string) NodeExplanation {
	e := NodeExplanation{Node: node, Plugin: v.plugin.Name}
	for _, r := range v.reasons {
		e.Reasons = append(e.Reasons, r.String())
	}
	return e
}

// explain tells the scores of nodes that fit, the best first and equals in their
// order.
func (d *decision) explain(fit []*Node) []NodeExplanation {
	out := make([]NodeExplanation, len(fit))
	total := d.rate(fit, func(plugin *Plugin, scores []int64) {
		for i, score := range scores {
			out[i].Scores = append(out[i].Scores, PluginScore{plugin.Name, plugin.Weight * score})
		}
	})
	for i, n := range fit {
		out[i].Node, out[i].Fits, out[i].Score = n.Name, true, total[i]
	}
	slices.SortStableFunc(out, func(a, b NodeExplanation) int { return cmp.Compare(b.Score, a.Score) })
	return out
}

// refuse says why a pod fits nowhere and what preemption would do about it.
func (s *Snapshot) refuse(out *Explanation, p *Pod, why *FitError) {
	plan, reason := Preempt(s.Cluster, p, why, s.budgets, 0)
	why.Preemption = reason
	out.Message = why.Error()
	if plan == nil || len(plan.Victims) == 0 {
		return
	}
	out.Preemption = &PreemptionExplanation{Node: plan.Node}
	for _, v := range plan.Victims {
		out.Preemption.Victims = append(out.Preemption.Victims, v.Namespace+"/"+v.Name)
	}
}
