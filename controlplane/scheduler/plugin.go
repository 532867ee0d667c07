package scheduler

// Plugin is one reason for or against nodes. It is asked once about the pod, at the
// beginning of each decision, and again about each node; what it prepares in between
// must not outlive the decision. A plugin is one file and one line of Plugins.
type Plugin struct {
	// Name is Kubernetes' own, where it has such a plugin.
	Name string
	// Filter returns what to ask about each node: nil if the plugin has nothing
	// against any node.
	Filter func(c *Cluster, p *Pod) Check
	// Score rates the nodes that passed every filter, each with 0 to MaxScore in
	// out. False means that they are all alike to the plugin.
	Score func(c *Cluster, p *Pod, nodes []*Node, out []int64) bool
	// Weight by which the score is multiplied.
	Weight int64
	// Wakes says whether an event can let a pod through that the filter held back.
	// Without one, no event does.
	Wakes func(c *Cluster, p *Pod, e *Event) bool
}

// Check returns nothing if a node fits.
type Check func(n *Node) []Rejection

// Rejection is one reason, worded as in Kubernetes so that nodes which say the
// same can be counted together.
type Rejection struct {
	Reason string
	// Detail adds figures: "needs 512Mi, 100Mi free".
	Detail string
	// Room is how much was free, to report the node that came closest.
	Room int64
	// Final: the node would not fit without the pods that run there, either.
	Final bool
}

// String words a rejection: "Insufficient memory (needs 512Mi, 100Mi free)".
func (r *Rejection) String() string {
	if r.Detail == "" {
		return r.Reason
	}
	return r.Reason + " (" + r.Detail + ")"
}

// MaxScore is the best that a node can be given by one plugin.
const MaxScore = 100

// Plugins in the order in which they filter; the first that objects decides what is
// reported. Order and weights are those of Kubernetes ("Scheduler Configuration").
var Plugins = []*Plugin{
	&nodeUnschedulable,
	&nodeName,
	&taintToleration,
	&nodeAffinity,
	&nodePorts,
	&nodeResourcesFit,
	&volumeBinding,
	&podTopologySpread,
	&interPodAffinity,
	&balancedAllocation,
	&imageLocality,
}

func because(reason string) []Rejection { return []Rejection{{Reason: reason}} }

// finally is because for a reason that no preemption changes.
func finally(reason string) []Rejection { return []Rejection{{Reason: reason, Final: true}} }

// proportional turns scores into parts of MaxScore, the highest getting all of it;
// with fewest, the lowest.
func proportional(scores []int64, fewest bool) {
	var most int64
	for _, s := range scores {
		most = max(most, s)
	}
	for i, s := range scores {
		if most > 0 {
			s = MaxScore * s / most
		}
		if fewest {
			s = MaxScore - s
		}
		scores[i] = s
	}
}
