package printers

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
)

// DefaultClassAnnotation marks the class of claims that name none.
const DefaultClassAnnotation = "storageclass.kubernetes.io/is-default-class"

// IsDefaultClass says whether a class is marked as the default one.
func IsDefaultClass(c *storagev1.StorageClass) bool {
	return c.Annotations[DefaultClassAnnotation] == "true" ||
		c.Annotations["storageclass.beta.kubernetes.io/is-default-class"] == "true"
}

// PersistentVolumes prints PersistentVolumes.
var PersistentVolumes = Table{
	Columns: []metav1.TableColumnDefinition{
		nameColumn(), column("Capacity", "Size of the volume."), column("Access Modes", "How the volume may be mounted."),
		column("Reclaim Policy", "What happens to the volume when its claim has gone."), column("Status", "Phase of the volume."),
		column("Claim", "Claim that it is bound to."), column("StorageClass", "Class that it belongs to."),
		column("VolumeAttributesClass", "Class of attributes that it has."), column("Reason", "Why it is in its phase."),
		ageColumn(), wide("VolumeMode", "File system or block device."),
	},
	Row: func(obj runtime.Object, now time.Time) []any {
		pv := obj.(*corev1.PersistentVolume)
		phase, claim := string(pv.Status.Phase), ""
		if pv.DeletionTimestamp != nil {
			phase = "Terminating"
		}
		if ref := pv.Spec.ClaimRef; ref != nil {
			claim = ref.Namespace + "/" + ref.Name
		}
		size := pv.Spec.Capacity[corev1.ResourceStorage]
		mode := unsetCell
		if pv.Spec.VolumeMode != nil {
			mode = string(*pv.Spec.VolumeMode)
		}
		return []any{
			pv.Name, size.String(), accessModes(pv.Spec.AccessModes), string(pv.Spec.PersistentVolumeReclaimPolicy), phase, claim,
			pv.Spec.StorageClassName, ptr.Deref(pv.Spec.VolumeAttributesClassName, unsetCell), pv.Status.Reason, age(pv.CreationTimestamp, now), mode,
		}
	},
}

// StorageClasses prints StorageClasses.
var StorageClasses = Table{
	Columns: []metav1.TableColumnDefinition{
		nameColumn(), column("Provisioner", "Who makes the volumes."), column("ReclaimPolicy", "What happens to a volume when its claim has gone."),
		column("VolumeBindingMode", "When claims are bound."), {Name: "AllowVolumeExpansion", Type: "boolean", Description: "Whether claims may ask for more later."},
		ageColumn(),
	},
	Row: func(obj runtime.Object, now time.Time) []any {
		c := obj.(*storagev1.StorageClass)
		name := c.Name
		if IsDefaultClass(c) {
			name += " (default)"
		}
		return []any{
			name, c.Provisioner, string(ptr.Deref(c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)),
			string(ptr.Deref(c.VolumeBindingMode, storagev1.VolumeBindingImmediate)), ptr.Deref(c.AllowVolumeExpansion, false), age(c.CreationTimestamp, now),
		}
	},
}
