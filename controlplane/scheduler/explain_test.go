package scheduler

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func bound(to string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.NodeName = to }
}

// TestExplain fetches a cluster and explains pods of it.
func TestExplain(t *testing.T) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	first := pod("first", app("web"), apart(host, "web"), requests("1", "1Gi"), bound("b"))
	waiting := pod("waiting", app("web"), requests("3", "1Gi"), priority(10))
	ended := pod("ended", requests("3", "1Gi"), bound("a"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
	gated := pod("gated", func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "wait"}} })
	client := fake.NewClientset(ns, node("a", "2", "4Gi"), node("b", "4", "4Gi"), node("c", "4", "4Gi", taint("gpu", "", corev1.TaintEffectNoSchedule)), first, waiting, ended, gated)
	snapshot := func() *Snapshot {
		s, err := Fetch(t.Context(), client)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}

	e := snapshot().Explain(first)
	if e.RunsOn != "b" || e.Chosen != "b" || len(e.Nodes) != 3 || !e.Nodes[0].Fits || !e.Nodes[1].Fits || e.Nodes[2].Fits {
		t.Errorf("a bound pod: %+v", e)
	}
	var sum int64
	for _, s := range e.Nodes[0].Scores {
		sum += s.Score
	}
	if sum != e.Nodes[0].Score || sum == 0 || e.Nodes[0].Score < e.Nodes[1].Score {
		t.Errorf("scores %+v", e.Nodes)
	}

	e = snapshot().Explain(waiting)
	const want = "0/3 nodes are available: 1 Insufficient cpu (needs 3, 2 free), 1 node(s) didn't satisfy existing pods anti-affinity rules, 1 node(s) had untolerated taint {gpu: }."
	if e.Chosen != "" || e.Message != want || e.Preemption == nil || e.Preemption.Node != "b" || strings.Join(e.Preemption.Victims, " ") != "default/first" {
		t.Errorf("a pod that waits: %+v", e)
	}
	if n := e.Nodes[1]; n.Plugin != "InterPodAffinity" || len(n.Reasons) != 1 {
		t.Errorf("node b: %+v", n)
	}
	if e = snapshot().Explain(gated); len(e.Gates) != 1 || e.Chosen == "" {
		t.Errorf("a gated pod: %+v", e)
	}
	e = snapshot().Explain(pod("p", using("absent")))
	if e.Chosen != "" || !strings.Contains(e.Message, `persistentvolumeclaim "absent" not found. preemption: 0/3 nodes are available: 3 Preemption is not helpful`) {
		t.Errorf("a pod without its claim: %+v", e)
	}
}
