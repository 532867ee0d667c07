package protection

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestDecide(t *testing.T) {
	object := func(deleted bool, finalizers ...string) metav1.Object {
		o := &metav1.ObjectMeta{Finalizers: finalizers}
		if deleted {
			now := metav1.NewTime(time.Unix(1, 0))
			o.DeletionTimestamp = &now
		}
		return o
	}
	for _, c := range []struct {
		name  string
		obj   metav1.Object
		inUse bool
		want  change
	}{
		{"unprotected", object(false), false, add},
		{"protected", object(false, "other", ClaimFinalizer), true, nothing},
		{"unused and not deleted", object(false, ClaimFinalizer), false, nothing},
		{"deleted in use", object(true, ClaimFinalizer), true, nothing},
		{"deleted and unused", object(true, ClaimFinalizer), false, remove},
		{"deleted and held by another finalizer", object(true, "other"), false, nothing},
	} {
		if got := decide(c.obj, ClaimFinalizer, func() bool { return c.inUse }); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestClaimInUse(t *testing.T) {
	pod := func(node string, phase corev1.PodPhase, v corev1.VolumeSource) *corev1.Pod {
		p := &corev1.Pod{Spec: corev1.PodSpec{NodeName: node, Volumes: []corev1.Volume{{Name: "v", VolumeSource: v}}}}
		p.Name, p.Status.Phase = "p", phase
		return p
	}
	claim := corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}
	for _, c := range []struct {
		name  string
		pod   *corev1.Pod
		claim string
		want  bool
	}{
		{"running", pod("n", corev1.PodRunning, claim), "c", true},
		{"bound a moment ago", pod("n", corev1.PodPending, claim), "c", true},
		{"of unknown state", pod("n", corev1.PodUnknown, claim), "c", true},
		{"another claim", pod("n", corev1.PodRunning, claim), "d", false},
		{"without a node", pod("", corev1.PodPending, claim), "c", false},
		{"succeeded", pod("n", corev1.PodSucceeded, claim), "c", false},
		{"failed", pod("n", corev1.PodFailed, claim), "c", false},
		{"ephemeral", pod("n", corev1.PodRunning, corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}), "p-v", true},
	} {
		if got := claimInUse(c.claim, []*corev1.Pod{c.pod}); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	if claimInUse("c", nil) {
		t.Error("in use without pods")
	}
	if !volumeInUse(&corev1.PersistentVolume{Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound}}) ||
		volumeInUse(&corev1.PersistentVolume{Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeReleased}}) {
		t.Error("a volume is in use while it is bound")
	}
}
