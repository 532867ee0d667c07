package scheduler

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// nodeResourcesFit wants the pod's requests to be free, and prefers the node that
// has the largest part of its CPU and memory left once the pod runs there
// (LeastAllocated).
var nodeResourcesFit = Plugin{
	Name: "NodeResourcesFit", Filter: resourcesFit, Score: leastAllocated, Weight: 1,
	Wakes: func(c *Cluster, p *Pod, e *Event) bool {
		return e.is(podGone|nodeAdded|nodeCapacity) && e.onNode(c, func(n *Node) bool {
			return p.Requests.within(&n.Allocatable, &n.Requested)
		})
	},
}

func resourcesFit(_ *Cluster, p *Pod) Check {
	return func(n *Node) []Rejection {
		if p.Requests.within(&n.Allocatable, &n.Requested) {
			return nil
		}
		return missing(p, n)
	}
}

func missing(p *Pod, n *Node) []Rejection {
	var out []Rejection
	p.Requests.each(func(name corev1.ResourceName, want int64) {
		free := n.Allocatable.of(name) - n.Requested.of(name)
		switch {
		case want == 0 || want <= free:
		case name == corev1.ResourcePods:
			out = append(out, Rejection{Reason: "Too many pods", Room: free})
		default:
			out = append(out, Rejection{
				Reason: "Insufficient " + string(name),
				Detail: fmt.Sprintf("needs %s, %s free", amount(name, want), amount(name, max(free, 0))),
				Room:   free, Final: want > n.Allocatable.of(name),
			})
		}
	})
	return out
}

func leastAllocated(_ *Cluster, p *Pod, nodes []*Node, out []int64) bool {
	for i, n := range nodes {
		out[i] = (left(n.Allocatable.MilliCPU, n.rated.MilliCPU+p.rated.MilliCPU) +
			left(n.Allocatable.Memory, n.rated.Memory+p.rated.Memory)) / 2
	}
	return true
}

func left(all, used int64) int64 {
	if all <= 0 || used >= all {
		return 0
	}
	return MaxScore * (all - used) / all
}

// balancedAllocation prefers the node whose CPU and memory would be used to the
// same part. It has no say on pods that ask for neither.
var balancedAllocation = Plugin{
	Name: "NodeResourcesBalancedAllocation", Weight: 1,
	Score: func(_ *Cluster, p *Pod, nodes []*Node, out []int64) bool {
		if p.Requests.MilliCPU == 0 && p.Requests.Memory == 0 {
			return false
		}
		for i, n := range nodes {
			cpu := part(n.Requested.MilliCPU+p.Requests.MilliCPU, n.Allocatable.MilliCPU)
			memory := part(n.Requested.Memory+p.Requests.Memory, n.Allocatable.Memory)
			out[i] = int64((1 - max(cpu-memory, memory-cpu)/2) * MaxScore)
		}
		return true
	},
}

func part(used, all int64) float64 {
	if all <= 0 {
		return 1
	}
	return min(float64(used)/float64(all), 1)
}
