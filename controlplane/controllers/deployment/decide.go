package deployment

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Snapshot is everything a decision about one Deployment rests on.
type Snapshot struct {
	Deployment *appsv1.Deployment
	// Sets are the ReplicaSets that the Deployment owns.
	Sets []*appsv1.ReplicaSet
	// OldPods counts the pods of old ReplicaSets that have not ended; only the
	// Recreate strategy asks.
	OldPods int
}

// Decision is one step of a rollout. The steps are small: each is taken, its
// effect is watched, and the next look decides again.
type Decision struct {
	// Create is the ReplicaSet for a template that has none yet, or nil.
	Create *appsv1.ReplicaSet
	// Update are existing ReplicaSets with a new number of replicas or new
	// annotations.
	Update []*appsv1.ReplicaSet
	// Delete are old ReplicaSets beyond revisionHistoryLimit.
	Delete []*appsv1.ReplicaSet
	// Revision is the value of the Deployment's revision annotation, empty to
	// leave it alone.
	Revision string
	// Status of the Deployment.
	Status appsv1.DeploymentStatus
	// Events tells people what was scaled.
	Events []Event
	// Recheck is when the progress deadline passes; zero if there is none to wait for.
	Recheck time.Duration
}

// Event is what is recorded on the Deployment for one change.
type Event struct{ Reason, Message string }

// Decide takes the next step of a Deployment towards its spec. It changes nothing
// of the snapshot. The rules are those of the page "Deployments" and of the
// deployment controller of Kubernetes.
func Decide(s Snapshot, now time.Time) Decision {
	d := s.Deployment
	r := newRollout(s, now)
	if d.DeletionTimestamp != nil {
		r.finish()
		return r.out
	}
	if !d.Spec.Paused {
		r.ensureNew()
	}
	switch {
	case d.Spec.Paused || r.scaling():
		r.scaleProportionally()
		if d.Spec.Paused && r.current != nil {
			r.cleanUp()
		}
	case d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType:
		r.recreate()
	default:
		r.rolling()
	}
	r.finish()
	return r.out
}

// rollout is the working state of one decision: copies of the ReplicaSets that it
// may change.
type rollout struct {
	d       *appsv1.Deployment
	current *appsv1.ReplicaSet   // whose template is the Deployment's; nil if none
	old     []*appsv1.ReplicaSet // all others, oldest first
	orig    map[string]*appsv1.ReplicaSet
	oldPods int
	now     time.Time
	created bool // current is new
	reused  bool // current was an old one until now
	out     Decision
}

