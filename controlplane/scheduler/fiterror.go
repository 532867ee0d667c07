package scheduler

import (
	"fmt"
	"slices"
	"strings"
)

// FitError says why no node could take a pod, per reason and with counts.
type FitError struct {
	Nodes int
	// Pod is what keeps the pod from every node, if something does.
	Pod     string
	Reasons []ReasonCount
	// Preemption says why making room for the pod would not help, if that was
	// looked into.
	Preemption string

	// verdicts are those of the nodes, in their order.
	verdicts []verdict
}

// ReasonCount is a reason with the number of nodes that gave it.
type ReasonCount struct {
	Rejection
	Nodes int
}

// newFitError counts the verdicts of all nodes, in their order.
func newFitError(nodes []*Node, verdicts []verdict) *FitError {
	e := &FitError{Nodes: len(nodes), verdicts: verdicts}
	reasons := map[string]*ReasonCount{}
	for i := range e.verdicts {
		for _, r := range e.verdicts[i].reasons {
			count := reasons[r.Reason]
			if count == nil {
				count = &ReasonCount{Rejection: r}
				reasons[r.Reason] = count
			} else if r.Room > count.Room {
				count.Rejection = r
			}
			count.Nodes++
		}
	}
	for _, r := range reasons {
		e.Reasons = append(e.Reasons, *r)
	}
	slices.SortFunc(e.Reasons, func(a, b ReasonCount) int { return strings.Compare(a.String(), b.String()) })
	return e
}

// String words a reason: "1 Insufficient memory (needs 512Mi, 100Mi free)".
func (r ReasonCount) String() string {
	return fmt.Sprintf("%d %s", r.Nodes, r.Rejection.String())
}

// Plugins are those that keep the pod from a node.
func (e *FitError) Plugins() []*Plugin {
	if e.Pod != "" {
		return []*Plugin{&volumeBinding}
	}
	var out []*Plugin
	for i := range e.verdicts {
		if p := e.verdicts[i].plugin; p != nil && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// Error words the reasons as Kubernetes does, with figures added:
// "0/2 nodes are available: 1 Insufficient memory (needs 512Mi, 100Mi free), ….".
func (e *FitError) Error() string {
	if e.Nodes == 0 {
		return "no nodes available to schedule pods"
	}
	var why string
	if e.Pod != "" {
		why = e.Pod
	} else {
		parts := make([]string, len(e.Reasons))
		for i, r := range e.Reasons {
			parts[i] = r.String()
		}
		why = strings.Join(parts, ", ")
	}
	out := fmt.Sprintf("0/%d nodes are available: %s.", e.Nodes, why)
	if e.Preemption != "" {
		out += " preemption: " + e.Preemption
	}
	return out
}
