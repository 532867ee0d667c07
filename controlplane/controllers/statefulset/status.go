package statefulset

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// status counts the pods as they are, and says how long until one more may be
// available.
func (d *decision) status() (s appsv1.StatefulSetStatus, recheck time.Duration) {
	s = *d.set.Status.DeepCopy()
	s.ObservedGeneration = d.set.Generation
	s.CurrentRevision, s.UpdateRevision = d.s.Current.Name, d.s.Update.Name
	s.CollisionCount = &d.s.Collisions
	s.Replicas, s.ReadyReplicas, s.AvailableReplicas, s.CurrentReplicas, s.UpdatedReplicas = 0, 0, 0, 0, 0
	for _, p := range d.s.Pods {
		s.Replicas++
		if p.Status.Phase == corev1.PodRunning && controller.PodReady(p) {
			s.ReadyReplicas++
			ok, wait := controller.PodAvailable(p, d.set.Spec.MinReadySeconds, d.now)
			if ok {
				s.AvailableReplicas++
			} else if recheck == 0 || wait < recheck {
				recheck = wait
			}
		}
		if p.DeletionTimestamp != nil {
			continue
		}
		if revisionOf(p) == d.s.Current.Name {
			s.CurrentReplicas++
		}
		if revisionOf(p) == d.s.Update.Name {
			s.UpdatedReplicas++
		}
	}
	return s, recheck
}

// complete makes the update's revision the current one when all pods have it and
// are Ready.
func (d *decision) complete() {
	s, want := &d.out.Status, int32(replicas(d.set))
	if d.set.Spec.UpdateStrategy.Type != appsv1.OnDeleteStatefulSetStrategyType &&
		s.Replicas == want && s.UpdatedReplicas == want && s.ReadyReplicas == want {
		s.CurrentRevision, s.CurrentReplicas = s.UpdateRevision, s.UpdatedReplicas
	}
}
