// Package scheduler gives each pod without a node one. In: pods, nodes and what
// plugins ask for by watch. Out: bindings, and for pods that fit nowhere a condition
// and an event that say why, and evictions of less important pods. Schedule and
// Preempt are the pure decisions, Explain shows them; Scheduler is the thin loop
// around them.
package scheduler

import (
	"context"
	"errors"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	policylisters "k8s.io/client-go/listers/policy/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

const (
	// bindersAtOnce bounds the bindings under way: a binding waits for the store, and
	// the next decision need not.
	bindersAtOnce = 16
	// overdueEvery is how often pods are looked for that rest for too long.
	overdueEvery = 30 * time.Second
)

// Scheduler places pods whose schedulerName is "default-scheduler".
type Scheduler struct {
	client kubernetes.Interface
	events record.EventRecorder
	synced []cache.InformerSynced
	// storage is what pods' claims are bound to.
	storage *storage
	// budgets are nil where nothing is evicted.
	budgets policylisters.PodDisruptionBudgetLister

	mu      sync.Mutex
	cluster *Cluster
	queue   *queue
	// from is the node at which the next decision begins.
	from int
	kick chan struct{}
}

// New returns a scheduler that watches through f; f is started by the caller.
func New(client kubernetes.Interface, f informers.SharedInformerFactory, events record.EventRecorder) *Scheduler {
	s := &Scheduler{client: client, events: events, cluster: NewCluster(), queue: newQueue(), kick: make(chan struct{}, 1)}
	s.storage = newStorage(f, func() { s.happened(&Event{kind: storageChanged}) })
	s.budgets = f.Policy().V1().PodDisruptionBudgets().Lister()
	s.synced = append(s.storage.synced, f.Policy().V1().PodDisruptionBudgets().Informer().HasSynced)
	follow(s, f.Core().V1().Nodes().Informer(), s.onNode)
	follow(s, f.Core().V1().Pods().Informer(), s.onPod)
	follow(s, f.Core().V1().Namespaces().Informer(), s.onNamespace)
	s.followSelectors(f)
	return s
}

// follow has f called, the lock held, with the old and new object of each event.
func follow[T any](s *Scheduler, informer cache.SharedIndexInformer, f func(old, now *T)) {
	s.synced = append(s.synced, informer.HasSynced)
	informer.AddEventHandler(controller.Handler(func(old, now *T) {
		s.mu.Lock()
		defer s.mu.Unlock()
		f(old, now)
	}))
}

func (s *Scheduler) onNode(old, n *corev1.Node) {
	if n == nil {
		s.cluster.RemoveNode(old.Name)
		s.tell(&Event{kind: nodeGone, Node: old.Name})
		return
	}
	s.cluster.SetNode(n)
	if e := nodeEvent(old, n); e != nil {
		s.tell(e)
	}
}

func (s *Scheduler) onNamespace(old, ns *corev1.Namespace) {
	if ns == nil {
		s.cluster.SetNamespace(old.Name, nil)
		return
	}
	s.cluster.SetNamespace(ns.Name, ns.Labels)
	s.tell(&Event{kind: namespaceLabels})
}

func (s *Scheduler) onPod(old, p *corev1.Pod) {
	switch {
	case p == nil || ended(p):
		gone := p
		if gone == nil {
			gone = old
		}
		s.queue.remove(gone.UID)
		s.forget(NewPod(gone))
	case p.Spec.NodeName != "":
		s.queue.remove(p.UID)
		s.placed(old, p)
	case p.DeletionTimestamp != nil || p.Spec.SchedulerName != corev1.DefaultSchedulerName || len(p.Spec.SchedulingGates) > 0:
		s.queue.remove(p.UID)
		s.release(NewPod(p))
	case s.cluster.where[p.UID] != "" || old != nil && apiequality.Semantic.DeepEqual(old.Spec, p.Spec) && apiequality.Semantic.DeepEqual(old.Labels, p.Labels):
		s.queue.refresh(NewPod(p)) // it is being bound, or our own condition comes back
	default:
		pod := NewPod(p)
		if old == nil {
			s.cluster.Nominate(pod, p.Status.NominatedNodeName)
		}
		s.queue.set(pod)
		s.signal()
	}
}

// forget takes a pod that is no more out of the cluster.
func (s *Scheduler) forget(p *Pod) {
	s.release(p)
	node, ok := s.cluster.where[p.UID]
	if s.cluster.Remove(p.UID); ok {
		s.tell(podEvent(podGone, p, node))
	}
}

// release ends the nomination of a pod: the room that was kept for it is free.
func (s *Scheduler) release(p *Pod) {
	node, ok := s.cluster.nominee[p.UID]
	if s.cluster.Nominate(p, ""); ok {
		s.tell(podEvent(podGone, p, node))
	}
}

// placed takes in a pod on a node.
func (s *Scheduler) placed(old, p *corev1.Pod) {
	pod := NewPod(p)
	s.cluster.Place(pod, p.Spec.NodeName)
	switch {
	case old == nil || old.Spec.NodeName == "":
		s.tell(podEvent(podPlaced, pod, p.Spec.NodeName))
	case !apiequality.Semantic.DeepEqual(old.Labels, p.Labels) || (old.DeletionTimestamp == nil) != (p.DeletionTimestamp == nil):
		e := podEvent(podLabels, pod, p.Spec.NodeName)
		e.Old = NewPod(old)
		s.tell(e)
	}
}

// happened tells the queue of an event.
func (s *Scheduler) happened(e *Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell(e)
}

func (s *Scheduler) tell(e *Event) {
	s.queue.happened(s.cluster, e)
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
	overdue := time.NewTicker(overdueEvery)
	defer overdue.Stop()
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
		case <-overdue.C:
			s.mu.Lock()
			s.queue.overdue(time.Now())
			s.mu.Unlock()
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
		if err != nil {
			act := s.refused(e, err)
			s.mu.Unlock()
			do(func() { act(ctx) })
			continue
		}
		s.cluster.Place(pod, res.Node)
		s.mu.Unlock()
		if !plan.empty() {
			// It waits for others, and keeps none of the slots meanwhile.
			s.storage.binding.Go(func() { s.bindWithVolumes(ctx, e, pod, plan) })
			continue
		}
		do(func() { s.bind(ctx, e, pod, res.Node) })
	}
	return time.Time{}
}

// refused puts a pod aside that fits nowhere, or clears a node for it, and returns
// what is to be done about it. The caller holds mu.
func (s *Scheduler) refused(e *entry, why error) func(context.Context) {
	pod := e.pod
	var fit *FitError
	if !errors.As(why, &fit) {
		s.queue.retry(e, time.Now())
		return func(ctx context.Context) { s.report(ctx, pod.Pod, why, "") }
	}
	plan, reason := Preempt(s.cluster, pod, fit, s.allBudgets(), s.from)
	fit.Preemption = reason
	if plan == nil {
		s.release(pod)
	}
	s.queue.rest(e, fit.Plugins(), time.Now())
	if plan == nil {
		return func(ctx context.Context) { s.report(ctx, pod.Pod, fit, "") }
	}
	s.cluster.Nominate(pod, plan.Node)
	for _, other := range plan.Displaced {
		s.cluster.Nominate(other, "")
	}
	return func(ctx context.Context) {
		s.report(ctx, pod.Pod, fit, plan.Node)
		s.preempt(ctx, e, pod, plan)
	}
}
