package nodelifecycle

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func node(ready corev1.ConditionStatus) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n"},
		Spec:       corev1.NodeSpec{Taints: []corev1.Taint{{Key: "dedicated", Effect: corev1.TaintEffectNoSchedule}}},
		Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}},
	}
}

func has(taints []corev1.Taint, key string) (n int) {
	for _, t := range taints {
		if t.Key == key {
			n++
		}
	}
	return n
}

func TestDecide(t *testing.T) {
	fresh := Decide(node(corev1.ConditionTrue), now.Add(-39*time.Second), now)
	if fresh.Lost || fresh.Recheck != time.Second || len(fresh.Taints) != 1 {
		t.Errorf("a node heard of 39s ago: %+v", fresh)
	}
	lost := Decide(node(corev1.ConditionTrue), now.Add(-40*time.Second), now)
	if !lost.Lost || has(lost.Taints, corev1.TaintNodeUnreachable) != 2 || has(lost.Taints, "dedicated") != 1 {
		t.Errorf("a node not heard of for 40s: %+v", lost)
	}
	for _, c := range lost.Conditions {
		if c.Status != corev1.ConditionUnknown {
			t.Errorf("%s is %s, want Unknown", c.Type, c.Status)
		}
	}
	// Looking again moves no time: evictions count from when the taint was added.
	n := node(corev1.ConditionTrue)
	n.Spec.Taints, n.Status.Conditions = lost.Taints, lost.Conditions
	again := Decide(n, now.Add(-40*time.Second), now.Add(time.Minute))
	for i, taint := range again.Taints {
		if taint != lost.Taints[i] && !taint.TimeAdded.Equal(lost.Taints[i].TimeAdded) {
			t.Errorf("taint %v changed", taint)
		}
	}
	notReady := Decide(node(corev1.ConditionFalse), now, now)
	if has(notReady.Taints, corev1.TaintNodeNotReady) != 2 || has(notReady.Taints, corev1.TaintNodeUnreachable) != 0 {
		t.Errorf("a node that says it is not ready: %v", notReady.Taints)
	}
	n.Status.Conditions = node(corev1.ConditionTrue).Status.Conditions
	if back := Decide(n, now, now); len(back.Taints) != 1 {
		t.Errorf("a node that is back: %v", back.Taints)
	}
	cordoned := node(corev1.ConditionTrue)
	cordoned.Spec.Unschedulable = true
	if d := Decide(cordoned, now, now); has(d.Taints, corev1.TaintNodeUnschedulable) != 1 {
		t.Errorf("a cordoned node: %v", d.Taints)
	}
	short := node(corev1.ConditionTrue)
	for _, c := range []corev1.NodeConditionType{corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure} {
		short.Status.Conditions = append(short.Status.Conditions, corev1.NodeCondition{Type: c, Status: corev1.ConditionTrue})
	}
	short.Spec.Taints = Decide(short, now, now).Taints
	for _, key := range []string{corev1.TaintNodeMemoryPressure, corev1.TaintNodeDiskPressure, corev1.TaintNodePIDPressure} {
		if has(short.Spec.Taints, key) != 1 {
			t.Errorf("a node under pressure has no taint %s: %v", key, short.Spec.Taints)
		}
	}
	short.Status.Conditions = short.Status.Conditions[:1]
	if d := Decide(short, now, now); len(d.Taints) != 1 {
		t.Errorf("a node whose pressure is over: %v", d.Taints)
	}
}

func TestEvictAt(t *testing.T) {
	added := metav1.NewTime(now.Add(-time.Minute))
	taints := []corev1.Taint{{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute, TimeAdded: &added}}
	seconds := func(n int64) *int64 { return &n }
	for _, c := range []struct {
		name        string
		tolerations []corev1.Toleration
		want        time.Time
		ok          bool
	}{
		{"no toleration: at once", nil, added.Time, true},
		{"for a while", []corev1.Toleration{{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, TolerationSeconds: seconds(300)}}, added.Add(5 * time.Minute), true},
		{"for ever", []corev1.Toleration{{Operator: corev1.TolerationOpExists}}, time.Time{}, false},
		{"the shortest counts", []corev1.Toleration{{Operator: corev1.TolerationOpExists, TolerationSeconds: seconds(300)}, {Operator: corev1.TolerationOpExists, TolerationSeconds: seconds(10)}}, added.Add(10 * time.Second), true},
		{"another effect", []corev1.Toleration{{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}}, added.Time, true},
	} {
		at, ok := EvictAt(&corev1.Pod{Spec: corev1.PodSpec{Tolerations: c.tolerations}}, taints, now)
		if ok != c.ok || !at.Equal(c.want) {
			t.Errorf("%s: %v, %v; want %v, %v", c.name, at, ok, c.want, c.ok)
		}
	}
	if _, ok := EvictAt(&corev1.Pod{}, []corev1.Taint{{Key: "x", Effect: corev1.TaintEffectNoSchedule}}, now); ok {
		t.Error("NoSchedule evicts nobody")
	}
}
