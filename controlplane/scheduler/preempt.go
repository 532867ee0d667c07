package scheduler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// A pod that fits nowhere may take the place of less important ones ("Pod Priority
// and Preemption"). As few of them go as possible, and rather those whose disruption
// budgets allow it.

// Preemption is a node that is to be cleared for a pod.
type Preemption struct {
	Node string
	// Victims have to go, the most important first.
	Victims []*Pod
	// Violations is how many of them no budget allows to go.
	Violations int
	// Displaced are less important pods that the node was being cleared for.
	Displaced []*Pod
}

// No more nodes are tried than a tenth of all, or 100, as in Kubernetes.
const candidatePart, candidateMin = 10, 100

// Preempt says which pods have to go so that a pod fits that fit nowhere, which why
// says. It returns nil if that would not help, and the reason; or a preemption without
// victims, if one is under way. It is a pure function of its arguments: the cluster is
// as it was when it returns.
func Preempt(c *Cluster, p *Pod, why *FitError, budgets []*policyv1.PodDisruptionBudget, from int) (*Preemption, string) {
	if why.Pod != "" || len(why.verdicts) != len(c.Nodes()) {
		return nil, unhelpful(why.Nodes, map[string]int{notHelpful: why.Nodes})
	}
	if p.Spec.PreemptionPolicy != nil && *p.Spec.PreemptionPolicy == corev1.PreemptNever {
		return nil, "not eligible due to preemptionPolicy=Never."
	}
	if node := c.beingCleared(p, why); node != "" {
		return &Preemption{Node: node}, "not eligible due to a terminating pod on the nominated node."
	}
	nodes, reasons := c.Nodes(), map[string]int{}
	hopeless := !c.anyBelow(p.priority)
	var found []*Preemption
	limit := max(len(nodes)/candidatePart, candidateMin)
	for i := range nodes {
		at := (from + i) % len(nodes)
		if why.verdicts[at].final() {
			reasons[notHelpful]++
			continue
		}
		if len(found) == limit {
			break
		}
		if hopeless {
			reasons[noVictims]++
			continue
		}
		plan, reason := c.clear(p, nodes[at], budgets)
		if plan == nil {
			reasons[reason]++
			continue
		}
		found = append(found, plan)
	}
	if len(found) == 0 {
		return nil, unhelpful(len(nodes), reasons)
	}
	best := slices.MinFunc(found, leastHarm)
	best.Displaced = c.displaced(p, best.Node)
	return best, ""
}

const (
	notHelpful = "Preemption is not helpful for scheduling"
	noVictims  = "No preemption victims found for incoming pod"
)

func unhelpful(nodes int, reasons map[string]int) string {
	parts := make([]string, 0, len(reasons))
	for reason, n := range reasons {
		parts = append(parts, fmt.Sprintf("%d %s", n, reason))
	}
	slices.Sort(parts)
	return fmt.Sprintf("0/%d nodes are available: %s.", nodes, strings.Join(parts, ", "))
}

// beingCleared returns the node that a pod is nominated to, if victims are already on
// their way out there.
func (c *Cluster) beingCleared(p *Pod, why *FitError) string {
	at := slices.IndexFunc(c.Nodes(), func(n *Node) bool { return n.Name == c.nominee[p.UID] })
	if at < 0 || why.verdicts[at].final() {
		return ""
	}
	n := c.Nodes()[at]
	for _, v := range n.Pods {
		if v.DeletionTimestamp != nil && v.priority < p.priority && preempted(v) {
			return n.Name
		}
	}
	return ""
}

// anyBelow says whether a pod on any node has a lower priority.
func (c *Cluster) anyBelow(priority int32) bool {
	for p := range c.priorities {
		if p < priority {
			return true
		}
	}
	return false
}

func preempted(p *Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == corev1.PodReasonPreemptionByScheduler
	})
}

