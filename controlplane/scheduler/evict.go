package scheduler

import (
	"context"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

func (s *Scheduler) allBudgets() []*policyv1.PodDisruptionBudget {
	if s.budgets == nil {
		return nil
	}
	list, err := s.budgets.List(labels.Everything())
	if err != nil {
		slog.Warn("could not list the disruption budgets", "error", err)
	}
	return list
}

// preempt makes the victims of a preemption go. If one can't be made to, the pod is
// tried again.
func (s *Scheduler) preempt(ctx context.Context, e *entry, pod *Pod, plan *Preemption) {
	for _, other := range plan.Displaced {
		s.patchStatus(ctx, other.Pod, `{"nominatedNodeName":null}`)
	}
	for _, victim := range plan.Victims {
		if victim.DeletionTimestamp != nil {
			continue
		}
		if err := s.evict(ctx, pod, victim, plan.Node); err != nil {
			if ctx.Err() == nil {
				slog.Warn("preemption failed, will retry", "pod", pod.Namespace+"/"+pod.Name, "victim", victim.Namespace+"/"+victim.Name, "error", err)
			}
			s.mu.Lock()
			s.release(pod)
			s.queue.retry(e, time.Now())
			s.signal()
			s.mu.Unlock()
			return
		}
	}
}

// evict says on a pod why it goes (KEP-3329) and deletes it.
func (s *Scheduler) evict(ctx context.Context, pod, victim *Pod, node string) error {
	s.patchStatus(ctx, victim.Pod, `{"conditions":[`+condition(corev1.DisruptionTarget, corev1.ConditionTrue, corev1.PodReasonPreemptionByScheduler,
		corev1.DefaultSchedulerName+": preempting to accommodate a higher priority pod")+`]}`)
	err := s.client.CoreV1().Pods(victim.Namespace).Delete(ctx, victim.Name, *metav1.NewPreconditionDeleteOptions(string(victim.UID)))
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // it has gone already
	}
	if err == nil {
		s.events.Eventf(victim.Pod, corev1.EventTypeNormal, "Preempted", "Preempted by pod %v on node %v", pod.UID, node)
	}
	return err
}
