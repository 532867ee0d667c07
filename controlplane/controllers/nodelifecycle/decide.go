package nodelifecycle

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
)

// gracePeriod is how long a node's lease may go unrenewed before the node is
// taken for lost: Kubernetes' node-monitor-grace-period.
const gracePeriod = 40 * time.Second

// Decision is what the control plane says of a node that does not speak itself.
type Decision struct {
	// Conditions are set when the lease has expired: every one turns Unknown.
	Conditions []corev1.NodeCondition
	// Taints of the node, those of others kept.
	Taints []corev1.Taint
	// Lost says that the lease has expired: the node's pods are no longer Ready.
	Lost bool
	// Recheck is when the lease expires if it is not renewed; zero when it has.
	Recheck time.Duration
}

// Decide derives conditions and taints of a node from when its lease was last
// seen renewed, by this machine's clock. The rules are those of the page "Nodes"
// and of the page "Taints and Tolerations", section "Taint based Evictions".
func Decide(node *corev1.Node, renewed, now time.Time) Decision {
	var d Decision
	d.Conditions = node.Status.Conditions
	if age := now.Sub(renewed); age >= gracePeriod {
		d.Lost = true
		d.Conditions = unknown(node.Status.Conditions, now)
	} else {
		d.Recheck = gracePeriod - age
	}
	d.Taints = taints(node, d.Conditions, now)
	return d
}

// unknown is the conditions of a node of which nothing has been heard.
func unknown(have []corev1.NodeCondition, now time.Time) []corev1.NodeCondition {
	out := slices.Clone(have)
	for _, t := range []corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure} {
		i := slices.IndexFunc(out, func(c corev1.NodeCondition) bool { return c.Type == t })
		if i < 0 {
			out = append(out, corev1.NodeCondition{
				Type: t, Status: corev1.ConditionUnknown, LastTransitionTime: metav1.NewTime(now),
				Reason: "NodeStatusNeverUpdated", Message: "Kubelet never posted node status.",
			})
			continue
		}
		if out[i].Status != corev1.ConditionUnknown {
			out[i].Status, out[i].Reason = corev1.ConditionUnknown, "NodeStatusUnknown"
			out[i].Message = "Kubelet stopped posting node status."
			out[i].LastTransitionTime = metav1.NewTime(now)
		}
	}
	return out
}

// managed are the taint keys that this controller puts on and takes off.
var managed = map[string]bool{
	corev1.TaintNodeNotReady: true, corev1.TaintNodeUnreachable: true, corev1.TaintNodeUnschedulable: true,
	corev1.TaintNodeMemoryPressure: true, corev1.TaintNodeDiskPressure: true, corev1.TaintNodePIDPressure: true,
}

func taints(node *corev1.Node, conditions []corev1.NodeCondition, now time.Time) []corev1.Taint {
	var out []corev1.Taint
	for _, t := range node.Spec.Taints {
		if !managed[t.Key] {
			out = append(out, t)
		}
	}
	add := func(key string, effect corev1.TaintEffect) {
		t := corev1.Taint{Key: key, Effect: effect}
		if effect == corev1.TaintEffectNoExecute {
			stamp := metav1.NewTime(now.Truncate(time.Second))
			t.TimeAdded = &stamp
		}
		for _, have := range node.Spec.Taints {
			if have.Key == key && have.Effect == effect {
				t = have // the time it was added is what evictions count from
			}
		}
		out = append(out, t)
	}
	if node.Spec.Unschedulable {
		add(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)
	}
	ready := false
	for _, c := range conditions {
		switch {
		case c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue:
			ready = true
		case c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown:
			ready = true // it has its own taints
			add(corev1.TaintNodeUnreachable, corev1.TaintEffectNoSchedule)
			add(corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute)
		case c.Type == corev1.NodeMemoryPressure && c.Status == corev1.ConditionTrue:
			add(corev1.TaintNodeMemoryPressure, corev1.TaintEffectNoSchedule)
		case c.Type == corev1.NodeDiskPressure && c.Status == corev1.ConditionTrue:
			add(corev1.TaintNodeDiskPressure, corev1.TaintEffectNoSchedule)
		case c.Type == corev1.NodePIDPressure && c.Status == corev1.ConditionTrue:
			add(corev1.TaintNodePIDPressure, corev1.TaintEffectNoSchedule)
		}
	}
	if !ready {
		add(corev1.TaintNodeNotReady, corev1.TaintEffectNoSchedule)
		add(corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute)
	}
	if apiequality.Semantic.DeepEqual(out, node.Spec.Taints) {
		return node.Spec.Taints
	}
	return out
}

// EvictAt is when a pod must leave a node for its NoExecute taints; ok is false if
// it may stay. A pod leaves at the earliest time that any taint asks for.
func EvictAt(pod *corev1.Pod, nodeTaints []corev1.Taint, now time.Time) (at time.Time, ok bool) {
	for _, t := range nodeTaints {
		if t.Effect != corev1.TaintEffectNoExecute {
			continue
		}
		since := now
		if t.TimeAdded != nil {
			since = t.TimeAdded.Time
		}
		due, stays := since, false
		var shortest *int64
		for _, tol := range pod.Spec.Tolerations {
			if !tol.ToleratesTaint(klog.Background(), &t, true) {
				continue
			}
			stays = true
			if tol.TolerationSeconds != nil && (shortest == nil || *tol.TolerationSeconds < *shortest) {
				shortest = tol.TolerationSeconds
			}
		}
		if stays && shortest == nil {
			continue
		}
		if shortest != nil {
			due = since.Add(time.Duration(max(*shortest, 0)) * time.Second)
		}
		if !ok || due.Before(at) {
			at, ok = due, true
		}
	}
	return at, ok
}
