package probe

import (
	"testing"

	v1 "k8s.io/api/core/v1"
)

func TestTracker(t *testing.T) {
	const s, f, u = Success, Failure, Unknown
	tests := []struct {
		name             string
		kind             Kind
		success, failure int32
		answers          []Result
		want             []Result
	}{
		{"readiness begins as failure", Readiness, 1, 3, nil, nil},
		{"readiness succeeds at once", Readiness, 1, 3, []Result{s}, []Result{s}},
		{"readiness needs two", Readiness, 2, 3, []Result{s, f, s, s}, []Result{f, f, f, s}},
		{"readiness fails after three in a row", Readiness, 1, 3, []Result{s, f, f, s, f, f, f}, []Result{s, s, s, s, s, s, f}},
		{"liveness holds until it fails", Liveness, 1, 2, []Result{f, s, f, f}, []Result{s, s, s, f}},
		{"startup is unknown at first", Startup, 1, 2, []Result{f, f}, []Result{u, f}},
		{"what cannot be asked counts for nothing", Liveness, 1, 1, []Result{u, u, s}, []Result{s, s, s}},
		{"defaults", Liveness, 0, 0, []Result{f, f, f}, []Result{s, s, f}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tr := NewTracker(tt.kind, &v1.Probe{SuccessThreshold: tt.success, FailureThreshold: tt.failure})
			for i, a := range tt.answers {
				before := tr.Result()
				changed := tr.Observe(a)
				if tr.Result() != tt.want[i] || changed != (before != tt.want[i]) {
					t.Fatalf("after %v: %v (changed %v), want %v", tt.answers[:i+1], tr.Result(), changed, tt.want[i])
				}
			}
		})
	}
}
