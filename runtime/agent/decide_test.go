package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var t0 = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// stateOf makes the state of a pod with the containers named: "name" is a regular
// one, "init:name" an init container, "side:name" a sidecar.
func stateOf(names ...string) *podState {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "uid"}}
	pod.Spec.RestartPolicy = v1.RestartPolicyAlways
	always := v1.ContainerRestartPolicyAlways
	for _, n := range names {
		kind, name, ok := strings.Cut(n, ":")
		switch {
		case !ok:
			pod.Spec.Containers = append(pod.Spec.Containers, v1.Container{Name: n})
		case kind == "side":
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, v1.Container{Name: name, RestartPolicy: &always})
		default:
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, v1.Container{Name: name})
		}
	}
	s := newPodState(pod)
	s.sandbox, s.networkReady, s.startTime = sandboxReady, true, t0
	return s
}

func (s *podState) runs(names ...string) *podState {
	for _, n := range names {
		c := s.ctr(n)
		c.cur = &instance{ID: n + "-0", Running: true, StartedAt: t0}
		c.started, c.ready = true, true
		if c.kind == mainCtr {
			s.mainStarted = true
		}
	}
	return s
}

func (s *podState) exits(name string, code int) *podState {
	c := s.ctr(name)
	c.cur = &instance{ID: name + "-0", StartedAt: t0, FinishedAt: t0, ExitCode: code, Reason: exitReason(code, false)}
	c.started, c.ready, c.stopping = false, false, false
	c.done = c.kind == initCtr && code == 0
	if c.kind == mainCtr {
		s.mainStarted = true
	}
	return s
}

func (s *podState) with(f func(*podState)) *podState { f(s); return s }

func deleted(grace int64) func(*podState) {
	return func(s *podState) {
		at := metav1.NewTime(t0)
		s.pod.DeletionTimestamp, s.pod.DeletionGracePeriodSeconds = &at, &grace
		s.endStart = t0
	}
}

func policy(p v1.RestartPolicy) func(*podState) {
	return func(s *podState) { s.pod.Spec.RestartPolicy = p }
}

// text prints a plan in one line.
func (p plan) text() string {
	var parts []string
	for _, a := range p.actions {
		part := string(a.verb)
		if a.ctr != nil {
			part += " " + a.ctr.spec.Name
		}
		if a.verb == stopCtr {
			part += fmt.Sprintf(" in %s", a.grace)
		}
		parts = append(parts, part)
	}
	if p.terminal != "" {
		parts = append(parts, string(p.terminal))
	}
	if p.failure != nil {
		parts = append(parts, p.failure.Reason)
	}
	if !p.wake.IsZero() {
		parts = append(parts, "wake "+p.wake.Sub(t0).String())
	}
	return strings.Join(parts, ", ")
}

