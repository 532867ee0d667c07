package apiserver

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/utils/ptr"
)

// TestStorageWarnings: what is accepted and not acted on is named, the rest is not.
func TestStorageWarnings(t *testing.T) {
	volume := func(spec corev1.PersistentVolumeSpec) []string {
		return volumeWarnings(&corev1.PersistentVolume{Spec: spec})
	}
	host := corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{}}
	for name, c := range map[string]struct{ got, want []string }{
		"claim": {claimWarnings(&corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{VolumeMode: ptr.To(corev1.PersistentVolumeFilesystem)}}), nil},
		"claim of a block device and a copy": {
			claimWarnings(&corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{VolumeMode: ptr.To(corev1.PersistentVolumeBlock), DataSource: &corev1.TypedLocalObjectReference{}}}),
			[]string{"spec.volumeMode: not acted on yet", "spec.dataSource: not acted on yet"},
		},
		"volume":                    {volume(corev1.PersistentVolumeSpec{PersistentVolumeSource: host}), nil},
		"volume of a network":       {volume(corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{}}}), []string{"spec: a volume of this type is not acted on yet"}},
		"volume with mount options": {volume(corev1.PersistentVolumeSpec{PersistentVolumeSource: host, MountOptions: []string{"ro"}}), []string{"spec.mountOptions: not acted on yet"}},
		"another's class":           {classWarnings(&storagev1.StorageClass{Provisioner: "x", Parameters: map[string]string{"a": "b"}}), nil},
		"our class": {
			classWarnings(&storagev1.StorageClass{Provisioner: localPathProvisioner, Parameters: map[string]string{"a": "b"}, VolumeBindingMode: ptr.To(storagev1.VolumeBindingImmediate)}),
			[]string{"parameters: not acted on yet", "volumeBindingMode: not acted on yet"},
		},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s: %q, want %q", name, c.got, c.want)
		}
	}
}
