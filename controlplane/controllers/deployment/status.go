package deployment

import (
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Reasons of the Progressing and Available conditions, as kubectl and kstatus
// know them.
const (
	reasonNewSet    = "NewReplicaSetCreated"
	reasonFoundSet  = "FoundNewReplicaSet"
	reasonUpdated   = "ReplicaSetUpdated"
	reasonAvailable = "NewReplicaSetAvailable"
	// ReasonDeadline is the reason of Progressing=False when the deadline passed.
	ReasonDeadline = "ProgressDeadlineExceeded"
	reasonPaused   = "DeploymentPaused"
	reasonResumed  = "DeploymentResumed"
	minAvailable   = "MinimumReplicasAvailable"
	minUnavailable = "MinimumReplicasUnavailable"
)

// liveStatus sums up the ReplicaSets' statuses.
func (r *rollout) liveStatus() appsv1.DeploymentStatus {
	s := *r.d.Status.DeepCopy()
	s.ObservedGeneration = r.d.Generation
	s.Replicas, s.ReadyReplicas, s.AvailableReplicas, s.UpdatedReplicas = 0, 0, 0, 0
	var terminating int32
	for _, rs := range r.all() {
		s.Replicas += rs.Status.Replicas
		s.ReadyReplicas += rs.Status.ReadyReplicas
		s.AvailableReplicas += rs.Status.AvailableReplicas
		if rs.Status.TerminatingReplicas != nil {
			terminating += *rs.Status.TerminatingReplicas
		}
	}
	if r.current != nil {
		s.UpdatedReplicas = r.current.Status.Replicas
	}
	s.TerminatingReplicas = &terminating
	s.UnavailableReplicas = max(total(r.all())-s.AvailableReplicas, 0)
	return s
}

// complete says whether the rollout has ended well.
func complete(d *appsv1.Deployment, s appsv1.DeploymentStatus) bool {
	return s.UpdatedReplicas == want(d) && s.Replicas == want(d) && s.AvailableReplicas == want(d) &&
		s.ObservedGeneration >= d.Generation
}

// status is the new status and how long until the progress deadline passes.
func (r *rollout) status() (appsv1.DeploymentStatus, time.Duration) {
	s := r.liveStatus()
	_, unavailable := fenceposts(r.d)
	if s.AvailableReplicas >= want(r.d)-unavailable {
		r.set(&s, appsv1.DeploymentAvailable, corev1.ConditionTrue, minAvailable, "Deployment has minimum availability.")
	} else {
		r.set(&s, appsv1.DeploymentAvailable, corev1.ConditionFalse, minUnavailable, "Deployment does not have minimum availability.")
	}
	r.failure(&s)
	if r.d.Spec.ProgressDeadlineSeconds == nil || *r.d.Spec.ProgressDeadlineSeconds == maxInt32 {
		return s, 0
	}
	return s, r.progress(&s)
}

const maxInt32 = 1<<31 - 1

// failure copies a ReplicaFailure from the ReplicaSets, the new one's first.
func (r *rollout) failure(s *appsv1.DeploymentStatus) {
	sets := r.old
	if r.current != nil {
		sets = append([]*appsv1.ReplicaSet{r.current}, r.old...)
	}
	for _, rs := range sets {
		for _, c := range rs.Status.Conditions {
			if c.Type == appsv1.ReplicaSetReplicaFailure && c.Status == corev1.ConditionTrue {
				r.set(s, appsv1.DeploymentReplicaFailure, corev1.ConditionTrue, c.Reason, c.Message)
				return
			}
		}
	}
	drop(s, appsv1.DeploymentReplicaFailure)
}

// progress keeps the Progressing condition: its LastUpdateTime moves whenever the
// rollout does, and when it has not moved for progressDeadlineSeconds the
// condition turns False.
func (r *rollout) progress(s *appsv1.DeploymentStatus) time.Duration {
	cond := find(s, appsv1.DeploymentProgressing)
	if r.d.Spec.Paused {
		if cond == nil || cond.Reason != reasonPaused {
			r.touch(s, corev1.ConditionUnknown, reasonPaused, "Deployment is paused")
		}
		return 0
	}
	if cond != nil && cond.Reason == reasonPaused {
		r.touch(s, corev1.ConditionUnknown, reasonResumed, "Deployment is resumed")
		cond = find(s, appsv1.DeploymentProgressing)
	}
	name := ""
	if r.current != nil {
		name = r.current.Name
	}
	switch {
	case r.created:
		r.touch(s, corev1.ConditionTrue, reasonNewSet, fmt.Sprintf("Created new replica set %q", name))
		return r.deadline()
	case r.reused:
		// Going back to an old template starts the clock again.
		r.touch(s, corev1.ConditionTrue, reasonFoundSet, fmt.Sprintf("Found new replica set %q", name))
		return r.deadline()
	case r.d.Generation != r.d.Status.ObservedGeneration && !complete(r.d, *s):
		// A changed spec starts the clock, also when the step that made its
		// ReplicaSet could not write the status.
		r.touch(s, corev1.ConditionTrue, reasonUpdated, fmt.Sprintf("ReplicaSet %q is progressing.", name))
		return r.deadline()
	case complete(r.d, *s):
		if cond == nil || cond.Reason != reasonAvailable {
			r.touch(s, corev1.ConditionTrue, reasonAvailable, fmt.Sprintf("ReplicaSet %q has successfully progressed.", name))
		}
		return 0
	case cond != nil && cond.Reason == reasonAvailable && r.d.Status.UpdatedReplicas == s.UpdatedReplicas:
		// A finished rollout that lost a pod is not progressing anew.
		return 0
	case cond == nil:
		r.touch(s, corev1.ConditionTrue, reasonFoundSet, fmt.Sprintf("Found new replica set %q", name))
		return r.deadline()
	case r.progressing(s):
		r.touch(s, corev1.ConditionTrue, reasonUpdated, fmt.Sprintf("ReplicaSet %q is progressing.", name))
		return r.deadline()
	}
	if cond.Reason == ReasonDeadline {
		return 0
	}
	due := cond.LastUpdateTime.Add(r.deadline())
	if r.now.Before(due) {
		return due.Sub(r.now)
	}
	r.touch(s, corev1.ConditionFalse, ReasonDeadline, fmt.Sprintf("ReplicaSet %q has timed out progressing.", name))
	return 0
}

func (r *rollout) deadline() time.Duration {
	return time.Duration(*r.d.Spec.ProgressDeadlineSeconds) * time.Second
}

// progressing says whether the rollout moved since the last status.
func (r *rollout) progressing(s *appsv1.DeploymentStatus) bool {
	was := r.d.Status
	oldNow, oldWas := s.Replicas-s.UpdatedReplicas, was.Replicas-was.UpdatedReplicas
	return s.UpdatedReplicas > was.UpdatedReplicas || oldNow < oldWas ||
		s.ReadyReplicas > was.ReadyReplicas || s.AvailableReplicas > was.AvailableReplicas
}

// touch sets Progressing and always moves its LastUpdateTime.
func (r *rollout) touch(s *appsv1.DeploymentStatus, status corev1.ConditionStatus, reason, message string) {
	r.set(s, appsv1.DeploymentProgressing, status, reason, message)
	find(s, appsv1.DeploymentProgressing).LastUpdateTime = metav1.NewTime(r.now)
}

// set writes a condition; its times move only when it changes.
func (r *rollout) set(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string) {
	now := metav1.NewTime(r.now)
	c := find(s, t)
	if c == nil {
		s.Conditions = append(s.Conditions, appsv1.DeploymentCondition{
			Type: t, Status: status, Reason: reason, Message: message, LastUpdateTime: now, LastTransitionTime: now,
		})
		return
	}
	if c.Status == status && c.Reason == reason && c.Message == message {
		return
	}
	if c.Status != status {
		c.LastTransitionTime = now
	}
	c.Status, c.Reason, c.Message, c.LastUpdateTime = status, reason, message, now
}

func find(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

func drop(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			s.Conditions = append(s.Conditions[:i:i], s.Conditions[i+1:]...)
			return
		}
	}
}
