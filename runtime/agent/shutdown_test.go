package agent

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
)

func TestShutdownPolicy(t *testing.T) {
	for _, tt := range []struct {
		all, critical time.Duration
		want          string
	}{
		{0, 0, ""}, {30 * time.Second, 10 * time.Second, ""}, {30 * time.Second, 30 * time.Second, ""},
		{time.Millisecond, 0, "shutdownGracePeriod 1ms must be either zero or otherwise >= 1 sec"},
		{-time.Second, 0, "must be either zero"},
		{time.Minute, time.Millisecond, "shutdownGracePeriodCriticalPods 1ms must be either zero or otherwise >= 1 sec"},
		{time.Second, time.Minute, "shutdownGracePeriod 1s must be >= shutdownGracePeriodCriticalPods 1m0s"},
	} {
		err := (&ShutdownPolicy{tt.all, tt.critical}).complete()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s, %s: %v, want %q", tt.all, tt.critical, err, tt.want)
		}
	}
}

// A pod has the shorter of its own grace and the node's.
func TestGraceLimit(t *testing.T) {
	for _, tt := range []struct{ own, limit, want int64 }{{30, 5, 5}, {3, 5, 3}, {30, 0, 0}} {
		s := stateOf("a").runs("a")
		s.pod.Spec.TerminationGracePeriodSeconds = &tt.own
		s.terminal, s.endStart = v1.PodFailed, t0
		s.graceLimit = ptr.To(time.Duration(tt.limit) * time.Second)
		if a := decide(s, t0).actions; len(a) != 1 || a[0].verb != stopCtr || a[0].grace != time.Duration(tt.want)*time.Second {
			t.Errorf("%d s, at most %d s: %+v", tt.own, tt.limit, a)
		}
	}
}

// TestShutdown ends the pods of a machine that goes down, critical ones last, and
// takes no more.
func TestShutdown(t *testing.T) {
	plane := apiservertest.StartWith(t, nil)
	r := newRealNode(t, plane, "node-s")
	r.cfg.Shutdown = ShutdownPolicy{GracePeriod: time.Minute, CriticalPods: 30 * time.Second}
	r.ready()
	ns := r.namespace("shutdown")
	for _, name := range []string{"ordinary", "critical"} {
		r.pod(ns, name, func(p *v1.Pod) {
			p.Spec.Containers[0].Args = []string{"sleep"}
			p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](600)
			if name == "critical" {
				p.Spec.PriorityClassName = "system-node-critical"
			}
		})
		r.untilReady(ns, name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	if err := r.agent.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	var ends []metav1.Time
	for _, name := range []string{"ordinary", "critical"} {
		p, err := r.admin.CoreV1().Pods(ns).Get(ctx, name, metav1.GetOptions{})
		r.must(err)
		c := findCondition(p.Status.Conditions, v1.DisruptionTarget)
		if p.Status.Phase != v1.PodFailed || p.Status.Reason != "Terminated" || p.Status.Message != messageShutdown || podReady(p) ||
			c == nil || c.Status != v1.ConditionTrue || c.Reason != "TerminationByKubelet" || c.Message != messageShutdown {
			t.Fatalf("%s: %+v", name, p.Status)
		}
		ends = append(ends, p.Status.ContainerStatuses[0].State.Terminated.FinishedAt)
	}
	if ends[1].Before(&ends[0]) {
		t.Errorf("the critical pod ended at %s, before the other at %s", ends[1], ends[0])
	}
	node, err := r.admin.CoreV1().Nodes().Get(ctx, r.name, metav1.GetOptions{})
	r.must(err)
	if !slices.ContainsFunc(node.Status.Conditions, func(c v1.NodeCondition) bool {
		return c.Type == v1.NodeReady && c.Status == v1.ConditionFalse && c.Reason == "KubeletNotReady" && c.Message == "node is shutting down"
	}) {
		t.Errorf("conditions of the node: %+v", node.Status.Conditions)
	}
	r.pod(ns, "late", nil)
	late := r.until(ns, "late", "Failed", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
	if late.Status.Reason != "NodeShutdown" || late.Status.Message != "Pod was rejected: Pod was rejected as the node is shutting down." {
		t.Errorf("a pod that comes too late: %+v", late.Status)
	}
	// What has ended is not begun again when the machine is back.
	r.stop()
	r.driver.Close()
	r.open()
	r.ready()
	for _, name := range []string{"ordinary", "critical", "late"} {
		if p := r.until(ns, name, "Failed", func(p *v1.Pod) bool { return p != nil }); p.Status.Phase != v1.PodFailed {
			t.Errorf("%s after the restart: %+v", name, p.Status)
		}
		r.deletePod(ns, name, 0)
		r.until(ns, name, "gone", gone)
	}
}

// TestShutdownInTime goes on with the critical pods when the time of the others is
// over, and with the machine when all of it is.
func TestShutdownInTime(t *testing.T) {
	plane := apiservertest.StartWith(t, nil)
	rt := newFakeRuntime()
	n := newTestNode(t, plane, "node-t", rt, &fakePuller{config: defaultImage}, &fakeNetwork{})
	n.cfg.Shutdown = ShutdownPolicy{GracePeriod: 2 * time.Second, CriticalPods: time.Second}
	n.ready()
	ns := n.namespace("late")
	n.pod(ns, "stubborn", nil)
	n.untilReady(ns, "stubborn")
	n.pod(ns, "critical", func(p *v1.Pod) { p.Spec.PriorityClassName = "system-node-critical" })
	n.untilReady(ns, "critical")
	rt.mu.Lock()
	rt.stubborn = true // until killed, minimumGrace after its time
	rt.mu.Unlock()
	err := n.agent.Shutdown(context.Background())
	if err == nil || !strings.Contains(err.Error(), "2 pods had not ended when their time was over") {
		t.Errorf("got %v", err)
	}
	rt.mu.Lock()
	defer rt.mu.Unlock()
	for _, s := range rt.stopped {
		if s.grace > minimumGrace {
			t.Errorf("%s was given %s", s.id, s.grace)
		}
	}
	if len(rt.stopped) != 2 {
		t.Errorf("stopped: %+v", rt.stopped)
	}
}
