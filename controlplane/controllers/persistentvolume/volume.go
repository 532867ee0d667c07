package persistentvolume

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	storage "k8s.io/component-helpers/storage/volume"
)

// DecideVolume says what is to be done about a volume. claim is the one that its
// claimRef names, nil if it is not there; a claim of the same name with another UID
// is another claim.
func DecideVolume(v *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim, s Snapshot) Step {
	ref := v.Spec.ClaimRef
	if v.DeletionTimestamp != nil && slices.Contains(v.Finalizers, Provisioner) && s.node(v.Labels[LabelNode]) == nil {
		// The directory has gone with its machine.
		v = v.DeepCopy()
		v.Finalizers = slices.DeleteFunc(v.Finalizers, func(f string) bool { return f == Provisioner })
		return Step{Volume: v}
	}
	switch {
	case ref == nil, ref.UID == "":
		return inPhase(v, corev1.VolumeAvailable)
	case claim == nil, claim.UID != ref.UID:
		return released(v)
	case claim.Spec.VolumeName == "":
		return Step{} // the claim's turn
	case claim.Spec.VolumeName == v.Name:
		return inPhase(v, corev1.VolumeBound)
	}
	// The claim is bound to another volume.
	if v.Annotations[storage.AnnDynamicallyProvisioned] != "" && v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
		return released(v)
	}
	return unbind(v)
}

func inPhase(v *corev1.PersistentVolume, phase corev1.PersistentVolumePhase) Step {
	v = v.DeepCopy()
	v.Status.Phase, v.Status.Reason, v.Status.Message = phase, "", ""
	return Step{Volume: v}
}

// unbind gives a volume free: all of the claimRef goes if we wrote it, and what we
// have added to it if its user did.
func unbind(v *corev1.PersistentVolume) Step {
	v = v.DeepCopy()
	if metav1.HasAnnotation(v.ObjectMeta, storage.AnnBoundByController) {
		delete(v.Annotations, storage.AnnBoundByController)
		v.Spec.ClaimRef = nil
	} else {
		v.Spec.ClaimRef.UID, v.Spec.ClaimRef.ResourceVersion = "", ""
	}
	return inPhase(v, corev1.VolumeAvailable)
}

// released does what the reclaim policy says with a volume whose claim has gone.
func released(v *corev1.PersistentVolume) Step {
	if v.Status.Phase != corev1.VolumeReleased && v.Status.Phase != corev1.VolumeFailed {
		return inPhase(v, corev1.VolumeReleased)
	}
	switch v.Spec.PersistentVolumeReclaimPolicy {
	case corev1.PersistentVolumeReclaimRecycle:
		return failed(v, "VolumeFailedRecycle", "No recycler plugin found for the volume!")
	case corev1.PersistentVolumeReclaimDelete:
		switch by := v.Annotations[storage.AnnDynamicallyProvisioned]; {
		case by == Provisioner && v.DeletionTimestamp == nil:
			return Step{Delete: v}
		case by == "":
			return failed(v, "VolumeFailedDelete", "error getting deleter volume plugin for volume \""+v.Name+"\": no deletable volume plugin matched")
		}
	}
	return Step{}
}

func failed(v *corev1.PersistentVolume, reason, message string) Step {
	if v.Status.Phase == corev1.VolumeFailed && v.Status.Message == message {
		return Step{}
	}
	v = v.DeepCopy()
	v.Status.Phase, v.Status.Reason, v.Status.Message = corev1.VolumeFailed, reason, message
	return Step{Volume: v, Event: warning(reason, "%s", message)}
}
