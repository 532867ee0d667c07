package protection

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/storage/ephemeral"
)

// Finalizers of protected objects.
const (
	ClaimFinalizer  = "kubernetes.io/pvc-protection"
	VolumeFinalizer = "kubernetes.io/pv-protection"
)

// change is what is to be done about an object's finalizer.
type change int

const (
	nothing change = iota
	add
	remove
)

// decide protects what is not being deleted, and lets go of what is, once nobody
// uses it.
func decide(obj metav1.Object, finalizer string, inUse func() bool) change {
	has := slices.Contains(obj.GetFinalizers(), finalizer)
	switch {
	case obj.GetDeletionTimestamp() == nil && !has:
		return add
	case obj.GetDeletionTimestamp() != nil && has && !inUse():
		return remove
	}
	return nothing
}

// claimInUse says whether a pod has, or may have, a claim's volume mounted. A pod
// without a node does not count: no node starts a pod whose claim is being deleted.
func claimInUse(name string, pods []*corev1.Pod) bool {
	return slices.ContainsFunc(pods, func(p *corev1.Pod) bool {
		return holds(p) && slices.Contains(claimsOf(p), name)
	})
}

func holds(p *corev1.Pod) bool {
	return p.Spec.NodeName != "" && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

func claimsOf(p *corev1.Pod) []string {
	var out []string
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		switch {
		case v.PersistentVolumeClaim != nil:
			out = append(out, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			out = append(out, ephemeral.VolumeClaimName(p, v))
		}
	}
	return out
}

func volumeInUse(v *corev1.PersistentVolume) bool { return v.Status.Phase == corev1.VolumeBound }
