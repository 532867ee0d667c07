package daemonset

import (
	"cmp"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// Snapshot is everything a decision about one DaemonSet rests on.
type Snapshot struct {
	Set   *appsv1.DaemonSet
	Nodes []*corev1.Node
	// Pods that the set owns.
	Pods []*corev1.Pod
	// Hash of the newest revision: the label of the pods that are up to date.
	Hash string
	// BackOff is how long failed pods stay, by node, before they are replaced.
	BackOff map[string]time.Duration
	// Collisions is the collision count of the revisions' names.
	Collisions int32
}

// Decision is one step towards the spec.
type Decision struct {
	// Create are the names of the nodes that get a pod.
	Create []string
	// Delete are the pods to delete; those that have ended by themselves are in
	// Ended too.
	Delete []*corev1.Pod
	Ended  []*corev1.Pod
	// Status of the set.
	Status appsv1.DaemonSetStatus
	// Recheck is when the next pod may have become available or may be replaced;
	// zero if none is waiting.
	Recheck time.Duration
}

// place is a node with the pods of the set that are on it or meant for it.
type place struct {
	name      string
	run, stay bool
	// pods that exist, the oldest first; alive are those that are not being deleted.
	pods, alive []*corev1.Pod
}

// decision is the working state of Decide.
type decision struct {
	s   Snapshot
	ds  *appsv1.DaemonSet
	now time.Time
	// places in the order of their names.
	places []*place
	// desired is how many nodes should run a pod.
	desired int
	out     Decision
}

// Decide takes the next step of a DaemonSet. It changes nothing of the snapshot.
// The rules are those of the page "DaemonSet" and of the controller of Kubernetes:
// first every node gets what it should have, then the pods of former templates are
// replaced.
func Decide(s Snapshot, now time.Time) Decision {
	d := &decision{s: s, ds: s.Set, now: now}
	d.arrange()
	d.status()
	if d.ds.DeletionTimestamp != nil {
		return d.out
	}
	for _, p := range d.places {
		d.manage(p)
	}
	if len(d.out.Create)+len(d.out.Delete) > 0 || d.ds.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType {
		return d.out
	}
	surge, unavailable := d.limits()
	if surge > 0 {
		d.surge(surge)
	} else {
		d.replace(unavailable)
	}
	return d.out
}

// arrange sorts the pods by node. Pods that are meant for a node that is not there
// are deleted; those that were bound to one are the node lifecycle controller's.
func (d *decision) arrange() {
	e := newEligibility(d.ds)
	at := map[string]*place{}
	for _, n := range d.s.Nodes {
		p := &place{name: n.Name}
		p.run, p.stay = e.of(n)
		if p.run {
			d.desired++
		}
		at[n.Name] = p
		d.places = append(d.places, p)
	}
	for _, pod := range d.s.Pods {
		p := at[nodeOf(pod)]
		switch {
		case p == nil:
			if pod.Spec.NodeName == "" && pod.DeletionTimestamp == nil && d.ds.DeletionTimestamp == nil {
				d.out.Delete = append(d.out.Delete, pod)
			}
		case ended(pod) && pod.DeletionTimestamp != nil: // has made room
		default:
			p.pods = append(p.pods, pod)
		}
	}
	slices.SortFunc(d.places, func(a, b *place) int { return cmp.Compare(a.name, b.name) })
	for _, p := range d.places {
		slices.SortFunc(p.pods, func(a, b *corev1.Pod) int {
			return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
		})
		p.alive = slices.DeleteFunc(slices.Clone(p.pods), func(pod *corev1.Pod) bool { return pod.DeletionTimestamp != nil })
	}
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
}

func (d *decision) updated(p *corev1.Pod) bool {
	return p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == d.s.Hash
}

func (d *decision) available(p *corev1.Pod) bool {
	ok, wait := controller.PodAvailable(p, d.ds.Spec.MinReadySeconds, d.now)
	d.wait(wait)
	return ok
}

// wait asks for another look after a while, if that is the soonest.
func (d *decision) wait(w time.Duration) {
	if w > 0 && (d.out.Recheck == 0 || w < d.out.Recheck) {
		d.out.Recheck = w
	}
}

// manage gives a node what it should have: one pod, or during a surge one of the
// newest template beside an old one, or none. Pods that are stopping hold their
// place until they are gone.
func (d *decision) manage(p *place) {
	switch {
	case p.run && len(p.pods) == 0:
		d.out.Create = append(d.out.Create, p.name)
	case !p.stay:
		d.out.Delete = append(d.out.Delete, p.alive...)
	default:
		d.prune(p)
	}
}

// prune removes pods that have ended, after a back-off, and those that are too many.
func (d *decision) prune(p *place) {
	var running []*corev1.Pod
	for _, pod := range p.alive {
		switch wait := d.s.BackOff[p.name]; {
		case !ended(pod):
			running = append(running, pod)
		case wait > 0:
			d.wait(wait)
		default:
			d.out.Ended = append(d.out.Ended, pod)
			d.out.Delete = append(d.out.Delete, pod)
		}
	}
	if len(running) <= 1 {
		return
	}
	if surge, _ := d.limits(); surge == 0 {
		d.out.Delete = append(d.out.Delete, running[1:]...)
		return
	}
	var old, current *corev1.Pod
	for _, pod := range running {
		switch {
		case current == nil && d.updated(pod):
			current = pod
		case old == nil && !d.updated(pod):
			old = pod
		default:
			d.out.Delete = append(d.out.Delete, pod)
		}
	}
	if old != nil && current != nil && (!controller.PodReady(old) || d.available(current)) {
		d.out.Delete = append(d.out.Delete, old)
	}
}

// status counts the nodes by what they run.
func (d *decision) status() {
	s := *d.ds.Status.DeepCopy()
	s.ObservedGeneration = d.ds.Generation
	if d.s.Collisions > 0 {
		s.CollisionCount = &d.s.Collisions
	}
	s.DesiredNumberScheduled = int32(d.desired)
	s.CurrentNumberScheduled, s.NumberMisscheduled, s.NumberReady, s.NumberAvailable, s.UpdatedNumberScheduled = 0, 0, 0, 0, 0
	for _, p := range d.places {
		switch {
		case len(p.pods) == 0:
		case !p.run:
			s.NumberMisscheduled++
		default:
			s.CurrentNumberScheduled++
			oldest := p.pods[0]
			if controller.PodReady(oldest) {
				s.NumberReady++
				if d.available(oldest) {
					s.NumberAvailable++
				}
			}
			if d.updated(oldest) {
				s.UpdatedNumberScheduled++
			}
		}
	}
	s.NumberUnavailable = s.DesiredNumberScheduled - s.NumberAvailable
	d.out.Status = s
}
