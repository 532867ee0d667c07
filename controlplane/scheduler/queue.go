package scheduler

import (
	"cmp"
	"container/heap"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

const (
	// Back-off of a pod that could not be placed, doubled at each try, as in
	// kube-scheduler.
	firstBackoff = 1 * time.Second
	maxBackoff   = 10 * time.Second
	// restLimit is how long a pod rests at most: an event may have been missed.
	restLimit = 5 * time.Minute
)

// queue has the pods that wait for a node. The ready ones are in the order of
// priority and then age. A pod that did not fit rests until an event can let it
// through the plugins that held it back, and backs off before it is tried again.
// Not safe for concurrent use.
type queue struct {
	ready, backing pods
	resting        map[types.UID]*entry
	entries        map[types.UID]*entry
}

type entry struct {
	pod   *Pod
	tries int
	// in is the heap that has the entry, at index.
	in    *pods
	index int
	// earliest is when the back-off ends; rested when it began to rest.
	earliest, rested time.Time
	// held are the plugins that no node got past; nil if it was something else.
	held []*Plugin
}

func newQueue() *queue {
	return &queue{
		ready: pods{less: before}, backing: pods{less: func(a, b *entry) bool { return a.earliest.Before(b.earliest) }},
		resting: map[types.UID]*entry{}, entries: map[types.UID]*entry{},
	}
}

// before orders pods by priority, then by age.
func before(a, b *entry) bool {
	return cmp.Or(
		cmp.Compare(b.pod.priority, a.pod.priority),
		a.pod.CreationTimestamp.Compare(b.pod.CreationTimestamp.Time),
		cmp.Compare(a.pod.UID, b.pod.UID),
	) < 0
}

// set adds or replaces a waiting pod. A changed pod is tried at once.
func (q *queue) set(p *Pod) {
	e := q.entries[p.UID]
	if e == nil {
		e = &entry{}
		q.entries[p.UID] = e
	}
	e.pod = p
	q.move(e, &q.ready)
}

// refresh replaces a waiting pod where it waits.
func (q *queue) refresh(p *Pod) {
	if e := q.entries[p.UID]; e != nil {
		e.pod = p
		if e.in != nil {
			heap.Fix(e.in, e.index)
		}
	}
}

func (q *queue) remove(uid types.UID) {
	if e := q.entries[uid]; e != nil {
		q.move(e, nil)
		delete(q.entries, uid)
	}
}

// move takes an entry from where it is to a heap, or to none.
func (q *queue) move(e *entry, to *pods) {
	delete(q.resting, e.pod.UID)
	if e.in != nil {
		heap.Remove(e.in, e.index)
	}
	if e.in = to; to != nil {
		heap.Push(to, e)
	}
}

// pop takes the next pod to try; it stays known until remove, rest or retry is
// called.
func (q *queue) pop() *entry {
	if len(q.ready.list) == 0 {
		return nil
	}
	e := q.ready.list[0]
	q.move(e, nil)
	return e
}

// rest puts a pod aside that the plugins held back.
func (q *queue) rest(e *entry, held []*Plugin, now time.Time) {
	if q.entries[e.pod.UID] != e {
		return
	}
	e.back(now)
	e.held, e.rested = held, now
	q.move(e, nil)
	q.resting[e.pod.UID] = e
}

// retry brings a pod back after an error that has nothing to do with fitting.
func (q *queue) retry(e *entry, now time.Time) {
	if q.entries[e.pod.UID] == e {
		e.back(now)
		q.move(e, &q.backing)
	}
}

func (e *entry) back(now time.Time) {
	wait := maxBackoff
	if e.tries < 4 {
		wait = firstBackoff << e.tries
	}
	e.tries++
	e.earliest = now.Add(wait)
}

// happened tries those resting pods again that an event can let through.
func (q *queue) happened(c *Cluster, ev *Event) {
	for _, e := range q.resting {
		if e.wakes(c, ev) {
			q.move(e, &q.backing)
		}
	}
}

func (e *entry) wakes(c *Cluster, ev *Event) bool {
	if len(e.held) == 0 {
		return true // there was no node to be held back from
	}
	for _, plugin := range e.held {
		if plugin.Wakes != nil && plugin.Wakes(c, e.pod, ev) {
			return true
		}
	}
	return false
}

// flush makes pods ready whose back-off is over, and ends the rest of those that
// rest for too long. It returns when it is to be called next; zero for whenever.
func (q *queue) flush(now time.Time) (next time.Time) {
	for len(q.backing.list) > 0 {
		e := q.backing.list[0]
		if now.Before(e.earliest) {
			return e.earliest
		}
		q.move(e, &q.ready)
	}
	return time.Time{}
}

// overdue ends the rest of pods that rest for too long.
func (q *queue) overdue(now time.Time) {
	for _, e := range q.resting {
		if now.Sub(e.rested) >= restLimit {
			q.move(e, &q.backing)
		}
	}
}

// pods is a heap of entries.
type pods struct {
	less func(a, b *entry) bool
	list []*entry
}

func (h *pods) Len() int           { return len(h.list) }
func (h *pods) Less(i, j int) bool { return h.less(h.list[i], h.list[j]) }
func (h *pods) Swap(i, j int) {
	h.list[i], h.list[j] = h.list[j], h.list[i]
	h.list[i].index, h.list[j].index = i, j
}
func (h *pods) Push(x any) {
	e := x.(*entry)
	e.index = len(h.list)
	h.list = append(h.list, e)
}
func (h *pods) Pop() any {
	last := len(h.list) - 1
	e := h.list[last]
	h.list[last] = nil
	h.list = h.list[:last]
	return e
}
