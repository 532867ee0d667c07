package replicaset

import (
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
)

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func set(n int32) *appsv1.ReplicaSet {
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Name: "web", UID: "rs", Generation: 1},
		Spec: appsv1.ReplicaSetSpec{Replicas: &n, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
		}},
	}
}

type opt func(*corev1.Pod)

func on(node string) opt           { return func(p *corev1.Pod) { p.Spec.NodeName = node } }
func phase(ph corev1.PodPhase) opt { return func(p *corev1.Pod) { p.Status.Phase = ph } }
func cost(n string) opt {
	return func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.PodDeletionCost: n} }
}
func made(ago time.Duration) opt {
	return func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(now.Add(-ago)) }
}
func deleting(p *corev1.Pod) { t := metav1.NewTime(now); p.DeletionTimestamp = &t }
func ready(ago time.Duration) opt {
	return func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodRunning
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-ago))}}
	}
}

func pod(name string, opts ...opt) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "web"}}, Status: corev1.PodStatus{Phase: corev1.PodPending}}
	for _, o := range opts {
		o(p)
	}
	return p
}

// TestVictims: of two pods the one named first is deleted.
func TestVictims(t *testing.T) {
	for _, c := range []struct {
		rule         string
		victim, kept *corev1.Pod
	}{
		{"not on a node", pod("b"), pod("a", on("n"))},
		{"not running", pod("b", on("n")), pod("a", on("n"), phase(corev1.PodRunning))},
		{"not Ready", pod("b", on("n"), phase(corev1.PodRunning)), pod("a", on("n"), ready(time.Hour))},
		{"lower cost", pod("b", on("n"), ready(time.Hour), cost("-1")), pod("a", on("n"), ready(time.Minute))},
		{"Ready for a shorter time", pod("b", on("n"), ready(time.Minute)), pod("a", on("n"), ready(time.Hour))},
		{"younger", pod("b", on("n"), ready(time.Hour), made(time.Hour)), pod("a", on("n"), ready(time.Hour), made(2*time.Hour))},
	} {
		d := Decide(set(1), []*corev1.Pod{c.kept, c.victim}, now)
		if len(d.Delete) != 1 || d.Delete[0] != c.victim {
			t.Errorf("%s: deletes %v", c.rule, d.Delete)
		}
	}
	crowd := []*corev1.Pod{pod("a", on("x"), ready(time.Hour)), pod("b", on("y"), ready(time.Hour)), pod("c", on("y"), ready(time.Hour))}
	if d := Decide(set(2), crowd, now); d.Delete[0].Spec.NodeName != "y" {
		t.Errorf("the node with more siblings should lose one, not %s", d.Delete[0].Spec.NodeName)
	}
}

func TestStatus(t *testing.T) {
	rs := set(3)
	rs.Spec.MinReadySeconds = 30
	d := Decide(rs, []*corev1.Pod{
		pod("a", on("n"), ready(time.Hour)), pod("b", on("n"), ready(20*time.Second)), pod("c", on("n")),
		pod("d", on("n"), deleting), pod("e", phase(corev1.PodFailed)),
	}, now)
	s := d.Status
	if s.Replicas != 3 || s.ReadyReplicas != 2 || s.AvailableReplicas != 1 || s.FullyLabeledReplicas != 3 || *s.TerminatingReplicas != 1 {
		t.Errorf("status %+v", s)
	}
	if d.Recheck != 10*time.Second {
		t.Errorf("recheck in %s, want when b has been Ready for 30s", d.Recheck)
	}
	if d.Create != 0 || len(d.Delete) != 0 {
		t.Errorf("creates %d, deletes %d; ended and ending pods don't count", d.Create, len(d.Delete))
	}
}

// TestConverges: whatever the pods are like, doing what Decide says once leaves
// exactly the wanted number of active ones.
func TestConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var pods []*corev1.Pod
		active := 0
		for i := range rapid.IntRange(0, 20).Draw(t, "pods") {
			p := pod(fmt.Sprint("p", i), on("n"))
			switch rapid.IntRange(0, 3).Draw(t, "kind") {
			case 0:
				deleting(p)
			case 1:
				p.Status.Phase = corev1.PodFailed
			default:
				active++
			}
			pods = append(pods, p)
		}
		want := rapid.Int32Range(0, 20).Draw(t, "replicas")
		d := Decide(set(want), pods, now)
		for _, p := range d.Delete {
			if p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodFailed {
				t.Fatalf("deletes %s, which is gone already", p.Name)
			}
		}
		if got := active + d.Create - len(d.Delete); got != int(want) {
			t.Fatalf("%d active pods afterwards, want %d", got, want)
		}
	})
}
