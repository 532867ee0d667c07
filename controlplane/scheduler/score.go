package scheduler

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// MaxScore is the best that a node can be given by one Scorer.
const MaxScore = 100

// Scorer ranks the nodes that passed every filter.
type Scorer struct {
	Name   string
	Weight int64
	// Score returns one number from 0 to MaxScore for each node.
	Score func(p *Pod, nodes []*Node) []int64
}

// Scorers that are added up, each by its weight. Adding one is one line here.
var Scorers = []Scorer{
	{"Spread", 3, spread},
	{"TaintToleration", 3, preferUntainted},
	{"NodeAffinity", 2, preferAffinity},
	{"LeastAllocated", 1, leastAllocated},
}

// spread prefers nodes with fewer pods of the same owner, so that losing a node
// takes as few replicas as possible.
func spread(p *Pod, nodes []*Node) []int64 {
	counts := make([]int64, len(nodes))
	if p.Owner != "" {
		for i, n := range nodes {
			counts[i] = int64(n.Owners[p.Owner])
		}
	}
	return fewest(counts)
}

func preferUntainted(p *Pod, nodes []*Node) []int64 {
	counts := make([]int64, len(nodes))
	for i, n := range nodes {
		for j := range n.Spec.Taints {
			if t := &n.Spec.Taints[j]; t.Effect == corev1.TaintEffectPreferNoSchedule && !tolerated(p, t) {
				counts[i]++
			}
		}
	}
	return fewest(counts)
}

// fewest gives the most to the node with the lowest count, in proportion.
func fewest(counts []int64) []int64 {
	most := int64(0)
	if len(counts) > 0 {
		most = slices.Max(counts)
	}
	for i, c := range counts {
		if most == 0 {
			counts[i] = MaxScore
			continue
		}
		counts[i] = MaxScore * (most - c) / most
	}
	return counts
}

func preferAffinity(p *Pod, nodes []*Node) []int64 {
	scores := make([]int64, len(nodes))
	if p.preferred == nil {
		return scores
	}
	var most int64
	for i, n := range nodes {
		scores[i] = p.preferred.Score(n.Node)
		most = max(most, scores[i])
	}
	for i := range scores {
		if most > 0 {
			scores[i] = MaxScore * scores[i] / most
		}
	}
	return scores
}

// Requests that a container without any is counted with, so that many such pods
// still spread over the nodes (Kubernetes counts them so, too).
const (
	defaultMilliCPU = 100
	defaultMemory   = 200 << 20
)

// leastAllocated prefers the node that has the largest part of its CPU and memory
// left once the pod runs there.
func leastAllocated(p *Pod, nodes []*Node) []int64 {
	scores := make([]int64, len(nodes))
	for i, n := range nodes {
		cpu := free(n, corev1.ResourceCPU, max(p.Requests[corev1.ResourceCPU], defaultMilliCPU))
		mem := free(n, corev1.ResourceMemory, max(p.Requests[corev1.ResourceMemory], defaultMemory))
		scores[i] = (cpu + mem) / 2
	}
	return scores
}

func free(n *Node, name corev1.ResourceName, want int64) int64 {
	all := n.Allocatable[name]
	left := all - n.Requested[name] - want
	if all <= 0 || left <= 0 {
		return 0
	}
	return MaxScore * left / all
}