// clear finds out which pods have to leave a node: all less important ones, less
// those that can come back one by one, the most important first, and those before
// that no budget allows to go.
func (c *Cluster) clear(p *Pod, n *Node, budgets []*policyv1.PodDisruptionBudget) (*Preemption, string) {
	var gone []*Pod
	for _, v := range n.Pods {
		if v.priority < p.priority && !isMirror(v) {
			gone = append(gone, v)
		}
	}
	if len(gone) == 0 {
		return nil, noVictims
	}
	slices.SortFunc(gone, moreImportant)
	for _, v := range gone {
		c.take(v, n)
	}
	out := map[*Pod]bool{}
	for _, v := range gone {
		out[v] = true
	}
	defer func() {
		for v := range out {
			c.put(v, n)
		}
	}()
	fits := func() verdict { return c.decision(p).on(n) }
	if v := fits(); !v.fits() {
		return nil, v.reasons[0].Reason
	}
	plan := &Preemption{Node: n.Name}
	violating, rest := overBudget(gone, budgets)
	for i, list := range [][]*Pod{violating, rest} {
		for _, v := range list {
			c.put(v, n)
			if back := fits(); back.fits() {
				delete(out, v)
				continue
			}
			c.take(v, n)
			plan.Victims = append(plan.Victims, v)
			if i == 0 {
				plan.Violations++
			}
		}
	}
	slices.SortFunc(plan.Victims, moreImportant)
	return plan, ""
}

// isMirror says that a pod is of its node's own: to delete its object would not end it.
func isMirror(p *Pod) bool {
	_, ok := p.Annotations[corev1.MirrorPodAnnotationKey]
	return ok
}

// moreImportant orders pods by priority, then by how long they have run.
func moreImportant(a, b *Pod) int {
	return cmp.Or(cmp.Compare(b.priority, a.priority), started(a).Compare(started(b)), cmp.Compare(a.UID, b.UID))
}

// started is when a pod began to run; of one that has not, far in the future.
func started(p *Pod) time.Time {
	if p.Status.StartTime == nil {
		return time.Unix(1<<40, 0)
	}
	return p.Status.StartTime.Time
}

// overBudget tells those pods from the rest that no disruption budget allows to go
// once those before them have gone.
func overBudget(pods []*Pod, budgets []*policyv1.PodDisruptionBudget) (violating, rest []*Pod) {
	allowed := make([]int32, len(budgets))
	selectors := make([]labels.Selector, len(budgets))
	for i, b := range budgets {
		allowed[i], selectors[i] = b.Status.DisruptionsAllowed, selectorOf(b.Spec.Selector)
	}
	for _, p := range pods {
		over := false
		for i, b := range budgets {
			if b.Namespace != p.Namespace || selectors[i].Empty() || !selectors[i].Matches(labels.Set(p.Labels)) {
				continue
			}
			if _, counted := b.Status.DisruptedPods[p.Name]; counted {
				continue // it has been given its place
			}
			allowed[i]--
			over = over || allowed[i] < 0
		}
		if over {
			violating = append(violating, p)
		} else {
			rest = append(rest, p)
		}
	}
	return violating, rest
}

// leastHarm orders preemptions as Kubernetes does: by the budgets that are broken,
// the highest priority of a victim, the sum of the priorities, the number of victims,
// and last the node whose most important victims have run for the shortest time.
func leastHarm(a, b *Preemption) int {
	return cmp.Or(
		cmp.Compare(a.Violations, b.Violations),
		cmp.Compare(a.highest(), b.highest()),
		cmp.Compare(a.sum(), b.sum()),
		cmp.Compare(len(a.Victims), len(b.Victims)),
		b.since().Compare(a.since()),
	)
}

func (p *Preemption) highest() int32 {
	if len(p.Victims) == 0 {
		return -1 << 31
	}
	return p.Victims[0].priority
}

// sum adds the priorities, each made positive so that more victims count for more.
func (p *Preemption) sum() (sum int64) {
	for _, v := range p.Victims {
		sum += int64(v.priority) + 1<<31
	}
	return sum
}

// since is when the first of the most important victims began to run.
func (p *Preemption) since() time.Time {
	if len(p.Victims) == 0 {
		return time.Time{}
	}
	return started(p.Victims[0])
}

// displaced are less important pods that a node is being cleared for.
func (c *Cluster) displaced(p *Pod, node string) []*Pod {
	var out []*Pod
	for _, o := range c.nominated[node] {
		if o.priority < p.priority {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, moreImportant)
	return out
}
