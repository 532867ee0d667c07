package replicaset

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// Decision is what one look at a ReplicaSet asks for.
type Decision struct {
	// Create is the number of pods to create.
	Create int
	// Delete are the pods to delete, the least useful first.
	Delete []*corev1.Pod
	// Status is the ReplicaSet's status as of now, but for ReplicaFailure, which
	// only the doing can tell.
	Status appsv1.ReplicaSetStatus
	// Recheck is when a Ready pod will have been so for minReadySeconds; zero if
	// none is waiting.
	Recheck time.Duration
}

// Decide compares the wanted number of replicas with the pods that the ReplicaSet
// owns. It changes nothing.
func Decide(rs *appsv1.ReplicaSet, owned []*corev1.Pod, now time.Time) Decision {
	var d Decision
	var active []*corev1.Pod
	var terminating int32
	for _, p := range owned {
		switch {
		case controller.PodActive(p):
			active = append(active, p)
		case p.DeletionTimestamp != nil && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed:
			terminating++
		}
	}
	d.Status, d.Recheck = status(rs, active, now)
	d.Status.TerminatingReplicas = &terminating
	if rs.DeletionTimestamp != nil {
		return d
	}
	switch diff := len(active) - int(replicas(rs)); {
	case diff < 0:
		d.Create = -diff
	case diff > 0:
		d.Delete = rank(active)[:diff]
	}
	return d
}

func replicas(rs *appsv1.ReplicaSet) int32 {
	if rs.Spec.Replicas == nil {
		return 1
	}
	return *rs.Spec.Replicas
}

func status(rs *appsv1.ReplicaSet, active []*corev1.Pod, now time.Time) (appsv1.ReplicaSetStatus, time.Duration) {
	s := *rs.Status.DeepCopy()
	s.ObservedGeneration = rs.Generation
	s.Replicas, s.FullyLabeledReplicas, s.ReadyReplicas, s.AvailableReplicas = int32(len(active)), 0, 0, 0
	template := labels.SelectorFromSet(rs.Spec.Template.Labels)
	var recheck time.Duration
	for _, p := range active {
		if template.Matches(labels.Set(p.Labels)) {
			s.FullyLabeledReplicas++
		}
		if !controller.PodReady(p) {
			continue
		}
		s.ReadyReplicas++
		ok, wait := controller.PodAvailable(p, rs.Spec.MinReadySeconds, now)
		if ok {
			s.AvailableReplicas++
		} else if recheck == 0 || wait < recheck {
			recheck = wait
		}
	}
	return s, recheck
}

// rank orders pods so that the ones to delete first come first, by the rules of
// the page "ReplicaSet", section "Scaling a ReplicaSet": not yet on a node, then
// not running, not Ready, lower deletion cost, more siblings on the node, Ready
// for a shorter time, more restarts, younger.
func rank(pods []*corev1.Pod) []*corev1.Pod {
	perNode := map[string]int{}
	for _, p := range pods {
		if p.Spec.NodeName != "" {
			perNode[p.Spec.NodeName]++
		}
	}
	sorted := slices.Clone(pods)
	slices.SortStableFunc(sorted, func(a, b *corev1.Pod) int {
		return cmp.Or(
			compareBool(a.Spec.NodeName != "", b.Spec.NodeName != ""),
			cmp.Compare(phaseOrder(a), phaseOrder(b)),
			compareBool(controller.PodReady(a), controller.PodReady(b)),
			cmp.Compare(deletionCost(a), deletionCost(b)),
			cmp.Compare(perNode[b.Spec.NodeName], perNode[a.Spec.NodeName]),
			readySince(b).Compare(readySince(a)),
			cmp.Compare(restarts(b), restarts(a)),
			b.CreationTimestamp.Compare(a.CreationTimestamp.Time),
			cmp.Compare(a.Name, b.Name),
		)
	})
	return sorted
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func phaseOrder(p *corev1.Pod) int {
	switch p.Status.Phase {
	case corev1.PodRunning:
		return 2
	case corev1.PodUnknown:
		return 1
	}
	return 0
}

func deletionCost(p *corev1.Pod) int {
	cost, err := strconv.Atoi(p.Annotations[corev1.PodDeletionCost])
	if err != nil {
		return 0
	}
	return cost
}

func readySince(p *corev1.Pod) time.Time {
	if c := controller.PodCondition(p, corev1.PodReady); c != nil && c.Status == corev1.ConditionTrue {
		return c.LastTransitionTime.Time
	}
	return time.Time{}
}

func restarts(p *corev1.Pod) (most int32) {
	for _, c := range p.Status.ContainerStatuses {
		most = max(most, c.RestartCount)
	}
	return most
}
