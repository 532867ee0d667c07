package job

import (
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// The way of a pod that has ended (KEP-2307): its UID goes into
// status.uncountedTerminatedPods, then its finalizer goes, then the UID becomes one
// in the count. Whenever the controller is stopped in between, the next one finds
// the pod in exactly one of the places that add up. An index that has succeeded
// needs no UID: it can be in a set only once.

// maxUncounted bounds the UIDs in a status, so that it stays small.
const maxUncounted = 500

// settle counts the recorded pods whose finalizer has gone.
func (d *decision) settle() {
	st := &d.out.Status
	u := st.UncountedTerminatedPods
	if u == nil {
		u = &batchv1.UncountedTerminatedPods{}
		st.UncountedTerminatedPods = u
	}
	held := map[types.UID]bool{}
	for _, p := range d.pods {
		held[p.UID] = tracked(p)
	}
	rest := func(list []types.UID, count *int32) []types.UID {
		var out []types.UID
		for _, uid := range list {
			if !held[uid] {
				*count++
				continue
			}
			d.uncounted[uid] = true
			out = append(out, uid)
		}
		return out
	}
	u.Succeeded = rest(u.Succeeded, &st.Succeeded)
	u.Failed = rest(u.Failed, &st.Failed)
}

// sort finds what each pod is, and adds up.
func (d *decision) sort() {
	st := &d.out.Status
	if isIndexed(d.spec) {
		d.done = parseIndexes(st.CompletedIndexes, d.completions())
	}
	if st.FailedIndexes != nil {
		d.broken = parseIndexes(*st.FailedIndexes, d.completions())
	}
	for _, p := range d.pods {
		switch {
		case controller.PodActive(p):
			d.active = append(d.active, p)
			continue
		case !ended(p) && !abandoned(p):
			d.stopping = append(d.stopping, p)
		}
		if !tracked(p) || d.uncounted[p.UID] {
			continue
		}
		switch {
		case p.Status.Phase == corev1.PodSucceeded:
			d.succeed(p)
		case failed(p, d.spec):
			d.newFailed = append(d.newFailed, p)
			d.breakIndex(p)
		}
	}
	counted := 0
	for _, p := range d.newFailed {
		if judgePod(d.spec.PodFailurePolicy, p).counts() {
			counted++
		}
	}
	u := st.UncountedTerminatedPods
	d.failed = int(st.Failed) + len(u.Failed) + counted
	d.succeeded = int(st.Succeeded) + len(u.Succeeded) + len(d.newSucceeded)
	if isIndexed(d.spec) {
		d.succeeded = d.done.total()
	}
}

func (d *decision) succeed(p *corev1.Pod) {
	if !isIndexed(d.spec) {
		d.newSucceeded = append(d.newSucceeded, p)
		return
	}
	d.out.Release = append(d.out.Release, p)
	if i := indexOf(p); i >= 0 && i < d.completions() && !d.broken.has(i) {
		d.done = d.done.with(i)
	}
}

// breakIndex gives an index up if the pod was its last chance.
func (d *decision) breakIndex(p *corev1.Pod) {
	i := indexOf(p)
	if d.spec.BackoffLimitPerIndex == nil || i < 0 || i >= d.completions() || d.done.has(i) {
		return
	}
	v := judgePod(d.spec.PodFailurePolicy, p)
	last := v.counts() && number(p, batchv1.JobIndexFailureCountAnnotation) >= int(*d.spec.BackoffLimitPerIndex)
	if last || v.action == batchv1.PodFailurePolicyActionFailIndex {
		d.broken = d.broken.with(i)
	}
}

// keepHistories finds the pods that carry the history of an index which nothing
// else carries: the newest that has failed, until another pod runs in its place.
func (d *decision) keepHistories() {
	if d.spec.BackoffLimitPerIndex == nil || d.end != nil || d.job.DeletionTimestamp != nil {
		return
	}
	running := map[int]bool{}
	for _, p := range d.active {
		running[indexOf(p)] = true
	}
	for _, p := range d.newFailed {
		i := indexOf(p)
		if i < 0 || i >= d.completions() || running[i] || d.done.has(i) || d.broken.has(i) {
			continue
		}
		if old := d.kept[i]; old == nil || number(old, batchv1.JobIndexFailureCountAnnotation) <= number(p, batchv1.JobIndexFailureCountAnnotation) {
			d.kept[i] = p
		}
	}
}

// record writes the ended pods into the status, as many as it has room for, and
// lets go of them.
func (d *decision) record() {
	st := &d.out.Status
	u := st.UncountedTerminatedPods
	if isIndexed(d.spec) {
		st.CompletedIndexes, st.Succeeded = d.done.String(), int32(d.done.total())
	}
	if d.spec.BackoffLimitPerIndex != nil {
		text := d.broken.String()
		st.FailedIndexes = &text
	}
	room := maxUncounted - len(u.Succeeded) - len(u.Failed)
	add := func(list *[]types.UID, p *corev1.Pod) bool {
		if room <= 0 {
			return false
		}
		room--
		*list = append(*list, p.UID)
		return true
	}
	for _, p := range d.newSucceeded {
		if add(&u.Succeeded, p) {
			d.out.Release = append(d.out.Release, p)
		}
	}
	d.newFailed = slices.DeleteFunc(d.newFailed, func(p *corev1.Pod) bool {
		ignored := !judgePod(d.spec.PodFailurePolicy, p).counts()
		if d.kept[indexOf(p)] != p && (ignored || add(&u.Failed, p)) {
			d.out.Release = append(d.out.Release, p)
			return ignored
		}
		return false
	})
	for _, p := range d.pods {
		going := d.job.DeletionTimestamp != nil && p.DeletionTimestamp != nil && !slices.Contains(d.out.Release, p)
		if d.uncounted[p.UID] || tracked(p) && going {
			d.out.Release = append(d.out.Release, p)
		}
	}
}
