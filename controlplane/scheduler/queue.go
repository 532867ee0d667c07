package scheduler

import (
	"cmp"
	"container/heap"
	"time"

	"k8s.io/apimachinery/pkg/types"
	schedulingcorev1 "k8s.io/component-helpers/scheduling/corev1"
)

// Back-off of a pod that could not be placed, doubled at each try, as in
// kube-scheduler.
const (
	firstBackoff = 1 * time.Second
	maxBackoff   = 10 * time.Second
)

// queue orders the pods that wait for a node: by priority, then by age. A pod
// that did not fit rests until something in the cluster changes that could help,
// and at least for its back-off. Not safe for concurrent use.
type queue struct {
	ready   podHeap
	entries map[types.UID]*entry
}

type entry struct {
	pod      *Pod
	tries    int
	index    int // in ready; -1 when resting
	earliest time.Time
	woken    bool // something changed while it was resting or backing off
}

func newQueue() *queue { return &queue{entries: map[types.UID]*entry{}} }

// set adds or replaces a waiting pod. A changed pod is tried at once.
func (q *queue) set(p *Pod) {
	e := q.entries[p.UID]
	if e == nil {
		e = &entry{index: -1}
		q.entries[p.UID] = e
	}
	e.pod = p
	if e.index < 0 {
		heap.Push(&q.ready, e)
	} else {
		heap.Fix(&q.ready, e.index)
	}
}

func (q *queue) remove(uid types.UID) {
	e := q.entries[uid]
	if e == nil {
		return
	}
	if e.index >= 0 {
		heap.Remove(&q.ready, e.index)
	}
	delete(q.entries, uid)
}

// pop takes the next pod to try; it stays known until remove or rest is called.
func (q *queue) pop() *entry {
	if q.ready.Len() == 0 {
		return nil
	}
	return heap.Pop(&q.ready).(*entry)
}

// rest puts a pod that did not fit aside.
func (q *queue) rest(e *entry, now time.Time) {
	if q.entries[e.pod.UID] != e {
		return
	}
	wait := maxBackoff
	if e.tries < 4 {
		wait = firstBackoff << e.tries
	}
	e.tries++
	e.earliest, e.woken = now.Add(wait), false
}

// retry brings a pod back after an error that has nothing to do with fitting.
func (q *queue) retry(e *entry, now time.Time) {
	q.rest(e, now)
	e.woken = true
}

// wake says that something changed: every resting pod is tried again, the ones
// that are backing off when that is over.
func (q *queue) wake() {
	for _, e := range q.entries {
		if e.index < 0 {
			e.woken = true
		}
	}
}

// flush moves woken pods whose back-off is over to the ready ones, and returns
// when the next is due; zero if none is.
func (q *queue) flush(now time.Time) (next time.Time) {
	for _, e := range q.entries {
		if e.index >= 0 || !e.woken {
			continue
		}
		if !now.Before(e.earliest) {
			e.woken = false
			heap.Push(&q.ready, e)
		} else if next.IsZero() || e.earliest.Before(next) {
			next = e.earliest
		}
	}
	return next
}

type podHeap []*entry

func (h podHeap) Len() int { return len(h) }
func (h podHeap) Less(i, j int) bool {
	a, b := h[i].pod, h[j].pod
	return cmp.Or(
		cmp.Compare(schedulingcorev1.PodPriority(b.Pod), schedulingcorev1.PodPriority(a.Pod)),
		a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
		cmp.Compare(a.UID, b.UID),
	) < 0
}
func (h podHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *podHeap) Push(x any) {
	e := x.(*entry)
	e.index = len(*h)
	*h = append(*h, e)
}
func (h *podHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.index = -1
	return e
}
