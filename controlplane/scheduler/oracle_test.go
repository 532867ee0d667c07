package scheduler

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// world is a cluster told in API objects, with every question answered by looking at
// everything: what the indexes are compared with.
type world struct {
	nodes      map[string]*corev1.Node
	namespaces map[string]map[string]string
	pods       map[string]*corev1.Pod // by UID
	node       map[string]string      // of a pod
}

func (w *world) cluster() *Cluster {
	c := NewCluster()
	for name, set := range w.namespaces {
		c.SetNamespace(name, set)
	}
	for uid, p := range w.pods {
		c.Place(NewPod(p), w.node[uid])
	}
	for _, n := range w.nodes {
		c.SetNode(n)
	}
	return c
}

// on are the pods on a node.
func (w *world) on(node string) []*corev1.Pod {
	var out []*corev1.Pod
	for uid, p := range w.pods {
		if w.node[uid] == node && w.nodes[node] != nil {
			out = append(out, p)
		}
	}
	return out
}

// fits says whether a pod can go on a node, and if not what is broken.
func (w *world) fits(p *corev1.Pod, n *corev1.Node) string {
	switch {
	case n.Spec.Unschedulable:
		return "cordon"
	case !w.selected(p, n):
		return "selector"
	case tainted(n):
		return "taint"
	case !w.room(p, n):
		return "room"
	case w.portTaken(p, n):
		return "port"
	case !w.near(p, n):
		return "affinity"
	case w.tooNear(p, n):
		return "anti-affinity"
	case !w.even(p, n):
		return "spread"
	}
	return ""
}

func (w *world) selected(p *corev1.Pod, n *corev1.Node) bool {
	return labels.SelectorFromSet(p.Spec.NodeSelector).Matches(labels.Set(n.Labels))
}

func tainted(n *corev1.Node) bool {
	for _, t := range n.Spec.Taints {
		if t.Effect != corev1.TaintEffectPreferNoSchedule {
			return true // the pods here tolerate nothing
		}
	}
	return false
}

func (w *world) room(p *corev1.Pod, n *corev1.Node) bool {
	used := p.Spec.Containers[0].Resources.Requests.Cpu().MilliValue()
	if used == 0 {
		return true
	}
	for _, o := range w.on(n.Name) {
		used += o.Spec.Containers[0].Resources.Requests.Cpu().MilliValue()
	}
	return used <= n.Status.Allocatable.Cpu().MilliValue()
}

func (w *world) portTaken(p *corev1.Pod, n *corev1.Node) bool {
	for _, o := range w.on(n.Name) {
		if len(p.Spec.Containers[0].Ports)*len(o.Spec.Containers[0].Ports) > 0 {
			return true // all have the same one
		}
	}
	return false
}

// about says whether a term of a pod selects another.
func (w *world) about(t *corev1.PodAffinityTerm, from, p *corev1.Pod) bool {
	s, _ := metav1.LabelSelectorAsSelector(t.LabelSelector)
	if !s.Matches(labels.Set(p.Labels)) {
		return false
	}
	if t.NamespaceSelector == nil {
		return p.Namespace == from.Namespace
	}
	ns, _ := metav1.LabelSelectorAsSelector(t.NamespaceSelector)
	return ns.Matches(labels.Set(w.namespaces[p.Namespace]))
}

// domain are the pods in a node's domain.
func (w *world) domain(key string, n *corev1.Node) []*corev1.Pod {
	var out []*corev1.Pod
	for _, o := range w.nodes {
		if v, ok := o.Labels[key]; ok && v == n.Labels[key] {
			out = append(out, w.on(o.Name)...)
		}
	}
	return out
}

func (w *world) near(p *corev1.Pod, n *corev1.Node) bool {
	if p.Spec.Affinity == nil || p.Spec.Affinity.PodAffinity == nil {
		return true
	}
	terms := p.Spec.Affinity.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	all := func(o *corev1.Pod) bool {
		for i := range terms {
			if !w.about(&terms[i], p, o) {
				return false
			}
		}
		return true
	}
	anywhere, here := false, true
	for i := range terms {
		if _, ok := n.Labels[terms[i].TopologyKey]; !ok {
			return false
		}
		for _, o := range w.nodes {
			if _, ok := o.Labels[terms[i].TopologyKey]; ok {
				for _, q := range w.on(o.Name) {
					anywhere = anywhere || all(q)
				}
			}
		}
		found := false
		for _, q := range w.domain(terms[i].TopologyKey, n) {
			found = found || all(q)
		}
		here = here && found
	}
	return here || !anywhere && all(p)
}

func (w *world) tooNear(p *corev1.Pod, n *corev1.Node) bool {
	against := func(from, to *corev1.Pod, pods func(key string) []*corev1.Pod) bool {
		if from.Spec.Affinity == nil || from.Spec.Affinity.PodAntiAffinity == nil {
			return false
		}
		terms := from.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution
		for i := range terms {
			if _, ok := n.Labels[terms[i].TopologyKey]; !ok {
				continue
			}
			for _, q := range pods(terms[i].TopologyKey) {
				if to != nil {
					if q == from && w.about(&terms[i], from, to) {
						return true
					}
				} else if w.about(&terms[i], from, q) {
					return true
				}
			}
		}
		return false
	}
	if against(p, nil, func(key string) []*corev1.Pod { return w.domain(key, n) }) {
		return true
	}
	for _, o := range w.pods {
		if against(o, p, func(key string) []*corev1.Pod { return w.domain(key, n) }) {
			return true
		}
	}
	return false
}

func (w *world) even(p *corev1.Pod, n *corev1.Node) bool {
	var hard []corev1.TopologySpreadConstraint
	for _, c := range p.Spec.TopologySpreadConstraints {
		if c.WhenUnsatisfiable == corev1.DoNotSchedule {
			hard = append(hard, c)
		}
	}
	for _, c := range hard {
		own, ok := n.Labels[c.TopologyKey]
		if !ok {
			return false
		}
		s, _ := metav1.LabelSelectorAsSelector(c.LabelSelector)
		counts := map[string]int{}
		for _, o := range w.nodes {
			value, ok := o.Labels[c.TopologyKey]
			for _, other := range hard {
				_, has := o.Labels[other.TopologyKey]
				ok = ok && has
			}
			if !ok || !w.selected(p, o) || c.NodeTaintsPolicy != nil && *c.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor && tainted(o) {
				continue
			}
			counts[value] += 0
			for _, q := range w.on(o.Name) {
				if q.Namespace == p.Namespace && q.DeletionTimestamp == nil && s.Matches(labels.Set(q.Labels)) {
					counts[value]++
				}
			}
		}
		least, first := 0, true
		for _, count := range counts {
			if first || count < least {
				least, first = count, false
			}
		}
		if c.MinDomains != nil && len(counts) < int(*c.MinDomains) {
			least = 0
		}
		with := counts[own]
		if s.Matches(labels.Set(p.Labels)) {
			with++
		}
		if with-least > int(c.MaxSkew) {
			return false
		}
	}
	return true
}

func (w *world) String() string {
	out := ""
	for name, n := range w.nodes {
		out += fmt.Sprintf("%s %v cordoned %v tainted %v:", name, n.Labels, n.Spec.Unschedulable, tainted(n))
		for _, p := range w.on(name) {
			out += fmt.Sprintf(" %s %v", p.UID, p.Labels)
		}
		out += "\n"
	}
	return out
}
