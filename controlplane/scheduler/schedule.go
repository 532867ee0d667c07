package scheduler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Result of placing a pod.
type Result struct {
	Node string
	// Score of each node that passed the filters, by name.
	Score map[string]int64
}

// FitError says why no node could take a pod, per reason and with counts.
type FitError struct {
	Nodes int
	// Pod is what keeps the pod from every node, if something does.
	Pod     string
	Reasons []ReasonCount
}

// ReasonCount is a reason with the number of nodes that gave it.
type ReasonCount struct {
	Rejection
	Nodes int
	// Filter that gave it.
	Filter string
}

// Error words the reasons as kubectl users know them, with figures added:
// "0/2 nodes are available: 1 Insufficient memory (needs 512Mi, 100Mi free), …".
func (e *FitError) Error() string {
	if e.Nodes == 0 {
		return "no nodes are available to schedule pods"
	}
	if e.Pod != "" {
		return fmt.Sprintf("0/%d nodes are available: %s.", e.Nodes, e.Pod)
	}
	parts := make([]string, len(e.Reasons))
	for i, r := range e.Reasons {
		parts[i] = fmt.Sprintf("%d %s", r.Nodes, r.Reason)
		if r.Detail != "" {
			parts[i] += " (" + r.Detail + ")"
		}
	}
	return fmt.Sprintf("0/%d nodes are available: %s.", e.Nodes, strings.Join(parts, ", "))
}

// Schedule chooses the node for a pod: of those that no filter rejects the one
// with the highest score, the first by name among equals. It is a pure function of
// its arguments; the error is a *FitError.
func Schedule(p *Pod, nodes []*Node) (Result, error) {
	var fit []*Node
	reasons := map[string]*ReasonCount{}
	for _, n := range nodes {
		name, rejections := reject(p, n)
		if len(rejections) == 0 {
			fit = append(fit, n)
			continue
		}
		for _, r := range rejections {
			count := reasons[r.Reason]
			if count == nil {
				count = &ReasonCount{Rejection: r, Filter: name}
				reasons[r.Reason] = count
			} else if r.Room > count.Room {
				count.Rejection = r
			}
			count.Nodes++
		}
	}
	if len(fit) == 0 {
		e := &FitError{Nodes: len(nodes)}
		for _, r := range reasons {
			e.Reasons = append(e.Reasons, *r)
		}
		slices.SortFunc(e.Reasons, func(a, b ReasonCount) int {
			return cmp.Or(cmp.Compare(b.Nodes, a.Nodes), cmp.Compare(a.Reason, b.Reason))
		})
		return Result{}, e
	}
	totals := make([]int64, len(fit))
	for _, s := range Scorers {
		for i, v := range s.Score(p, fit) {
			totals[i] += s.Weight * v
		}
	}
	res := Result{Score: make(map[string]int64, len(fit))}
	best := 0
	for i, n := range fit {
		res.Score[n.Name] = totals[i]
		if totals[i] > totals[best] {
			best = i
		}
	}
	res.Node = fit[best].Name
	return res, nil
}

func reject(p *Pod, n *Node) (filter string, _ []Rejection) {
	for _, f := range Filters {
		if r := f.Reject(p, n); len(r) > 0 {
			return f.Name, r
		}
	}
	return "", nil
}
