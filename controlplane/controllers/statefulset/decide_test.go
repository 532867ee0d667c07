package statefulset

import (
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

type setOpt func(*appsv1.StatefulSet)

func parallel(s *appsv1.StatefulSet) { s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement }
func onDelete(s *appsv1.StatefulSet) {
	s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}
}
func from(n int32) setOpt {
	return func(s *appsv1.StatefulSet) { s.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: n} }
}
func rolling(partition int32, unavailable string) setOpt {
	u := intstr.Parse(unavailable)
	return func(s *appsv1.StatefulSet) {
		s.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateStatefulSetStrategy{Partition: &partition, MaxUnavailable: &u}
	}
}
func minReady(n int32) setOpt { return func(s *appsv1.StatefulSet) { s.Spec.MinReadySeconds = n } }
func retain(deleted, scaled appsv1.PersistentVolumeClaimRetentionPolicyType) setOpt {
	return func(s *appsv1.StatefulSet) {
		s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenDeleted: deleted, WhenScaled: scaled}
	}
}
func storage(s *appsv1.StatefulSet) {
	s.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}
}

func newSet(n int32, opts ...setOpt) *appsv1.StatefulSet {
	s := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: "default", UID: "set", Generation: 1},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &n, ServiceName: "dbs",
			Selector:       &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}},
			UpdateStrategy: appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "db"}},
				Spec:       corev1.PodSpec{Volumes: []corev1.Volume{{Name: "tmp"}, {Name: "data"}}},
			},
		},
	}
	for _, o := range opts {
		o(s)
	}
	return s
}

// podsOf reads pods from a line: "0:v1 1:v2- 2:v1~" with - for one that is not
// ready, ~ for one that is stopping, ! for one that has failed, + for one that has
// been ready for a second.
func podsOf(set *appsv1.StatefulSet, line string) (out []*corev1.Pod) {
	for _, f := range strings.Fields(line) {
		ordinal, rest, _ := strings.Cut(f, ":")
		revision, state := strings.TrimRight(rest, "-~!+"), strings.TrimLeft(rest, "v0123456789")
		n, _ := ordinalOf(set, &metav1.ObjectMeta{Name: "db-" + ordinal})
		p := newPod(set, Revision{revision, &set.Spec.Template}, n)
		p.UID = types.UID(f)
		p.Status.Phase = corev1.PodRunning
		ready := corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-time.Hour))}
		switch state {
		case "-":
			ready.Status, p.Status.Phase = corev1.ConditionFalse, corev1.PodPending
		case "~":
			p.DeletionTimestamp = &metav1.Time{Time: now}
		case "!":
			ready.Status, p.Status.Phase = corev1.ConditionFalse, corev1.PodFailed
		case "+":
			ready.LastTransitionTime = metav1.NewTime(now.Add(-time.Second))
		}
		p.Status.Conditions = []corev1.PodCondition{ready}
		out = append(out, p)
	}
	return out
}

func snapshot(set *appsv1.StatefulSet, pods string) Snapshot {
	return Snapshot{
		Set: set, Pods: podsOf(set, pods), Claims: map[string]*corev1.PersistentVolumeClaim{},
		Current: Revision{"v1", &set.Spec.Template}, Update: Revision{"v2", &set.Spec.Template},
	}
}

// steps names what a decision does: "+db-0:v2" creates, "-db-1" deletes.
func steps(d Decision) string {
	var out []string
	for _, m := range d.Create {
		out = append(out, "+"+m.Pod.Name+":"+revisionOf(m.Pod))
	}
	for _, p := range d.Delete {
		out = append(out, "-"+p.Name)
	}
	return strings.Join(out, " ")
}

