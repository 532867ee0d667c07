package agent

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/runtime/volume"
)

func TestLeaves(t *testing.T) {
	deleted := &metav1.Time{Time: time.Unix(1, 0)}
	for _, c := range []struct {
		name       string
		deleted    *metav1.Time
		finalizers []string
		want       bool
	}{
		{"there", nil, []string{volume.Provisioner}, false},
		{"deleted while a claim has it", deleted, []string{volume.Provisioner, volumeProtection}, false},
		{"deleted", deleted, []string{volume.Provisioner}, true},
		{"deleted, and held by another as well", deleted, []string{"other", volume.Provisioner}, true},
		{"let go already", deleted, []string{"other"}, false},
	} {
		pv := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: c.deleted, Finalizers: c.finalizers}}
		if got := leaves(pv); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
