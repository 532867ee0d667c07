package statefulset

import (
	"cmp"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// Revision is a pod template under the name of its ControllerRevision.
type Revision struct {
	Name     string
	Template *corev1.PodTemplateSpec
}

// Snapshot is everything a decision about one StatefulSet rests on.
type Snapshot struct {
	Set *appsv1.StatefulSet
	// Pods that the set owns.
	Pods []*corev1.Pod
	// Claims of the namespace, by name.
	Claims map[string]*corev1.PersistentVolumeClaim
	// Current is the revision that all pods had when the last update was complete,
	// Update the one that they are to have.
	Current, Update Revision
	// Collisions is the collision count of the revisions' names.
	Collisions int32
}

// Member is a pod with those of its claims that do not exist.
type Member struct {
	Pod    *corev1.Pod
	Claims []*corev1.PersistentVolumeClaim
}

// Decision is one step towards the spec. In ordered mode a step touches one pod;
// its effect is watched, and the next look decides again.
type Decision struct {
	// Create are the pods to create after their claims, the lowest ordinal first.
	Create []Member
	// Supply are existing pods that wait for claims which are missing.
	Supply []Member
	// Own are claims with the owner references that they should have.
	Own []*corev1.PersistentVolumeClaim
	// Identify are pods that lack the labels of their identity.
	Identify []*corev1.Pod
	// Delete are the pods to delete, in that order.
	Delete []*corev1.Pod
	// Status of the set.
	Status appsv1.StatefulSetStatus
	// Recheck is when a Ready pod will have been so for minReadySeconds; zero if
	// none is waiting.
	Recheck time.Duration
}

// decision is the working state of Decide.
type decision struct {
	s   Snapshot
	set *appsv1.StatefulSet
	now time.Time
	// members are the pods of the wanted ordinals, nil where there is none.
	members []*corev1.Pod
	// condemned are the pods beyond, the highest ordinal first.
	condemned []*corev1.Pod
	out       Decision
}

// Decide takes the next step of a StatefulSet. It changes nothing of the snapshot.
// The rules are those of the page "StatefulSets" and of the controller of
// Kubernetes; scaling goes before updating.
func Decide(s Snapshot, now time.Time) Decision {
	d := &decision{s: s, set: s.Set, now: now, members: make([]*corev1.Pod, replicas(s.Set))}
	for _, p := range s.Pods {
		n, ok := ordinalOf(d.set, p)
		if !ok {
			continue
		}
		if i := n - start(d.set); i >= 0 && i < len(d.members) {
			d.members[i] = p
		} else {
			d.condemned = append(d.condemned, p)
		}
	}
	slices.SortFunc(d.condemned, func(a, b *corev1.Pod) int { return cmp.Compare(d.ordinal(b), d.ordinal(a)) })
	d.out.Status, d.out.Recheck = d.status()
	if d.set.DeletionTimestamp == nil && d.fill() && d.shrink() {
		d.update()
	}
	d.complete()
	return d.out
}

func replicas(set *appsv1.StatefulSet) int {
	if set.Spec.Replicas == nil {
		return 1
	}
	return int(*set.Spec.Replicas)
}

// start is the first ordinal.
func start(set *appsv1.StatefulSet) int {
	if set.Spec.Ordinals == nil {
		return 0
	}
	return int(set.Spec.Ordinals.Start)
}

func (d *decision) ordered() bool {
	return d.set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement
}

func (d *decision) ordinal(p *corev1.Pod) int {
	n, _ := ordinalOf(d.set, p)
	return n
}

// available says whether a pod counts as up: running, Ready for minReadySeconds
// and not on its way out.
func (d *decision) available(p *corev1.Pod) bool {
	if p == nil || p.DeletionTimestamp != nil || p.Status.Phase != corev1.PodRunning {
		return false
	}
	ok, _ := controller.PodAvailable(p, d.set.Spec.MinReadySeconds, d.now)
	return ok
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
}

// fill goes through the wanted ordinals from the lowest: creates what is missing
// and replaces what has ended, whatever its exit code was. In ordered mode it goes
// no further than the first pod that is not available. It says whether the set may
// be looked at beyond that.
func (d *decision) fill() bool {
	for i, p := range d.members {
		ordinal := start(d.set) + i
		switch {
		case p == nil:
			claims, ok := d.missing(ordinal)
			if ok {
				d.out.Create = append(d.out.Create, Member{newPod(d.set, d.revisionFor(i), ordinal), claims})
			}
		case ended(p):
			if p.DeletionTimestamp == nil {
				d.out.Delete = append(d.out.Delete, p)
			}
		default:
			d.maintain(p, ordinal)
		}
		if d.ordered() && !d.available(p) {
			return false
		}
	}
	return true
}

// maintain keeps what belongs to a pod as it should be.
func (d *decision) maintain(p *corev1.Pod, ordinal int) {
	if p.DeletionTimestamp != nil {
		return
	}
	if p.Status.Phase == corev1.PodPending {
		if claims, ok := d.missing(ordinal); ok && len(claims) > 0 {
			d.out.Supply = append(d.out.Supply, Member{p, claims})
		}
	}
	if !identified(p, ordinal) {
		d.out.Identify = append(d.out.Identify, p)
	}
	d.out.Own = append(d.out.Own, d.owned(p, ordinal, true)...)
}

// revisionFor is the revision of a pod that is created at an index: below the
// partition that of before the update.
func (d *decision) revisionFor(index int) Revision {
	if d.set.Spec.UpdateStrategy.Type != appsv1.OnDeleteStatefulSetStrategyType && index < partition(d.set) {
		return d.s.Current
	}
	return d.s.Update
}

func partition(set *appsv1.StatefulSet) int {
	if r := set.Spec.UpdateStrategy.RollingUpdate; r != nil && r.Partition != nil {
		return int(*r.Partition)
	}
	return 0
}

// shrink removes the pods beyond the wanted ordinals. In ordered mode it takes
// them from the highest, one at a time, and waits for an unhealthy one unless there
// is none below it. One that has ended never gets well: nothing waits for that. It
// says whether nothing is left to be removed.
func (d *decision) shrink() bool {
	for _, p := range d.condemned {
		d.out.Own = append(d.out.Own, d.owned(p, d.ordinal(p), false)...)
	}
	var lowestUnhealthy *corev1.Pod
	for _, p := range d.condemned {
		if !d.available(p) {
			lowestUnhealthy = p
		}
	}
	for _, p := range d.condemned {
		if d.ordered() {
			if p.DeletionTimestamp == nil && (d.available(p) || ended(p) || p == lowestUnhealthy) {
				d.out.Delete = append(d.out.Delete, p)
			}
			return false
		}
		if p.DeletionTimestamp == nil {
			d.out.Delete = append(d.out.Delete, p)
		}
	}
	return true
}

// update deletes pods of another revision, from the highest ordinal down to the
// partition, as long as no more than maxUnavailable of all are down (KEP-961). A
// pod that is down already costs nothing. In ordered mode there is none here, which
// is why a broken update there has to be helped by hand ("Forced rollback").
func (d *decision) update() {
	if d.set.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType {
		return
	}
	budget := maxUnavailable(d.set)
	for _, p := range d.members {
		if !d.available(p) {
			budget--
		}
	}
	for i := len(d.members) - 1; i >= partition(d.set); i-- {
		p := d.members[i]
		if p == nil || p.DeletionTimestamp != nil || ended(p) || revisionOf(p) == d.s.Update.Name {
			continue
		}
		if d.available(p) {
			if budget <= 0 {
				continue
			}
			budget--
		}
		d.out.Delete = append(d.out.Delete, p)
		if revisionOf(p) == d.s.Current.Name {
			d.out.Status.CurrentReplicas--
		}
	}
}

// maxUnavailable is how many pods may be down during an update, at least one.
func maxUnavailable(set *appsv1.StatefulSet) int {
	one := intstr.FromInt32(1)
	v := &one
	if r := set.Spec.UpdateStrategy.RollingUpdate; r != nil && r.MaxUnavailable != nil {
		v = r.MaxUnavailable
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(v, replicas(set), true)
	if err != nil {
		return 1
	}
	return max(n, 1)
}

func revisionOf(p *corev1.Pod) string { return p.Labels[appsv1.StatefulSetRevisionLabel] }
