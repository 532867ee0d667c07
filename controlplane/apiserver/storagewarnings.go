package apiserver

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"
)

func claimWarnings(obj runtime.Object) []string {
	spec, p := &obj.(*corev1.PersistentVolumeClaim).Spec, field.NewPath("spec")
	out := blockWarning(spec.VolumeMode, p)
	out = append(out, warn(p.Child("dataSource"), spec.DataSource != nil)...)
	out = append(out, warn(p.Child("dataSourceRef"), spec.DataSourceRef != nil)...)
	return append(out, warn(p.Child("volumeAttributesClassName"), ptr.Deref(spec.VolumeAttributesClassName, "") != "")...)
}

func volumeWarnings(obj runtime.Object) []string {
	spec, p := &obj.(*corev1.PersistentVolume).Spec, field.NewPath("spec")
	out := blockWarning(spec.VolumeMode, p)
	if spec.HostPath == nil && spec.Local == nil {
		out = append(out, fmt.Sprintf("%s: a volume of this type is %s", p, notActedOn))
	}
	out = append(out, warn(p.Child("mountOptions"), len(spec.MountOptions) > 0)...)
	return append(out, warn(p.Child("local", "fsType"), spec.Local != nil && spec.Local.FSType != nil)...)
}

func blockWarning(mode *corev1.PersistentVolumeMode, p *field.Path) []string {
	return warn(p.Child("volumeMode"), ptr.Deref(mode, "") == corev1.PersistentVolumeBlock)
}

// classWarnings are about our own provisioner alone: what another does is its own.
func classWarnings(obj runtime.Object) []string {
	c := obj.(*storagev1.StorageClass)
	if c.Provisioner != localPathProvisioner {
		return nil
	}
	out := warn(field.NewPath("parameters"), len(c.Parameters) > 0)
	out = append(out, warn(field.NewPath("mountOptions"), len(c.MountOptions) > 0)...)
	return append(out, warn(field.NewPath("volumeBindingMode"), ptr.Deref(c.VolumeBindingMode, "") == storagev1.VolumeBindingImmediate)...)
}
