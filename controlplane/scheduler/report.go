package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

func (s *Scheduler) bind(ctx context.Context, e *entry, pod *Pod, node string) {
	err := s.client.CoreV1().Pods(pod.Namespace).Bind(ctx, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: node},
	}, metav1.CreateOptions{})
	if err == nil {
		s.events.Eventf(pod.Pod, corev1.EventTypeNormal, "Scheduled", "Successfully assigned %s/%s to %s", pod.Namespace, pod.Name, node)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		// Deleted or bound by another meanwhile: the watch tells, and until it does
		// nothing is to be done.
		if apierrors.IsNotFound(err) {
			s.queue.remove(pod.UID)
			s.forget(pod)
		}
		return
	}
	if ctx.Err() == nil {
		slog.Warn("binding failed, will retry", "pod", pod.Namespace+"/"+pod.Name, "node", node, "error", err)
	}
	s.forget(pod)
	s.queue.retry(e, time.Now())
	s.signal()
}

// report tells the pod's owner why it waits, and which node is being cleared for
// it; only when that is news.
func (s *Scheduler) report(ctx context.Context, p *corev1.Pod, why error, nominated string) {
	var fit *FitError
	reason := corev1.PodReasonSchedulerError
	if errors.As(why, &fit) {
		reason = corev1.PodReasonUnschedulable
	}
	s.events.Event(p, corev1.EventTypeWarning, "FailedScheduling", why.Error())
	if c := controller.PodCondition(p, corev1.PodScheduled); c != nil && c.Reason == reason && c.Message == why.Error() && p.Status.NominatedNodeName == nominated {
		return
	}
	nominatedNode := "null"
	if nominated != "" {
		nominatedNode = fmt.Sprintf("%q", nominated)
	}
	s.patchStatus(ctx, p, fmt.Sprintf(`{"nominatedNodeName":%s,"conditions":[%s]}`, nominatedNode, condition(corev1.PodScheduled, corev1.ConditionFalse, reason, why.Error())))
}

func condition(t corev1.PodConditionType, status corev1.ConditionStatus, reason, message string) string {
	return fmt.Sprintf(`{"type":%q,"status":%q,"reason":%q,"message":%q,"lastTransitionTime":%q}`, t, status, reason, message, time.Now().UTC().Format(time.RFC3339))
}

func (s *Scheduler) patchStatus(ctx context.Context, p *corev1.Pod, status string) {
	body := fmt.Appendf(nil, `{"metadata":{"uid":%q},"status":%s}`, p.UID, status)
	_, err := s.client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, body, metav1.PatchOptions{}, "status")
	if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
		slog.Debug("could not write a pod's status", "pod", p.Namespace+"/"+p.Name, "error", err)
	}
}
