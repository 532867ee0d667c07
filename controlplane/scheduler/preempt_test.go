package scheduler

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func since(minute int) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.StartTime = &metav1.Time{Time: time.Date(2026, 1, 1, 0, minute, 0, 0, time.UTC)}
	}
}

func cpu(amount string) func(*corev1.Pod) { return requests(amount, "0") }

func budget(value string, allowed int32) *policyv1.PodDisruptionBudget {
	return &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: value, Namespace: "default"},
		Spec:       policyv1.PodDisruptionBudgetSpec{Selector: selecting(value)},
		Status:     policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: allowed},
	}
}

// TestPreempt: nodes a and b of 4 CPUs each.
func TestPreempt(t *testing.T) {
	never := func(p *corev1.Pod) { p.Spec.PreemptionPolicy = ptr.To(corev1.PreemptNever) }
	big := []func(*corev1.Pod){priority(100), cpu("4")}
	for _, c := range []struct {
		name    string
		running map[string][]*corev1.Pod
		budgets []*policyv1.PodDisruptionBudget
		pod     []func(*corev1.Pod)
		want    string // "node: victims", or the reason after "!"
	}{
		{
			name:    "none is less important",
			running: map[string][]*corev1.Pod{"a": {pod("x", cpu("1"), priority(100))}, "b": {pod("y", cpu("1"), priority(200))}},
			pod:     big, want: "!0/2 nodes are available: 2 No preemption victims found for incoming pod.",
		},
		{
			name:    "not even alone",
			running: map[string][]*corev1.Pod{"a": {pod("x", cpu("1"))}, "b": {pod("y", cpu("1"))}},
			pod:     []func(*corev1.Pod){priority(100), cpu("5")}, want: "!0/2 nodes are available: 2 Preemption is not helpful for scheduling.",
		},
		{
			name:    "must not",
			running: map[string][]*corev1.Pod{"a": {pod("x", cpu("1"))}, "b": {pod("y", cpu("1"))}},
			pod:     append(big, never), want: "!not eligible due to preemptionPolicy=Never.",
		},
		{
			name: "no more than have to go, the least important",
			running: map[string][]*corev1.Pod{
				"a": {pod("x", cpu("1"), priority(1)), pod("y", cpu("1"), priority(2)), pod("z", cpu("2"), priority(3))},
				"b": {pod("w", cpu("4"), priority(100))},
			},
			pod: []func(*corev1.Pod){priority(100), cpu("1")}, want: "a: x",
		},
		{
			name:    "fewer broken budgets before lower priorities",
			running: map[string][]*corev1.Pod{"a": {pod("x", cpu("4"), priority(1), app("db"))}, "b": {pod("y", cpu("4"), priority(50))}},
			budgets: []*policyv1.PodDisruptionBudget{budget("db", 0)}, pod: big, want: "b: y",
		},
		{
			name:    "a budget with a place left is not broken",
			running: map[string][]*corev1.Pod{"a": {pod("x", cpu("4"), priority(1), app("db"))}, "b": {pod("y", cpu("4"), priority(50))}},
			budgets: []*policyv1.PodDisruptionBudget{budget("db", 1)}, pod: big, want: "a: x",
		},
		{
			name: "on a node, those over their budget stay first",
			running: map[string][]*corev1.Pod{
				"a": {pod("x", cpu("2"), priority(1), app("db")), pod("y", cpu("2"), priority(2))},
				"b": {pod("w", cpu("4"), priority(100))},
			},
			budgets: []*policyv1.PodDisruptionBudget{budget("db", 0)}, pod: []func(*corev1.Pod){priority(100), cpu("2")}, want: "a: y",
		},
		{
			name:    "broken budgets if there is no other way",
			running: map[string][]*corev1.Pod{"a": {pod("x", cpu("4"), priority(1), app("db"))}, "b": {pod("y", cpu("4"), priority(100))}},
			budgets: []*policyv1.PodDisruptionBudget{budget("db", 0)}, pod: big, want: "a: x",
		},
		{
			name:    "the lower highest priority",
			running: map[string][]*corev1.Pod{"a": {pod("x", cpu("4"), priority(9))}, "b": {pod("y", cpu("2"), priority(8)), pod("z", cpu("2"), priority(8))}},
			pod:     big, want: "b: y z",
		},
		{
			name:    "the lower sum",
			running: map[string][]*corev1.Pod{"a": {pod("w", cpu("2"), priority(9)), pod("x", cpu("2"), priority(5))}, "b": {pod("y", cpu("2"), priority(9)), pod("z", cpu("2"), priority(4))}},
			pod:     big, want: "b: y z",
		},
		{
			name:    "those that run for the shortest time",
			running: map[string][]*corev1.Pod{"a": {pod("x", cpu("4"), since(1))}, "b": {pod("y", cpu("4"), since(2))}},
			pod:     big, want: "b: y",
		},
		{
			name:    "those whose anti-affinity is in the way",
			running: map[string][]*corev1.Pod{"a": {pod("x", apart(host, "web")), pod("z")}, "b": {pod("y", priority(100), apart(host, "web"))}},
			pod:     []func(*corev1.Pod){priority(100), app("web")}, want: "a: x",
		},
		{
			name: "no static pod, which would stay",
			running: map[string][]*corev1.Pod{
				"a": {pod("x", cpu("4"), func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "1"} })},
				"b": {pod("y", cpu("4"), priority(50))},
			},
			pod: big, want: "b: y",
		},
		{
			name:    "a port",
			running: map[string][]*corev1.Pod{"a": {pod("x", hostPort(80)), pod("z")}, "b": {pod("y", hostPort(80), priority(100))}},
			pod:     []func(*corev1.Pod){priority(100), hostPort(80)}, want: "a: x",
		},
		{
			name: "victims are leaving already",
			running: map[string][]*corev1.Pod{
				"a": {pod("x", cpu("4"), func(p *corev1.Pod) {
					p.DeletionTimestamp = &metav1.Time{}
					p.Status.Conditions = []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonPreemptionByScheduler}}
				})},
				"b": {pod("y", cpu("4"))},
			},
			pod:  append(big, func(p *corev1.Pod) { p.Status.NominatedNodeName = "a" }),
			want: "!not eligible due to a terminating pod on the nominated node.",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := cluster(node("a", "4", "8Gi"), node("b", "4", "8Gi"))
			for n, pods := range c.running {
				for _, p := range pods {
					cl.Place(NewPod(p), n)
				}
			}
			p := NewPod(pod("p", c.pod...))
			cl.Nominate(p, p.Status.NominatedNodeName)
			_, err := Schedule(cl, p, 0)
			var fit *FitError
			if !errors.As(err, &fit) {
				t.Fatalf("it fits without preemption: %v", err)
			}
			plan, reason := Preempt(cl, p, fit, c.budgets, 0)
			got := "!" + reason
			if reason == "" {
				got = plan.Node + ":"
				for _, v := range plan.Victims {
					got += " " + v.Name
				}
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if _, again := Schedule(cl, p, 0); again == nil || again.Error() != err.Error() {
				t.Errorf("the cluster has changed: %v, before %v", again, err)
			}
		})
	}
}