func TestSteps(t *testing.T) {
	for _, c := range []struct {
		name, pods, want string
		set              *appsv1.StatefulSet
	}{
		{"the first starts alone", "", "+db-0:v2", newSet(3)},
		{"the next waits until it is ready", "0:v2-", "", newSet(3)},
		{"the next starts when it is", "0:v2", "+db-1:v2", newSet(3)},
		{"and not before it is available", "0:v2+", "", newSet(3, minReady(10))},
		{"all start at once", "1:v2-", "+db-0:v2 +db-2:v2", newSet(3, parallel)},
		{"ordinals start where they should", "5:v2", "+db-6:v2", newSet(2, from(5))},
		{"an ordinal below the start goes when all are up", "4:v2 5:v2 6:v2", "-db-4", newSet(2, from(5))},
		{"a hole is filled", "0:v2 2:v2", "+db-1:v2", newSet(3)},
		{"one that has failed is replaced", "0:v2 1:v2! 2:v2", "-db-1", newSet(3)},
		{"and waited for while it goes", "0:v2 1:v2~ 2:v2", "", newSet(3)},
		{"scaled down from the highest", "0:v2 1:v2 2:v2", "-db-2", newSet(1)},
		{"one after the other", "0:v2 1:v2 2:v2~", "", newSet(1)},
		{"not while one below is unhealthy", "0:v2- 1:v2 2:v2", "", newSet(1)},
		{"an unhealthy one goes if none below is", "0:v2 1:v2 2:v2-", "-db-2", newSet(1)},
		{"and waits if one is", "0:v2 1:v2- 2:v2-", "", newSet(1)},
		{"one that has ended is not waited for", "0:v2 1:v2! 2:v2!", "-db-2", newSet(0)},
		{"scaled down all at once", "0:v2- 1:v2- 2:v2", "-db-2 -db-1", newSet(1, parallel)},
		{"scaling goes before updating", "0:v1 1:v1", "+db-2:v2", newSet(3)},
		{"updated from the highest", "0:v1 1:v1 2:v1", "-db-2", newSet(3)},
		{"one at a time", "0:v1 1:v1 2:v2-", "", newSet(3)},
		{"on to the next", "0:v1 1:v1 2:v2", "-db-1", newSet(3)},
		{"two at a time", "0:v1 1:v1 2:v1", "-db-2 -db-1", newSet(3, rolling(0, "2"))},
		{"percents are rounded up", "0:v1 1:v1 2:v1", "-db-2 -db-1", newSet(3, rolling(0, "34%"))},
		{"at least one", "0:v1 1:v1 2:v1", "-db-2", newSet(3, rolling(0, "1%"))},
		{"down to the partition", "0:v1 1:v1 2:v2", "", newSet(3, rolling(2, "1"))},
		{"below the partition the old revision comes back", "1:v1 2:v2", "+db-0:v1", newSet(3, rolling(2, "1"))},
		{"the partition counts from the start", "5:v1 6:v1 7:v1", "-db-7", newSet(3, from(5), rolling(2, "1"))},
		{"by hand nothing is deleted", "0:v1 1:v1 2:v1", "", newSet(3, onDelete)},
		{"by hand the new revision comes", "0:v1 2:v1", "+db-1:v2", newSet(3, onDelete)},
		{"a broken update is stuck in order", "0:v1 1:v1 2:v3-", "", newSet(3)},
		{"and is replaced without", "0:v1 1:v1 2:v3-", "-db-2", newSet(3, parallel)},
		{"in parallel no more than maxUnavailable", "0:v1 1:v1 2:v1 3:v2-", "-db-2", newSet(4, parallel, rolling(0, "2"))},
	} {
		if got := steps(Decide(snapshot(c.set, c.pods), now)); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestDeleting(t *testing.T) {
	set := newSet(3)
	set.DeletionTimestamp = &metav1.Time{Time: now}
	if got := steps(Decide(snapshot(set, "0:v1!"), now)); got != "" {
		t.Errorf("a set that is being deleted does %s", got)
	}
}

func TestStatus(t *testing.T) {
	set := newSet(4, minReady(10))
	s := snapshot(set, "0:v1 1:v1~ 2:v2+ 3:v2-")
	s.Collisions = 2
	d := Decide(s, now)
	st := d.Status
	if st.Replicas != 4 || st.ReadyReplicas != 3 || st.AvailableReplicas != 2 || st.CurrentReplicas != 1 || st.UpdatedReplicas != 2 ||
		st.CurrentRevision != "v1" || st.UpdateRevision != "v2" || *st.CollisionCount != 2 || st.ObservedGeneration != 1 {
		t.Errorf("status %+v", st)
	}
	if d.Recheck != 9*time.Second {
		t.Errorf("recheck after %s, want 9s", d.Recheck)
	}
	if st := Decide(snapshot(newSet(2), "0:v2 1:v2"), now).Status; st.CurrentRevision != "v2" || st.CurrentReplicas != 2 {
		t.Errorf("a complete update should become the current revision: %+v", st)
	}
	if st := Decide(snapshot(newSet(2, rolling(1, "1")), "0:v1 1:v2"), now).Status; st.CurrentRevision != "v1" || st.UpdatedReplicas != 1 {
		t.Errorf("a partitioned update is not complete: %+v", st)
	}
}

func TestIdentity(t *testing.T) {
	set := newSet(1, storage, from(7))
	m := Decide(snapshot(set, ""), now).Create[0]
	p := m.Pod
	if p.Name != "db-7" || p.Spec.Hostname != "db-7" || p.Spec.Subdomain != "dbs" || p.GenerateName != "db-" || !metav1.IsControlledBy(p, set) {
		t.Errorf("identity %s %s.%s %s %v", p.Name, p.Spec.Hostname, p.Spec.Subdomain, p.GenerateName, p.OwnerReferences)
	}
	for k, v := range map[string]string{
		"app": "db", "statefulset.kubernetes.io/pod-name": "db-7", "apps.kubernetes.io/pod-index": "7", "controller-revision-hash": "v2",
	} {
		if p.Labels[k] != v {
			t.Errorf("label %s=%q, want %q", k, p.Labels[k], v)
		}
	}
	if v := p.Spec.Volumes; len(v) != 2 || v[0].PersistentVolumeClaim.ClaimName != "data-db-7" || v[1].Name != "tmp" {
		t.Errorf("volumes %+v", v)
	}
	if c := m.Claims; len(c) != 1 || c[0].Name != "data-db-7" || c[0].Labels["app"] != "db" || len(c[0].OwnerReferences) != 0 {
		t.Errorf("claims %+v", c)
	}
	if len(set.Spec.Template.Labels) != 1 {
		t.Error("the template was changed")
	}
	for name, want := range map[string]bool{"db-0": true, "db-12": true, "db-01": false, "db-": false, "db-x": false, "db-1-2": false, "other-1": false} {
		if _, ok := ordinalOf(set, &metav1.ObjectMeta{Name: name}); ok != want {
			t.Errorf("%s is a member: %v", name, ok)
		}
	}
	s := snapshot(newSet(1), "0:v2")
	delete(s.Pods[0].Labels, appsv1.PodIndexLabel)
	if d := Decide(s, now); len(d.Identify) != 1 {
		t.Error("an adopted pod without its labels should get them")
	}
}

// TestRetention: the table of KEP-1847.
func TestRetention(t *testing.T) {
	const keep, drop = appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	for _, c := range []struct {
		deleted, scaled     appsv1.PersistentVolumeClaimRetentionPolicyType
		inRange, outOfRange string
	}{
		{keep, keep, "", ""},
		{drop, keep, "StatefulSet", "StatefulSet"},
		{keep, drop, "", "Pod"},
		{drop, drop, "StatefulSet", "Pod"},
	} {
		set := newSet(1, storage, retain(c.deleted, c.scaled))
		s := snapshot(set, "0:v2 1:v2")
		claim := func(n int) *corev1.PersistentVolumeClaim {
			cl := newClaims(set, n)[0]
			cl.OwnerReferences = nil
			return cl
		}
		s.Claims["data-db-0"], s.Claims["data-db-1"] = claim(0), claim(1)
		got := map[string]string{}
		for _, cl := range Decide(s, now).Own {
			got[cl.Name] = cl.OwnerReferences[0].Kind
			s.Claims[cl.Name] = cl
		}
		if got["data-db-0"] != c.inRange || got["data-db-1"] != c.outOfRange {
			t.Errorf("deleted %s, scaled %s: owners %v", c.deleted, c.scaled, got)
		}
		if again := Decide(s, now).Own; len(again) > 0 {
			t.Errorf("deleted %s, scaled %s: owners are written again and again", c.deleted, c.scaled)
		}
		// Back to Retain takes the owners off.
		set.Spec.PersistentVolumeClaimRetentionPolicy = nil
		for _, cl := range Decide(s, now).Own {
			if len(cl.OwnerReferences) > 0 {
				t.Errorf("retained again, but owned by %v", cl.OwnerReferences)
			}
		}
	}
}

func TestClaims(t *testing.T) {
	const keep, drop = appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	set := newSet(1, storage, retain(drop, drop))
	s := snapshot(set, "")
	if c := Decide(s, now).Create[0].Claims[0]; !metav1.IsControlledBy(c, set) {
		t.Error("a claim that goes with the set should belong to it from the start")
	}
	claim := newClaims(set, 0)[0]
	s.Claims[claim.Name] = claim
	if d := Decide(s, now); len(d.Create) != 1 || len(d.Create[0].Claims) != 0 {
		t.Errorf("an existing claim should be used: %+v", d.Create)
	}
	claim.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(&metav1.ObjectMeta{Name: "db-0", UID: "former"}, podKind)}
	if d := Decide(s, now); len(d.Create) != 0 {
		t.Error("a pod started on a claim that is about to be collected")
	}
	claim.OwnerReferences, claim.DeletionTimestamp = nil, &metav1.Time{Time: now}
	if d := Decide(s, now); len(d.Create) != 0 {
		t.Error("a pod started on a claim that is being deleted")
	}
	s = snapshot(newSet(1, storage), "0:v2-")
	if d := Decide(s, now); len(d.Supply) != 1 || d.Supply[0].Claims[0].Name != "data-db-0" {
		t.Errorf("a pending pod should get its missing claim: %+v", d.Supply)
	}
	// A claim that something else controls is left alone.
	set = newSet(1, storage, retain(drop, keep))
	s = snapshot(set, "0:v2")
	claim = newClaims(set, 0)[0]
	claim.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(&metav1.ObjectMeta{Name: "x", UID: "x"}, podKind)}
	s.Claims[claim.Name] = claim
	if d := Decide(s, now); len(d.Own) != 0 || !slices.Equal([]string{"x"}, []string{claim.OwnerReferences[0].Name}) {
		t.Errorf("a foreign claim was taken: %+v", d.Own)
	}
}