func TestDecide(t *testing.T) {
	retryAt := func(d time.Duration) retry { return retry{Delay: d, At: t0.Add(d)} }
	tests := []struct {
		name  string
		state *podState
		after time.Duration
		want  string
	}{
		{"no sandbox", stateOf("a").with(func(s *podState) { s.sandbox = sandboxNone }), 0, "make sandbox"},
		{"no network yet", stateOf("a").with(func(s *podState) { s.sandbox, s.networkReady = sandboxNone, false }), 0, ""},
		{"host network needs none", stateOf("a").with(func(s *podState) {
			s.sandbox, s.networkReady, s.pod.Spec.HostNetwork = sandboxNone, false, true
		}), 0, "make sandbox"},
		{"sandbox back-off", stateOf("a").with(func(s *podState) { s.sandbox, s.sandboxRetry = sandboxNone, retryAt(10*time.Second) }), 0, "wake 10s"},
		{"sandbox under way", stateOf("a").with(func(s *podState) { s.sandbox = sandboxMaking }), 0, ""},
		{"sandbox lost", stateOf("a").with(func(s *podState) { s.sandbox = sandboxLost }), 0, "remove sandbox"},

		{"first container", stateOf("a", "b"), 0, "start a"},
		{"one start at a time", stateOf("a", "b").with(func(s *podState) { s.ctr("a").starting = true }), 0, ""},
		{"second container", stateOf("a", "b").runs("a"), 0, "start b"},
		{"one that cannot start holds up no other", stateOf("a", "b").with(func(s *podState) { s.ctr("a").startRetry = retryAt(10 * time.Second) }), 0, "start b, wake 10s"},
		{"all run", stateOf("a", "b").runs("a", "b"), 0, ""},

		{"restart at once", stateOf("a").exits("a", 1), 0, "start a"},
		{"restart after back-off", stateOf("a").exits("a", 1).with(func(s *podState) { s.ctr("a").crash = retryAt(20 * time.Second) }), 0, "wake 20s"},
		{"back-off is over", stateOf("a").exits("a", 1).with(func(s *podState) { s.ctr("a").crash = retryAt(20 * time.Second) }), 20 * time.Second, "start a"},
		{"Always restarts success", stateOf("a").exits("a", 0), 0, "start a"},
		{"OnFailure restarts failure", stateOf("a").exits("a", 1).with(policy(v1.RestartPolicyOnFailure)), 0, "start a"},
		{"OnFailure ends with success", stateOf("a").exits("a", 0).with(policy(v1.RestartPolicyOnFailure)), 0, "Succeeded"},
		{"Never fails", stateOf("a").exits("a", 1).with(policy(v1.RestartPolicyNever)), 0, "Failed"},
		{"Never waits for all", stateOf("a", "b").exits("a", 1).runs("b").with(policy(v1.RestartPolicyNever)), 0, ""},
		{"one failure fails the pod", stateOf("a", "b").exits("a", 1).exits("b", 0).with(policy(v1.RestartPolicyNever)), 0, "Failed"},

		{"init first", stateOf("init:i", "a"), 0, "start i"},
		{"init runs", stateOf("init:i", "a").runs("i"), 0, ""},
		{"init done", stateOf("init:i", "a").exits("i", 0), 0, "start a"},
		{"second init", stateOf("init:i", "init:j", "a").exits("i", 0), 0, "start j"},
		{"init fails and is restarted", stateOf("init:i", "a").exits("i", 1), 0, "start i"},
		{"init fails for good", stateOf("init:i", "a").exits("i", 1).with(policy(v1.RestartPolicyNever)), 0, "Failed"},
		{"init is not repeated", stateOf("init:i", "a").runs("a"), 0, ""},
		{"sidecar first", stateOf("side:s", "init:i", "a"), 0, "start s"},
		{"sidecar must be started", stateOf("side:s", "a").runs("s").with(func(s *podState) { s.ctr("s").started = false }), 0, ""},
		{"sidecar runs on", stateOf("side:s", "init:i", "a").runs("s"), 0, "start i"},
		{"sidecar is restarted beside the others", stateOf("side:s", "a").exits("s", 0).runs("a").with(policy(v1.RestartPolicyNever)), 0, "start s"},
		{"a job with a sidecar ends", stateOf("side:s", "a").runs("s").exits("a", 0).with(policy(v1.RestartPolicyNever)), 0, "Succeeded"},

		{"liveness", stateOf("a").runs("a").with(func(s *podState) { s.ctr("a").kill = &killOrder{"sick", 7 * time.Second} }), 0, "stop a in 7s"},
		{"liveness once", stateOf("a").runs("a").with(func(s *podState) {
			s.ctr("a").kill, s.ctr("a").stopping = &killOrder{"sick", 7 * time.Second}, true
		}), 0, ""},
		{"active deadline ahead", stateOf("a").runs("a").with(func(s *podState) { n := int64(60); s.pod.Spec.ActiveDeadlineSeconds = &n }), 0, "wake 1m0s"},
		{"active deadline passed", stateOf("a").runs("a").with(func(s *podState) { n := int64(60); s.pod.Spec.ActiveDeadlineSeconds = &n }), time.Minute, "DeadlineExceeded"},

		{"deleted: stop all", stateOf("a", "b").runs("a", "b").with(deleted(30)), 0, "stop a in 30s, stop b in 30s"},
		{"deleted: grace is what is left", stateOf("a").runs("a").with(deleted(30)), 12 * time.Second, "stop a in 18s"},
		{"deleted: sidecars last", stateOf("side:s", "side:t", "a").runs("s", "t", "a").with(deleted(30)), 0, "stop a in 30s"},
		{"deleted: sidecars in reverse", stateOf("side:s", "side:t", "a").runs("s", "t").exits("a", 0).with(deleted(30)), 0, "stop t in 30s"},
		{"deleted: waits for the stop", stateOf("a").runs("a").with(deleted(30)).with(func(s *podState) {
			s.ctr("a").stopping, s.ctr("a").stopBy = true, t0.Add(32*time.Second)
		}), time.Second, ""},
		{"deleted again with less grace", stateOf("a").runs("a").with(deleted(3)).with(func(s *podState) {
			s.ctr("a").stopping, s.ctr("a").stopBy = true, t0.Add(32*time.Second)
		}), time.Second, "stop a in 2s"},
		{"deleted: waits for a start", stateOf("a").with(deleted(30)).with(func(s *podState) { s.ctr("a").starting = true }), 0, ""},
		{"deleted: then the sandbox", stateOf("a").exits("a", 0).with(deleted(30)), 0, "remove sandbox"},
		{"deleted: never had a sandbox", stateOf("a").with(deleted(30)).with(func(s *podState) { s.sandbox = sandboxNone }), 0, "remove sandbox"},
		{"deleted: then the object", stateOf("a").exits("a", 0).with(deleted(30)).with(func(s *podState) { s.sandbox = sandboxRemoved }), 0, "delete object"},
		{"deleted: once", stateOf("a").exits("a", 0).with(deleted(30)).with(func(s *podState) { s.sandbox, s.deleting = sandboxRemoved, true }), 0, ""},
		{"gone: stop with the pod's own grace", stateOf("a").runs("a").with(func(s *podState) { s.gone, s.endStart = true, t0 }), 0, "stop a in 30s"},
		{"gone: forget", stateOf("a").exits("a", 0).with(func(s *podState) { s.gone, s.sandbox = true, sandboxRemoved }), 0, "forget"},
		{"draining: forget, keep the object", stateOf("a").exits("a", 0).with(func(s *podState) { s.draining, s.sandbox = true, sandboxRemoved }), 0, "forget"},
		{"terminal: clean up and stay", stateOf("a").exits("a", 0).with(func(s *podState) { s.terminal = v1.PodSucceeded }), 0, "remove sandbox"},
		{"terminal: nothing left", stateOf("a").exits("a", 0).with(func(s *podState) { s.terminal, s.sandbox = v1.PodSucceeded, sandboxRemoved }), 0, ""},
		{"removal failed: later", stateOf("a").with(func(s *podState) {
			s.gone, s.sandbox, s.sandboxRetry = true, sandboxLost, retryAt(time.Second)
		}), 0, "wake 1s"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := decide(tt.state, t0.Add(tt.after)).text(); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestBackoff(t *testing.T) {
	var r retry
	want := []time.Duration{0, 10, 20, 40, 80, 160, 300, 300}
	for i, w := range want {
		r = r.crashed(time.Second, t0, i == 0)
		if r.Delay != w*time.Second || !r.At.Equal(t0.Add(w*time.Second)) {
			t.Errorf("crash %d: %s until %s, want %ds", i, r.Delay, r.At, w)
		}
	}
	if r = r.crashed(10*time.Minute, t0, false); r.Delay != 0 || !r.due(t0) {
		t.Errorf("after ten minutes of running: %s", r.Delay)
	}
	var p retry
	for i, w := range []time.Duration{10, 20, 40} {
		if p = p.failed(t0); p.Delay != w*time.Second || p.due(t0) {
			t.Errorf("failure %d: %s", i, p.Delay)
		}
	}
	if back := t0.Add(-time.Second); p.due(back) || !p.due(back.Add(-time.Hour)) {
		t.Error("the clock was put back: a second changes nothing, and nobody waits for an hour")
	}
}

func TestInstanceID(t *testing.T) {
	tests := []struct {
		id, name string
		attempt  int
		ok       bool
	}{
		{"web-0", "web", 0, true}, {"my-web-12", "my-web", 12, true}, {"a-1-2", "a-1", 2, true},
		{"web", "", 0, false}, {"-1", "", 0, false}, {"web-x", "web", 0, false}, {"", "", 0, false},
	}
	for _, tt := range tests {
		name, attempt, ok := parseInstanceID(tt.id)
		if ok != tt.ok || ok && (name != tt.name || attempt != tt.attempt || instanceID(name, attempt) != tt.id) {
			t.Errorf("%q: %q %d %v", tt.id, name, attempt, ok)
		}
	}
}
