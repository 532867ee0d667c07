package agent

import (
	"net/netip"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// debugged is a state whose pod got an ephemeral container.
func debugged(s *podState) *podState {
	pod := s.pod.DeepCopy()
	pod.Spec.EphemeralContainers = []v1.EphemeralContainer{{
		EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: "debug"}, TargetContainerName: "a",
	}}
	s.setPod(pod)
	return s
}

func TestDecideEphemeral(t *testing.T) {
	tests := map[string]struct {
		s    *podState
		want []string
	}{
		"starts in the running pod":     {debugged(stateOf("a").runs("a")), []string{"start debug"}},
		"starts before init containers": {debugged(stateOf("init:i", "a")), []string{"start debug", "start i"}},
		"starts beside a crash loop": {debugged(stateOf("a").exits("a", 1)).with(func(s *podState) {
			s.ctr("a").crash = retry{Delay: backoffMax, At: t0.Add(time.Minute)}
		}), []string{"start debug"}},
		"is not started twice":    {debugged(stateOf("a").runs("a")).with(func(s *podState) { s.ctr("debug").starting = true }), nil},
		"is never restarted":      {debugged(stateOf("a").runs("a")).exits("debug", 1), nil},
		"waits for its retry":     {debugged(stateOf("a").runs("a")).with(func(s *podState) { s.ctr("debug").startRetry = retry{Delay: backoffMax, At: t0.Add(time.Second)} }), nil},
		"is stopped with the pod": {debugged(stateOf("a").runs("a")).runs("debug").with(func(s *podState) { s.gone = true }), []string{"stop a", "stop debug"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, a := range decide(tt.s, t0).actions {
				got = append(got, string(a.verb)+" "+a.ctr.spec.Name)
			}
			if len(got) != len(tt.want) {
				t.Fatalf("got %q, want %q", got, tt.want)
			}
			for i := range got {
				if got[i] != tt.want[i] {
					t.Errorf("got %q, want %q", got, tt.want)
				}
			}
		})
	}
}

// An ephemeral container counts for nothing: neither for the phase nor for the
// conditions of its pod.
func TestEphemeralStatus(t *testing.T) {
	s := debugged(stateOf("a").runs("a"))
	check := func(what string) {
		t.Helper()
		st := buildStatus(s, v1.PodStatus{}, []netip.Addr{netip.MustParseAddr("10.41.0.11")}, t0)
		if c := findCondition(st.Conditions, v1.PodReady); st.Phase != v1.PodRunning || c.Status != v1.ConditionTrue {
			t.Errorf("%s: %s, %+v", what, st.Phase, c)
		}
		if len(st.ContainerStatuses) != 1 || len(st.EphemeralContainerStatuses) != 1 || st.EphemeralContainerStatuses[0].Started != nil || st.EphemeralContainerStatuses[0].Ready {
			t.Errorf("%s: %+v", what, st.EphemeralContainerStatuses)
		}
	}
	check("waiting")
	s.runs("debug")
	check("running")
	s.exits("debug", 1)
	check("ended")
	s.exits("a", 0).with(func(s *podState) { s.pod.Spec.RestartPolicy = v1.RestartPolicyNever }).runs("debug")
	if p := decide(s, t0); p.terminal != v1.PodSucceeded {
		t.Errorf("its pod does not end by its containers alone: %q", p.terminal)
	}
}

// A new agent finds an ephemeral container as it left it and does not start it
// again.
func TestAdoptEphemeral(t *testing.T) {
	s := debugged(stateOf("a"))
	s.pod.Status.EphemeralContainerStatuses = []v1.ContainerStatus{{
		Name: "debug", State: v1.ContainerState{Running: &v1.ContainerStateRunning{}},
	}}
	adopt(s, nil, podMeta{}, t0)
	if c := s.ctr("debug"); !c.exited() || c.cur.Reason != "ContainerStatusUnknown" {
		t.Errorf("after the loss of its sandbox: %+v", c.cur)
	}
	for _, a := range decide(s, t0).actions {
		if a.ctr == s.ctr("debug") {
			t.Errorf("it is to be %sed", a.verb)
		}
	}
}