func newRollout(s Snapshot, now time.Time) *rollout {
	r := &rollout{d: s.Deployment, oldPods: s.OldPods, now: now, orig: map[string]*appsv1.ReplicaSet{}}
	sets := make([]*appsv1.ReplicaSet, 0, len(s.Sets))
	for _, rs := range s.Sets {
		r.orig[rs.Name] = rs
		sets = append(sets, rs.DeepCopy())
	}
	slices.SortFunc(sets, func(a, b *appsv1.ReplicaSet) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	for _, rs := range sets {
		// The oldest match is the current one, should there ever be two.
		if r.current == nil && sameTemplate(&rs.Spec.Template, &r.d.Spec.Template) {
			r.current = rs
		} else {
			r.old = append(r.old, rs)
		}
	}
	return r
}

func (r *rollout) all() []*appsv1.ReplicaSet {
	if r.current == nil {
		return r.old
	}
	return append(slices.Clone(r.old), r.current)
}

// ensureNew finds or makes the ReplicaSet of the wanted template and numbers it
// above all others: going back to an old template reuses its ReplicaSet under a
// new revision number, so that history never flips.
func (r *rollout) ensureNew() {
	var highest int64
	for _, rs := range r.old {
		highest = max(highest, revisionOf(rs))
	}
	next := strconv.FormatInt(highest+1, 10)
	if r.current == nil {
		r.created = true
		r.current = newReplicaSet(r.d)
		setAnnotations(r.d, r.current, next)
		if r.d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType || r.recreateReady() {
			*r.current.Spec.Replicas = r.newReplicas()
		}
	} else if revisionOf(r.current) <= highest {
		r.reused = true
		setAnnotations(r.d, r.current, next)
	} else {
		setAnnotations(r.d, r.current, "")
		r.current.Spec.MinReadySeconds = r.d.Spec.MinReadySeconds
	}
	r.out.Revision = r.current.Annotations[RevisionAnnotation]
}

// scaling says whether the wanted number of replicas changed since the last step:
// then all ReplicaSets with pods are scaled in proportion before a rollout goes on.
func (r *rollout) scaling() bool {
	for _, rs := range r.all() {
		if replicas(rs) == 0 || r.orig[rs.Name] == nil {
			continue
		}
		if was, ok := desiredOf(r.orig[rs.Name]); ok && was != want(r.d) {
			return true
		}
	}
	return false
}

func (r *rollout) rolling() {
	before := replicas(r.current)
	if n := r.newReplicas(); n != before && !r.created {
		r.scale(r.current, n)
		return
	}
	if r.created {
		return // the old ones give way once the new one exists
	}
	if r.scaleDownOld() {
		return
	}
	if complete(r.d, r.liveStatus()) {
		r.cleanUp()
	}
}

// newReplicas is how many replicas the new ReplicaSet may have now: up to what
// maxSurge leaves beside the old ones.
func (r *rollout) newReplicas() int32 {
	have := replicas(r.current)
	if r.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType || have >= want(r.d) {
		return want(r.d)
	}
	surge, _ := fenceposts(r.d)
	room := want(r.d) + surge - total(r.all())
	if room <= 0 {
		return have
	}
	return have + min(room, want(r.d)-have)
}

// scaleDownOld first removes old pods that are not available anyway, then as many
// available ones as minAvailable leaves over. It says whether it changed anything.
func (r *rollout) scaleDownOld() bool {
	if total(r.old) == 0 {
		return false
	}
	_, unavailable := fenceposts(r.d)
	minAvailable := want(r.d) - unavailable
	newUnavailable := replicas(r.current) - r.current.Status.AvailableReplicas
	budget := total(r.all()) - minAvailable - max(newUnavailable, 0)
	if budget <= 0 {
		return false
	}
	changed := false
	for _, rs := range r.old {
		sick := replicas(rs) - rs.Status.AvailableReplicas
		if n := min(budget, sick); n > 0 {
			r.scale(rs, replicas(rs)-n)
			budget -= n
			changed = true
		}
	}
	var available int32
	for _, rs := range r.all() {
		available += rs.Status.AvailableReplicas
	}
	for _, rs := range r.old {
		spare := available - minAvailable
		if n := min(spare, replicas(rs)); n > 0 {
			r.scale(rs, replicas(rs)-n)
			available -= n
			changed = true
		}
	}
	return changed
}

// recreateReady says whether Recreate may start new pods: all old ones have ended.
func (r *rollout) recreateReady() bool { return total(r.old) == 0 && r.oldPods == 0 }

func (r *rollout) recreate() {
	for _, rs := range r.old {
		if replicas(rs) > 0 {
			r.scale(rs, 0)
		}
	}
	if !r.recreateReady() {
		return
	}
	if !r.created && replicas(r.current) != want(r.d) {
		r.scale(r.current, want(r.d))
		return
	}
	if complete(r.d, r.liveStatus()) {
		r.cleanUp()
	}
}

// scaleProportionally spreads a change of spec.replicas over all ReplicaSets that
// have pods, each by its share, the rest to the largest (page "Deployments",
// "Proportional scaling").
func (r *rollout) scaleProportionally() {
	var active []*appsv1.ReplicaSet
	for _, rs := range r.all() {
		if replicas(rs) > 0 {
			active = append(active, rs)
		}
	}
	switch len(active) {
	case 0:
		if r.current != nil && !r.created && !r.d.Spec.Paused {
			r.scale(r.current, want(r.d))
		} else if r.current != nil && r.d.Spec.Paused && len(r.old) == 0 {
			r.scale(r.current, want(r.d))
		}
		return
	case 1:
		r.scale(active[0], want(r.d))
		return
	}
	if r.current != nil && r.current.Status.AvailableReplicas >= want(r.d) && replicas(r.current) == want(r.d) {
		for _, rs := range r.old {
			if replicas(rs) > 0 {
				r.scale(rs, 0)
			}
		}
		return
	}
	if r.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return
	}
	surge, _ := fenceposts(r.d)
	allowed := int32(0)
	if want(r.d) > 0 {
		allowed = want(r.d) + surge
	}
	add := allowed - total(active)
	// Largest first when growing and when shrinking alike; newest first among equals.
	slices.SortStableFunc(active, func(a, b *appsv1.ReplicaSet) int {
		return cmp.Or(cmp.Compare(replicas(b), replicas(a)), b.CreationTimestamp.Compare(a.CreationTimestamp.Time))
	})
	left := add
	sizes := make([]int32, len(active))
	for i, rs := range active {
		share := proportion(rs, r.d, add, left)
		sizes[i] = replicas(rs) + share
		left -= share
	}
	sizes[0] = max(sizes[0]+left, 0)
	for i, rs := range active {
		r.scale(rs, sizes[i])
		setDesired(rs, want(r.d), want(r.d)+surge)
	}
}

// proportion is the part of add that falls to rs: what it would have if the whole
// were scaled from its former to its new size, kept within what is left.
func proportion(rs *appsv1.ReplicaSet, d *appsv1.Deployment, add, left int32) int32 {
	if replicas(rs) == 0 || add == 0 || left == 0 {
		return 0
	}
	surge, _ := fenceposts(d)
	former, ok := maxOf(rs)
	if !ok || former == 0 {
		former = d.Status.Replicas
	}
	if former == 0 {
		former = 1
	}
	// Rounded to the nearest, as floats with .5 up.
	size := int64(replicas(rs)) * int64(want(d)+surge)
	target := int32((2*size + int64(former)) / (2 * int64(former)))
	share := target - replicas(rs)
	if add > 0 {
		return max(min(share, left), 0)
	}
	return min(max(share, left), 0)
}

