package agent

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/runtime/container"
)

// statusText prints what kubectl shows of a status.
func statusText(st v1.PodStatus) string {
	var parts []string
	state := func(cs v1.ContainerStatus) string {
		text := ""
		switch {
		case cs.State.Running != nil:
			text = "running"
		case cs.State.Waiting != nil:
			text = cs.State.Waiting.Reason
		case cs.State.Terminated != nil:
			text = fmt.Sprintf("%s(%d)", cs.State.Terminated.Reason, cs.State.Terminated.ExitCode)
		}
		if cs.LastTerminationState.Terminated != nil {
			text += fmt.Sprintf(" after %s(%d)", cs.LastTerminationState.Terminated.Reason, cs.LastTerminationState.Terminated.ExitCode)
		}
		if cs.Ready {
			text += " ready"
		}
		return cs.Name + " " + text
	}
	for _, cs := range st.InitContainerStatuses {
		parts = append(parts, state(cs))
	}
	for _, cs := range st.ContainerStatuses {
		parts = append(parts, state(cs))
	}
	for _, c := range st.Conditions {
		if c.Type == v1.PodScheduled {
			continue
		}
		if c.Status == v1.ConditionTrue {
			parts = append(parts, string(c.Type))
		} else if c.Type == v1.PodReady {
			parts = append(parts, "!"+c.Reason)
		}
	}
	return string(st.Phase) + ": " + strings.Join(parts, ", ")
}

func TestBuildStatus(t *testing.T) {
	tests := []struct {
		name  string
		state *podState
		after time.Duration
		want  string
	}{
		{"new", stateOf("a").with(func(s *podState) { s.sandbox = sandboxNone }), 0,
			"Pending: a ContainerCreating, Initialized, !ContainersNotReady"},
		{"sandbox is there", stateOf("a"), 0,
			"Pending: a ContainerCreating, PodReadyToStartContainers, Initialized, !ContainersNotReady"},
		{"init", stateOf("init:i", "a").runs("i"), 0,
			"Pending: i running ready, a PodInitializing, PodReadyToStartContainers, !ContainersNotReady"},
		{"running", stateOf("a").runs("a"), 0,
			"Running: a running ready, PodReadyToStartContainers, Initialized, Ready, ContainersReady"},
		{"not ready", stateOf("a", "b").runs("a", "b").with(func(s *podState) { s.ctr("b").ready = false }), 0,
			"Running: a running ready, b running, PodReadyToStartContainers, Initialized, !ContainersNotReady"},
		{"readiness gate", stateOf("a").runs("a").with(func(s *podState) {
			s.pod.Spec.ReadinessGates = []v1.PodReadinessGate{{ConditionType: "x.io/lb"}}
		}), 0, "Running: a running ready, PodReadyToStartContainers, Initialized, !ReadinessGatesNotReady, ContainersReady"},
		{"pull failed", stateOf("a").with(func(s *podState) { s.ctr("a").wait = waiting{reasonErrPull, "no", t0} }), 0,
			"Pending: a ErrImagePull, PodReadyToStartContainers, Initialized, !ContainersNotReady"},
		{"pull backs off", stateOf("a").with(func(s *podState) { s.ctr("a").wait = waiting{reasonErrPull, "no", t0} }), 3 * time.Second,
			"Pending: a ImagePullBackOff, PodReadyToStartContainers, Initialized, !ContainersNotReady"},
		{"crashed, restart at once", stateOf("a").exits("a", 1), 0,
			"Running: a Error(1), PodReadyToStartContainers, Initialized, !ContainersNotReady"},
		{"crash loop", stateOf("a").exits("a", 1).with(func(s *podState) { s.ctr("a").wait = waiting{reasonCrashLoop, "", t0} }), 0,
			"Running: a CrashLoopBackOff after Error(1), PodReadyToStartContainers, Initialized, !ContainersNotReady"},
		{"stopping", stateOf("a").runs("a").with(deleted(30)), 0,
			"Running: a running ready, PodReadyToStartContainers, Initialized, Ready, ContainersReady"},
		{"stopped by deletion", stateOf("a").exits("a", 0).with(deleted(30)).with(func(s *podState) { s.sandbox = sandboxRemoved }), 0,
			"Succeeded: a Completed(0), Initialized, !PodCompleted"},
		{"killed by deletion", stateOf("a").exits("a", 137).with(deleted(30)).with(func(s *podState) { s.sandbox = sandboxRemoved }), 0,
			"Failed: a Error(137), Initialized, !PodFailed"},
		{"succeeded", stateOf("a").exits("a", 0).with(func(s *podState) { s.terminal, s.sandbox = v1.PodSucceeded, sandboxRemoved }), 0,
			"Succeeded: a Completed(0), Initialized, !PodCompleted"},
		{"failed before it began", stateOf("a").with(func(s *podState) { s.terminal, s.sandbox = v1.PodFailed, sandboxRemoved }), 0,
			"Failed: a ContainerStatusUnknown(137), Initialized, !PodFailed"},
		{"failed before it was initialized", stateOf("init:i", "a").exits("i", 1).with(func(s *podState) { s.terminal, s.sandbox = v1.PodFailed, sandboxRemoved }), 0,
			"Failed: i Error(1), a PodInitializing, !PodFailed"},
		{"succeeded but for a sidecar", stateOf("side:s", "a").runs("s").exits("a", 0).with(func(s *podState) { s.terminal = v1.PodSucceeded }), 0,
			"Running: s running ready, a Completed(0), PodReadyToStartContainers, Initialized, !ContainersNotReady"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			st := buildStatus(tt.state, v1.PodStatus{}, []netip.Addr{netip.MustParseAddr("10.0.0.1")}, t0.Add(tt.after))
			if got := statusText(st); got != tt.want {
				t.Errorf("\n%q, want\n%q", got, tt.want)
			}
		})
	}
}

