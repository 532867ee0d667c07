package statefulset

import (
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// newClaims are the claims of an ordinal, as its templates want them. A claim of a
// set that takes its claims along when it is deleted belongs to it from the start.
func newClaims(set *appsv1.StatefulSet, ordinal int) []*corev1.PersistentVolumeClaim {
	var out []*corev1.PersistentVolumeClaim
	for i := range set.Spec.VolumeClaimTemplates {
		t := &set.Spec.VolumeClaimTemplates[i]
		c := t.DeepCopy()
		c.Name, c.Namespace = claimName(set, t, ordinal), set.Namespace
		c.Labels = maps.Clone(t.Labels)
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		maps.Copy(c.Labels, set.Spec.Selector.MatchLabels)
		c.Status = corev1.PersistentVolumeClaimStatus{}
		c.OwnerReferences = owners(set, nil, c, true)
		out = append(out, c)
	}
	return out
}

func policy(set *appsv1.StatefulSet) (deleted, scaled bool) {
	p := set.Spec.PersistentVolumeClaimRetentionPolicy
	if p == nil {
		return false, false
	}
	return p.WhenDeleted == appsv1.DeletePersistentVolumeClaimRetentionPolicyType,
		p.WhenScaled == appsv1.DeletePersistentVolumeClaimRetentionPolicyType
}

var podKind = corev1.SchemeGroupVersion.WithKind("Pod")

// owners are the owner references that a claim has by the retention policy
// (KEP-1847): the set, if its deletion is to take the claim along, and the pod
// instead, once it is scaled away and that is to take the claim along. The garbage
// collector does the rest. A claim that something else controls is not touched
// beyond taking ours off.
func owners(set *appsv1.StatefulSet, pod *corev1.Pod, claim *corev1.PersistentVolumeClaim, inRange bool) []metav1.OwnerReference {
	var podUID types.UID
	if pod != nil {
		podUID = pod.UID
	}
	foreign := false
	out := []metav1.OwnerReference(nil)
	for _, r := range claim.OwnerReferences {
		if r.UID == set.UID || (podUID != "" && r.UID == podUID) {
			continue
		}
		foreign = foreign || (r.Controller != nil && *r.Controller)
		out = append(out, r)
	}
	deleted, scaled := policy(set)
	switch {
	case foreign:
	case scaled && !inRange && pod != nil:
		out = append(out, *metav1.NewControllerRef(pod, podKind))
	case deleted && (inRange || !scaled):
		out = append(out, *metav1.NewControllerRef(set, kind))
	}
	return out
}

// owned returns copies of the claims of a pod whose owner references are not what
// the retention policy wants, with those that it wants.
func (d *decision) owned(pod *corev1.Pod, ordinal int, inRange bool) (out []*corev1.PersistentVolumeClaim) {
	for i := range d.set.Spec.VolumeClaimTemplates {
		c := d.s.Claims[claimName(d.set, &d.set.Spec.VolumeClaimTemplates[i], ordinal)]
		if c == nil || c.DeletionTimestamp != nil {
			continue
		}
		if want := owners(d.set, pod, c, inRange); !sameOwners(want, c.OwnerReferences) {
			c = c.DeepCopy()
			c.OwnerReferences = want
			out = append(out, c)
		}
	}
	return out
}

func sameOwners(a, b []metav1.OwnerReference) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(r metav1.OwnerReference) bool {
		return !slices.ContainsFunc(b, func(o metav1.OwnerReference) bool { return apiequality.Semantic.DeepEqual(r, o) })
	})
}

// missing are the claims of an ordinal that do not exist. ok is false while one is
// on its way out, deleted or left by a former pod of that ordinal for the garbage
// collector: a pod that started on it would lose its data.
func (d *decision) missing(ordinal int) (out []*corev1.PersistentVolumeClaim, ok bool) {
	_, scaled := policy(d.set)
	for _, want := range newClaims(d.set, ordinal) {
		have := d.s.Claims[want.Name]
		switch {
		case have == nil:
			out = append(out, want)
		case have.DeletionTimestamp != nil:
			return nil, false
		case scaled && slices.ContainsFunc(have.OwnerReferences, func(r metav1.OwnerReference) bool {
			return r.Kind == podKind.Kind && r.APIVersion == podKind.Version && r.Name == podName(d.set, ordinal)
		}):
			return nil, false
		}
	}
	return out, true
}
