package scheduler

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/klog/v2"
)

// Filter says why a pod can't run on a node. The order of Filters is the order in
// which they are asked; the first that objects decides what is reported.
type Filter struct {
	Name string
	// Reject returns nothing if the node fits.
	Reject func(p *Pod, n *Node) []Rejection
}

// Rejection is one reason, worded as in Kubernetes so that nodes which say the
// same can be counted together.
type Rejection struct {
	Reason string
	// Detail adds figures: "needs 512Mi, 100Mi free".
	Detail string
	// Room is how much was free, to report the node that came closest.
	Room int64
}

// Filters in the order in which they are asked. Adding one is one line here.
var Filters = []Filter{
	{"NodeUnschedulable", nodeUnschedulable},
	{"NodeName", nodeName},
	{"TaintToleration", taintToleration},
	{"NodeAffinity", nodeAffinity},
	{"NodePorts", nodePorts},
	{"NodeResourcesFit", nodeResourcesFit},
	{"VolumeBinding", volumeBinding},
}

func because(reason string) []Rejection { return []Rejection{{Reason: reason}} }

func nodeUnschedulable(p *Pod, n *Node) []Rejection {
	if !n.Spec.Unschedulable {
		return nil
	}
	taint := corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}
	if tolerated(p, &taint) {
		return nil
	}
	return because("node(s) were unschedulable")
}

func nodeName(p *Pod, n *Node) []Rejection {
	if p.Spec.NodeName == "" || p.Spec.NodeName == n.Name {
		return nil
	}
	return because("node(s) didn't match the requested node name")
}

func taintToleration(p *Pod, n *Node) []Rejection {
	for i := range n.Spec.Taints {
		t := &n.Spec.Taints[i]
		if t.Effect == corev1.TaintEffectPreferNoSchedule || tolerated(p, t) {
			continue
		}
		return because(fmt.Sprintf("node(s) had untolerated taint {%s: %s}", t.Key, t.Value))
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

func nodeAffinity(p *Pod, n *Node) []Rejection {
	if ok, err := p.affinity.Match(n.Node); err != nil || !ok {
		return because("node(s) didn't match Pod's node affinity/selector")
	}
	return nil
}

func nodePorts(p *Pod, n *Node) []Rejection {
	for _, want := range p.Ports {
		for taken := range n.Ports {
			if want.conflicts(taken) {
				return because("node(s) didn't have free ports for the requested pod ports")
			}
		}
	}
	return nil
}

func nodeResourcesFit(p *Pod, n *Node) []Rejection {
	var out []Rejection
	for _, name := range slices.Sorted(maps.Keys(p.Requests)) {
		want := p.Requests[name]
		free := n.Allocatable[name] - n.Requested[name]
		if want == 0 || want <= free {
			continue
		}
		if name == corev1.ResourcePods {
			out = append(out, Rejection{Reason: "Too many pods", Room: free})
			continue
		}
		out = append(out, Rejection{
			Reason: "Insufficient " + string(name),
			Detail: fmt.Sprintf("needs %s, %s free", amount(name, want), amount(name, max(free, 0))),
			Room:   free,
		})
	}
	return out
}

func amount(name corev1.ResourceName, v int64) string {
	if name == corev1.ResourceCPU {
		return resource.NewMilliQuantity(v, resource.DecimalSI).String()
	}
	if name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage {
		return resource.NewQuantity(v, resource.BinarySI).String()
	}
	return resource.NewQuantity(v, resource.DecimalSI).String()
}