func TestConditionTimesAndForeignConditions(t *testing.T) {
	s := stateOf("a").runs("a")
	s.pod.Status.Conditions = []v1.PodCondition{{Type: v1.PodScheduled, Status: v1.ConditionTrue}, {Type: v1.PodReady, Status: v1.ConditionFalse}}
	node := netip.MustParseAddr("10.0.0.1")
	first := buildStatus(s, v1.PodStatus{}, []netip.Addr{node}, t0)
	s.ctr("a").ready = false
	second := buildStatus(s, first, []netip.Addr{node}, t0.Add(time.Minute))
	if c := findCondition(second.Conditions, v1.PodScheduled); c == nil || c.Status != v1.ConditionTrue {
		t.Errorf("PodScheduled is lost: %+v", second.Conditions)
	}
	if c := findCondition(second.Conditions, v1.PodInitialized); !c.LastTransitionTime.Time.Equal(t0) {
		t.Errorf("Initialized did not change at %s", c.LastTransitionTime)
	}
	if c := findCondition(second.Conditions, v1.PodReady); !c.LastTransitionTime.Time.Equal(t0.Add(time.Minute)) {
		t.Errorf("Ready changed at %s", c.LastTransitionTime)
	}
}

func TestStatusPatch(t *testing.T) {
	base := &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u1"}}
	base.Status.Phase = v1.PodPending
	base.Status.Conditions = []v1.PodCondition{{Type: "x.io/foreign", Status: v1.ConditionTrue}, {Type: v1.PodReady, Status: v1.ConditionFalse}}
	same := base.Status
	if p, err := statusPatch(base, same); err != nil || p != nil {
		t.Errorf("a patch of nothing: %s, %v", p, err)
	}
	want := v1.PodStatus{Phase: v1.PodRunning, Conditions: []v1.PodCondition{{Type: v1.PodReady, Status: v1.ConditionTrue}}}
	p, err := statusPatch(base, want)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Metadata struct{ UID string }
		Status   map[string]any
	}
	if err := json.Unmarshal(p, &got); err != nil || got.Metadata.UID != "u1" || got.Status["phase"] != "Running" {
		t.Errorf("patch %s, %v", p, err)
	}
	if strings.Contains(string(p), "delete") {
		t.Errorf("the patch removes what another writes: %s", p)
	}
}

func joined(parts ...any) string { return strings.TrimSuffix(fmt.Sprintln(parts...), "\n") }

func TestAdopt(t *testing.T) {
	st := func(id string, state container.State, code int) container.ContainerStatus {
		return container.ContainerStatus{ID: id, State: state, ExitCode: code, StartedAt: t0, FinishedAt: t0}
	}
	probe := &v1.Probe{}
	tests := []struct {
		name  string
		setup func(s *podState)
		found *container.SandboxStatus
		want  func(s *podState) string
	}{
		{"running and ready goes on", func(s *podState) {
			s.pod.Spec.Containers[0].ReadinessProbe = probe
			s.pod.Status.ContainerStatuses = []v1.ContainerStatus{{Name: "a", RestartCount: 2, Ready: true, ContainerID: containerIDPrefix + "uid/a-2"}}
		}, &container.SandboxStatus{Containers: []container.ContainerStatus{st("a-2", container.Running, 0), st("a-1", container.Exited, 1)}},
			func(s *podState) string {
				c := s.ctr("a")
				return joined(c.cur.ID, c.running(), c.ready, c.prev.ID, s.mainStarted)
			}},
		{"another run than the API knows is not ready", func(s *podState) {
			s.pod.Spec.Containers[0].ReadinessProbe = probe
			s.pod.Status.ContainerStatuses = []v1.ContainerStatus{{Name: "a", RestartCount: 1, Ready: true, ContainerID: containerIDPrefix + "uid/a-1"}}
		}, &container.SandboxStatus{Containers: []container.ContainerStatus{st("a-2", container.Running, 0)}},
			func(s *podState) string { return joined(s.ctr("a").running(), s.ctr("a").ready) }},
		{"lost with the machine", func(s *podState) {
			s.pod.Status.ContainerStatuses = []v1.ContainerStatus{{Name: "a", RestartCount: 2, State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}}}
		}, nil, func(s *podState) string {
			c := s.ctr("a")
			return joined(c.running(), c.cur.ExitCode, c.cur.Reason, c.nextAttempt(), s.mainStarted)
		}},
		{"init done in this sandbox", nil,
			&container.SandboxStatus{Containers: []container.ContainerStatus{st("i-0", container.Exited, 0)}},
			func(s *podState) string { return joined(s.ctr("i").done) }},
		{"finished pod", func(s *podState) { s.pod.Status.Phase = v1.PodSucceeded }, nil,
			func(s *podState) string { return string(s.terminal) }},
	}
	want := []string{"a-2 true true a-1 true", "true false", "false 137 ContainerStatusUnknown 3 false", "true", "Succeeded"}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := stateOf("init:i", "a")
			if tt.setup != nil {
				tt.setup(s)
			}
			adopt(s, tt.found, podMeta{}, t0)
			if got := tt.want(s); got != want[i] {
				t.Errorf("%q, want %q", got, want[i])
			}
		})
	}
}
