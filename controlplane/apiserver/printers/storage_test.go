package printers

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

func TestStorage(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{row[corev1.PersistentVolume](t, PersistentVolumes, "spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOncePod], persistentVolumeReclaimPolicy: Retain, volumeMode: Block}\nstatus: {phase: Available}"), "x|1Gi|RWOP|Retain|Available|||<unset>||4m|Block"},
		{row[corev1.PersistentVolume](t, PersistentVolumes, "spec: {claimRef: {namespace: a, name: b}, storageClassName: fast}\nstatus: {phase: Failed, reason: why}"), "x|0|||Failed|a/b|fast|<unset>|why|4m|<unset>"},
		{row[storagev1.StorageClass](t, StorageClasses, "provisioner: p\nallowVolumeExpansion: true"), "x|p|Delete|Immediate|true|4m"},
	} {
		if c.got != c.want {
			t.Errorf("got  %s\nwant %s", c.got, c.want)
		}
	}
	c := &storagev1.StorageClass{}
	c.Name, c.Annotations = "std", map[string]string{DefaultClassAnnotation: "true"}
	if got := StorageClasses.Row(c, c.CreationTimestamp.Time)[0]; got != "std (default)" {
		t.Errorf("a default class is printed as %q", got)
	}
}
