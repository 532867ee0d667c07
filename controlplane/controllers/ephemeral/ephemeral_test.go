package ephemeral

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestMissing(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "u1"}}
	for _, name := range []string{"a", "b"} {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{
			VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"of": name}}},
		}}})
	}
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "c", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	got := missing(pod, map[string]bool{"web-a": true})
	if len(got) != 1 || got[0].Name != "web-b" || got[0].Namespace != "ns" || got[0].Labels["of"] != "b" || !metav1.IsControlledBy(got[0], pod) {
		t.Errorf("%v", got)
	}
	if got := missing(pod, map[string]bool{"web-a": true, "web-b": true}); len(got) != 0 {
		t.Errorf("all are there, and %v", got)
	}
	pod.DeletionTimestamp = &metav1.Time{}
	if got := missing(pod, nil); len(got) != 0 {
		t.Errorf("the pod is being deleted, and %v", got)
	}
}
