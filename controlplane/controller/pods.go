package controller

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// PodActive says whether a pod counts towards its controller's replicas: it has
// not ended and is not being deleted.
func PodActive(p *corev1.Pod) bool {
	return p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed && p.DeletionTimestamp == nil
}

// PodCondition returns the condition of the given type, or nil.
func PodCondition(p *corev1.Pod, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == t {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

// PodReady says whether the pod's Ready condition is true.
func PodReady(p *corev1.Pod) bool {
	c := PodCondition(p, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// PodAvailable says whether the pod has been Ready for minReadySeconds at now; if
// not yet, wait is how long it takes until it may be, or 0 if it is not Ready.
func PodAvailable(p *corev1.Pod, minReadySeconds int32, now time.Time) (ok bool, wait time.Duration) {
	c := PodCondition(p, corev1.PodReady)
	if c == nil || c.Status != corev1.ConditionTrue {
		return false, 0
	}
	if minReadySeconds == 0 {
		return true, 0
	}
	due := c.LastTransitionTime.Add(time.Duration(minReadySeconds) * time.Second)
	if !now.Before(due) {
		return true, 0
	}
	return false, due.Sub(now)
}