// TestNominated: room that is being made for a pod is not given to others that are
// no more important.
func TestNominated(t *testing.T) {
	c := cluster(node("a", "4", "8Gi"), node("b", "1", "8Gi"))
	c.Nominate(NewPod(pod("first", cpu("3"), priority(10))), "a")
	for _, w := range []struct {
		priority int32
		cpu      string
		want     string
	}{{5, "2", "!"}, {10, "2", "!"}, {11, "2", "a"}, {5, "1", "a"}, {5, "500m", "a"}} {
		res, err := Schedule(c, NewPod(pod("p", priority(w.priority), cpu(w.cpu))), 0)
		if failed := err != nil; failed != strings.HasPrefix(w.want, "!") || !failed && res.Node != w.want {
			t.Errorf("%+v: %q, %v", w, res.Node, err)
		}
	}
	res, err := Schedule(c, NewPod(pod("first", cpu("500m"), priority(10))), 0)
	if err != nil || res.Node != "a" {
		t.Errorf("the nominated pod itself: %q, %v", res.Node, err)
	}
	c.Place(NewPod(pod("first", cpu("500m"))), "b")
	if len(c.nominated)+len(c.nominee) != 0 {
		t.Errorf("it is placed and still nominated: %v", c.nominated)
	}
	plan, _ := Preempt(c, NewPod(pod("none")), &FitError{Nodes: 2, Pod: "no claim"}, nil, 0)
	if plan != nil {
		t.Errorf("preempted for a pod without a claim: %v", fmt.Sprint(plan))
	}
}

// TestNominationEnds: room that was kept for a pod which goes away is offered to those
// that wait for it.
func TestNominationEnds(t *testing.T) {
	s := &Scheduler{cluster: cluster(node("a", "4", "8Gi")), queue: newQueue(), storage: &storage{}, kick: make(chan struct{}, 1)}
	first := pod("first", cpu("3"), priority(10), func(p *corev1.Pod) {
		p.Spec.SchedulerName, p.Status.NominatedNodeName = corev1.DefaultSchedulerName, "a"
	})
	s.onPod(nil, first)
	s.queue.pop() // as if it were waiting for its victims
	s.onPod(nil, pod("second", cpu("2")))
	s.drain(t.Context(), func(func()) {})
	if len(s.queue.resting) != 1 {
		t.Fatal("the second pod does not wait for room")
	}
	s.onPod(first, nil)
	if len(s.queue.resting) != 0 {
		t.Error("the second pod still rests when the room is free")
	}
}

// TestBeingBound: a pod that changes while it is being bound is not placed again.
func TestBeingBound(t *testing.T) {
	s := &Scheduler{cluster: cluster(node("a", "4", "8Gi")), queue: newQueue(), storage: &storage{}, kick: make(chan struct{}, 1)}
	p := pod("p")
	s.onPod(nil, p)
	s.drain(t.Context(), func(func()) {})
	s.onPod(p, pod("p", app("web")))
	if s.queue.pop() != nil {
		t.Error("it is to be placed again")
	}
}
