package scheduler

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func priority(n int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Priority = &n }
}

func TestQueue(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	q, c := newQueue(), cluster(node("a", "1", "1Gi"))
	q.set(NewPod(pod("low")))
	q.set(NewPod(pod("high", priority(10), requests("2", "0"))))
	e := q.pop()
	if e.pod.Name != "high" {
		t.Fatalf("first is %s, want the pod of higher priority", e.pod.Name)
	}
	q.rest(e, []*Plugin{&nodeResourcesFit}, now)
	q.remove(q.pop().pod.UID)
	if q.flush(now.Add(time.Hour)); q.pop() != nil {
		t.Fatal("a pod that did not fit was tried again though nothing had changed")
	}
	bigger := node("a", "2", "1Gi")
	ev := nodeEvent(node("a", "1", "1Gi"), bigger)
	q.happened(c, ev)
	if len(q.resting) != 1 {
		t.Fatal("woken by an event that it cannot be helped by")
	}
	c.SetNode(bigger)
	q.happened(c, ev)
	if next := q.flush(now); next != now.Add(firstBackoff) {
		t.Fatalf("next try at %v, want after the back-off", next)
	}
	q.flush(now.Add(firstBackoff))
	e = q.pop()
	if e == nil || e.pod.Name != "high" {
		t.Fatal("the pod was not tried again after a change and its back-off")
	}
	for _, want := range []time.Duration{2, 4, 8, 10, 10} {
		q.retry(e, now)
		if next := q.flush(now); next != now.Add(want*time.Second) {
			t.Fatalf("next try after %v, want %v seconds", next.Sub(now), want)
		}
		q.flush(now.Add(want * time.Second))
		e = q.pop()
	}
	q.rest(e, []*Plugin{&nodeResourcesFit}, now)
	if q.overdue(now.Add(restLimit - 1)); len(q.resting) != 1 {
		t.Fatal("its rest ended before the limit")
	}
	if q.overdue(now.Add(restLimit)); len(q.resting) != 0 {
		t.Fatal("it rests for more than the limit")
	}
	q.remove(e.pod.UID)
	if len(q.entries)+len(q.backing.list)+len(q.ready.list) != 0 {
		t.Fatal("something is left")
	}
}

// TestWakes: which events let which plugins look again.
func TestWakes(t *testing.T) {
	c := street(runs("a", 1, app("db")))
	placed := func(change ...func(*corev1.Pod)) *Event { return podEvent(podPlaced, NewPod(pod("x", change...)), "a") }
	gone := func(change ...func(*corev1.Pod)) *Event { return podEvent(podGone, NewPod(pod("x", change...)), "a") }
	added := &Event{kind: nodeAdded, Node: "a"}
	huge := pod("p", requests("99", "1Gi"))
	near, apart, spread := pod("p", near(host, "db")), pod("p", apart(host, "db")), pod("p", app("web"), spreading(inZone, 1, "web"))
	for _, w := range []struct {
		name   string
		plugin *Plugin
		pod    *corev1.Pod
		event  *Event
		want   bool
	}{
		{"room", &nodeResourcesFit, pod("p"), gone(), true},
		{"too little room", &nodeResourcesFit, huge, gone(), false},
		{"a node that is too small", &nodeResourcesFit, huge, added, false},
		{"a pod takes room", &nodeResourcesFit, pod("p"), placed(), false},
		{"storage is not room", &nodeResourcesFit, pod("p"), &Event{kind: storageChanged}, false},
		{"a friend", &interPodAffinity, near, placed(app("db")), true},
		{"a stranger", &interPodAffinity, near, placed(app("web")), false},
		{"a friend elsewhere", &interPodAffinity, near, placed(app("db"), in("other")), false},
		{"an enemy less", &interPodAffinity, apart, gone(app("db")), true},
		{"a stranger less", &interPodAffinity, apart, gone(app("web")), false},
		{"a guard less", &interPodAffinity, pod("p", app("web")), gone(apartFrom("web")), true},
		{"a guard against others less", &interPodAffinity, pod("p", app("web")), gone(apartFrom("db")), false},
		{"one more to spread", &podTopologySpread, spread, placed(app("web")), true},
		{"one more of others", &podTopologySpread, spread, placed(app("db")), false},
		{"labels of a node", &nodeAffinity, pod("p"), &Event{kind: nodeLabels, Node: "a"}, true},
		{"taints are no labels", &nodeAffinity, pod("p"), &Event{kind: nodeTaints, Node: "a"}, false},
		{"taints", &taintToleration, pod("p"), &Event{kind: nodeTaints, Node: "a"}, true},
		{"a claim", &volumeBinding, pod("p"), &Event{kind: storageChanged}, true},
	} {
		t.Run(w.name, func(t *testing.T) {
			if got := w.plugin.Wakes(c, NewPod(w.pod), w.event); got != w.want {
				t.Errorf("wakes: %v, want %v", got, w.want)
			}
		})
	}
}

func apartFrom(value string) func(*corev1.Pod) { return apart(host, value) }