func (r *rollout) scale(rs *appsv1.ReplicaSet, n int32) {
	surge, _ := fenceposts(r.d)
	setDesired(rs, want(r.d), want(r.d)+surge)
	from := replicas(rs)
	if n == from {
		return
	}
	rs.Spec.Replicas = &n
	dir := "up"
	if n < from {
		dir = "down"
	}
	r.out.Events = append(r.out.Events, Event{"ScalingReplicaSet",
		fmt.Sprintf("Scaled %s replica set %s from %d to %d", dir, rs.Name, from, n)})
}

// cleanUp deletes the oldest ReplicaSets beyond revisionHistoryLimit, of those
// that have no pods.
func (r *rollout) cleanUp() {
	if r.d.Spec.RevisionHistoryLimit == nil {
		return
	}
	var idle []*appsv1.ReplicaSet
	for _, rs := range r.old {
		if replicas(rs) == 0 && rs.Status.Replicas == 0 && rs.DeletionTimestamp == nil && rs.Generation <= rs.Status.ObservedGeneration {
			idle = append(idle, rs)
		}
	}
	slices.SortStableFunc(idle, func(a, b *appsv1.ReplicaSet) int { return cmp.Compare(revisionOf(a), revisionOf(b)) })
	if n := len(idle) - int(*r.d.Spec.RevisionHistoryLimit); n > 0 {
		r.out.Delete = idle[:n]
	}
}

// finish collects what was changed and computes the status.
func (r *rollout) finish() {
	for _, rs := range r.all() {
		if r.created && rs == r.current {
			r.out.Create = rs
			if n := replicas(rs); n > 0 {
				r.out.Events = append(r.out.Events, Event{"ScalingReplicaSet",
					fmt.Sprintf("Scaled up replica set %s from 0 to %d", rs.Name, n)})
			}
			continue
		}
		if o := r.orig[rs.Name]; replicas(o) != replicas(rs) || o.Spec.MinReadySeconds != rs.Spec.MinReadySeconds || !sameAnnotations(o, rs) {
			r.out.Update = append(r.out.Update, rs)
		}
	}
	r.out.Status, r.out.Recheck = r.status()
}

func replicas(rs *appsv1.ReplicaSet) int32 {
	if rs == nil || rs.Spec.Replicas == nil {
		return 0
	}
	return *rs.Spec.Replicas
}

func want(d *appsv1.Deployment) int32 {
	if d.Spec.Replicas == nil {
		return 1
	}
	return *d.Spec.Replicas
}

func total(sets []*appsv1.ReplicaSet) (n int32) {
	for _, rs := range sets {
		n += replicas(rs)
	}
	return n
}

// fenceposts resolves maxSurge (percent rounded up) and maxUnavailable (rounded
// down). When both come out as 0 the rollout could never move, so one pod may be
// unavailable.
func fenceposts(d *appsv1.Deployment) (surge, unavailable int32) {
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return 0, 0
	}
	quarter := intstr.FromString("25%")
	s, u := &quarter, &quarter
	if ru := d.Spec.Strategy.RollingUpdate; ru != nil {
		if ru.MaxSurge != nil {
			s = ru.MaxSurge
		}
		if ru.MaxUnavailable != nil {
			u = ru.MaxUnavailable
		}
	}
	n := int(want(d))
	sv, _ := intstr.GetScaledValueFromIntOrPercent(s, n, true)
	uv, _ := intstr.GetScaledValueFromIntOrPercent(u, n, false)
	if sv == 0 && uv == 0 {
		uv = 1
	}
	return int32(sv), int32(min(uv, n))
}

func newReplicaSet(d *appsv1.Deployment) *appsv1.ReplicaSet {
	hash := TemplateHash(&d.Spec.Template, d.Status.CollisionCount)
	t := d.Spec.Template.DeepCopy()
	t.Labels = withLabel(t.Labels, appsv1.DefaultDeploymentUniqueLabelKey, hash)
	sel := d.Spec.Selector.DeepCopy()
	sel.MatchLabels = withLabel(sel.MatchLabels, appsv1.DefaultDeploymentUniqueLabelKey, hash)
	zero := int32(0)
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Name: d.Name + "-" + hash, Namespace: d.Namespace, Labels: t.Labels,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(d, kind)},
		},
		Spec: appsv1.ReplicaSetSpec{Replicas: &zero, MinReadySeconds: d.Spec.MinReadySeconds, Selector: sel, Template: *t},
	}
}

func withLabel(in map[string]string, k, v string) map[string]string {
	out := make(map[string]string, len(in)+1)
	for key, val := range in {
		out[key] = val
	}
	out[k] = v
	return out
}

func podEnded(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}
