// Package scheduler gives each pod without a node one. In: pods and nodes by
// watch. Out: bindings, and for pods that fit nowhere a condition and an event
// that say why. Schedule is the pure decision; Scheduler the thin loop around it.
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// bindersAtOnce bounds the bindings under way: a binding waits for the store, and
// the next decision need not.
const bindersAtOnce = 16

// Scheduler places pods whose schedulerName is "default-scheduler".
type Scheduler struct {
	client kubernetes.Interface
	events record.EventRecorder
	synced []cache.InformerSynced
	// storage is what pods' claims are bound to.
	storage *storage

	mu      sync.Mutex
	cluster *Cluster
	queue   *queue
	kick    chan struct{}
}

// New returns a scheduler that watches through f; f is started by the caller.
func New(client kubernetes.Interface, f informers.SharedInformerFactory, events record.EventRecorder) *Scheduler {
	pods, nodes := f.Core().V1().Pods(), f.Core().V1().Nodes()
	s := &Scheduler{
		client: client, events: events,
		synced:  []cache.InformerSynced{pods.Informer().HasSynced, nodes.Informer().HasSynced},
		cluster: NewCluster(), queue: newQueue(), kick: make(chan struct{}, 1),
	}
	s.storage = newStorage(f, s.wake)
	s.synced = append(s.synced, s.storage.synced...)
	nodes.Informer().AddEventHandler(controller.Handler(s.onNode))
	pods.Informer().AddEventHandler(controller.Handler(s.onPod))
	return s
}

func (s *Scheduler) onNode(old, n *corev1.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n == nil {
		s.cluster.RemoveNode(old.Name)
		return
	}
	s.cluster.SetNode(n)
	if old == nil || nodeChanged(old, n) {
		s.queue.wake()
		s.signal()
	}
}

// nodeChanged says whether a node changed in a way that can make a pod fit.
func nodeChanged(a, b *corev1.Node) bool {
	return a.Spec.Unschedulable != b.Spec.Unschedulable ||
		!apiequality.Semantic.DeepEqual(a.Labels, b.Labels) ||
		!apiequality.Semantic.DeepEqual(a.Spec.Taints, b.Spec.Taints) ||
		!apiequality.Semantic.DeepEqual(a.Status.Allocatable, b.Status.Allocatable)
}

func (s *Scheduler) onPod(old, p *corev1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case p == nil || ended(p):
		gone := p
		if gone == nil {
			gone = old
		}
		s.queue.remove(gone.UID)
		s.cluster.Remove(gone.UID)
		if gone.Spec.NodeName != "" {
			s.queue.wake()
		}
	case p.Spec.NodeName != "":
		s.queue.remove(p.UID)
		s.cluster.Place(NewPod(p), p.Spec.NodeName)
		return
	case p.DeletionTimestamp != nil || p.Spec.SchedulerName != corev1.DefaultSchedulerName || len(p.Spec.SchedulingGates) > 0:
		s.queue.remove(p.UID)
		return
	case old != nil && apiequality.Semantic.DeepEqual(old.Spec, p.Spec) && apiequality.Semantic.DeepEqual(old.Labels, p.Labels):
		return // our own condition coming back
	default:
		s.queue.set(NewPod(p))
	}
	s.signal()
}

// wake tries all resting pods again.
func (s *Scheduler) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue.wake()
	s.signal()
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func (s *Scheduler) signal() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// Run works until ctx ends.
func (s *Scheduler) Run(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), s.synced...) {
		return ctx.Err()
	}
	slots := make(chan struct{}, bindersAtOnce)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer s.storage.binding.Wait()
	for {
		next := s.drain(ctx, func(f func()) {
			slots <- struct{}{}
			wg.Go(func() { f(); <-slots })
		})
		var timer <-chan time.Time
		if !next.IsZero() {
			timer = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.kick:
		case <-timer:
		}
	}
}

// drain decides for every pod that is ready to be tried and returns when the next
// one's back-off ends.
func (s *Scheduler) drain(ctx context.Context, do func(func())) time.Time {
	for ctx.Err() == nil {
		s.mu.Lock()
		next := s.queue.flush(time.Now())
		e := s.queue.pop()
		if e == nil {
			s.mu.Unlock()
			return next
		}
		pod := e.pod
		res, plan, err := s.decide(pod)
		if err == nil {
			s.cluster.Place(pod, res.Node)
		} else {
			s.queue.rest(e, time.Now())
		}
		s.mu.Unlock()
		if err != nil {
			do(func() { s.unschedulable(ctx, pod.Pod, err) })
			continue
		}
		if !plan.empty() {
			// It waits for others, and keeps none of the slots meanwhile.
			s.storage.binding.Go(func() { s.bindWithVolumes(ctx, e, pod, plan) })
			continue
		}
		do(func() { s.bind(ctx, e, pod, res.Node) })
	}
	return time.Time{}
}

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
			s.cluster.Remove(pod.UID)
			s.queue.remove(pod.UID)
		}
		return
	}
	if ctx.Err() == nil {
		slog.Warn("binding failed, will retry", "pod", pod.Namespace+"/"+pod.Name, "node", node, "error", err)
	}
	s.cluster.Remove(pod.UID)
	s.queue.retry(e, time.Now())
	s.signal()
}

// unschedulable tells the pod's owner why it waits; only when that is news.
func (s *Scheduler) unschedulable(ctx context.Context, p *corev1.Pod, why error) {
	var fit *FitError
	reason := corev1.PodReasonSchedulerError
	if errors.As(why, &fit) {
		reason = corev1.PodReasonUnschedulable
	}
	s.events.Event(p, corev1.EventTypeWarning, "FailedScheduling", why.Error())
	if c := controller.PodCondition(p, corev1.PodScheduled); c != nil && c.Reason == reason && c.Message == why.Error() {
		return
	}
	body := fmt.Appendf(nil, `{"metadata":{"uid":%q},"status":{"conditions":[{"type":"PodScheduled","status":"False","reason":%q,"message":%q,"lastTransitionTime":%q}]}}`,
		p.UID, reason, why.Error(), time.Now().UTC().Format(time.RFC3339))
	_, err := s.client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, body, metav1.PatchOptions{}, "status")
	if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
		slog.Debug("could not report an unschedulable pod", "pod", p.Namespace+"/"+p.Name, "error", err)
	}
}
