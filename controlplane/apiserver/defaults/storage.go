package defaults

import (
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

// PersistentVolume is a file system that is kept when its claim has gone, and
// Pending until it has been looked at.
func PersistentVolume(pv *corev1.PersistentVolume) {
	unset(&pv.Status.Phase, corev1.VolumePending)
	unset(&pv.Spec.PersistentVolumeReclaimPolicy, corev1.PersistentVolumeReclaimRetain)
	missing(&pv.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
	if s := pv.Spec.HostPath; s != nil {
		missing(&s.Type, corev1.HostPathUnset)
	}
	resourceList(pv.Spec.Capacity)
}

// StorageClass deletes volumes with their claims, and binds claims at once.
func StorageClass(c *storagev1.StorageClass) {
	missing(&c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)
	missing(&c.VolumeBindingMode, storagev1.VolumeBindingImmediate)
}
