package job

import (
	"fmt"
	"slices"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
)

// TestBackOffOfDeletedPods: a failed pod that somebody deletes is waited for no less
// than one that is still there.
func TestBackOffOfDeletedPods(t *testing.T) {
	job := newJob(t, "parallelism: 1, completions: 1", "")
	s := Snapshot{Job: job}
	step := func(after time.Duration, pods ...*corev1.Pod) Decision {
		s.Pods = pods
		d := Decide(s, start.Add(after))
		s.Failures, s.Job.Status = d.Failures, d.Status
		return d
	}
	wait := func(d Decision, want time.Duration) {
		t.Helper()
		if d.Recheck != want || (len(d.Create) == 0) != (want > 0) {
			t.Errorf("%d created, waits %s, want %s", len(d.Create), d.Recheck, want)
		}
	}
	wait(step(0, pod(t, "a bad")), 10*time.Second)
	// It is recorded, let go and deleted at once.
	wait(step(4*time.Second), 6*time.Second)
	wait(step(10*time.Second), 0)
	// The next one is deleted while it runs, and its worker stops it.
	deleted := pod(t, "b bad stop")
	deleted.Status.ContainerStatuses[0].State.Terminated.FinishedAt.Time = start.Add(11 * time.Second)
	wait(step(12*time.Second, deleted), 19*time.Second)
	wait(step(13*time.Second), 18*time.Second)
	if f := s.Job.Status.Failed; f != 2 {
		t.Errorf("%d have failed", f)
	}
	// One that the Job has taken out is no failure.
	wait(step(31*time.Second, pod(t, "c bad stop free")), 0)
	// A success ends it, even if its pod has gone, too.
	s.Failures = s.Failures.with(&job.Spec, []*corev1.Pod{endedAt("d", corev1.PodSucceeded, start.Add(15*time.Second))})
	s.Job = newJob(t, "parallelism: 2, completions: 9", "")
	wait(step(16*time.Second), 0)
}

func endedAt(name string, phase corev1.PodPhase, at time.Time) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Finalizers: []string{finalizer}},
		Status: corev1.PodStatus{Phase: phase, ContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{
			Terminated: &corev1.ContainerStateTerminated{FinishedAt: metav1.NewTime(at)},
		}}}},
	}
}

// TestFailuresAddUp: pods end and are deleted in any order, seen once or often. The
// back-off is as if all of them were still there.
func TestFailuresAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spec := &batchv1.JobSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever}}}
		var all, there []*corev1.Pod
		var f Failures
		for i := range rapid.IntRange(1, 30).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "ends") {
				phase := rapid.SampledFrom([]corev1.PodPhase{corev1.PodFailed, corev1.PodFailed, corev1.PodFailed, corev1.PodSucceeded}).Draw(t, "phase")
				p := endedAt(fmt.Sprint(i), phase, start.Add(time.Duration(rapid.IntRange(0, 50).Draw(t, "at"))*time.Second))
				all, there = append(all, p), append(there, p)
			}
			if rapid.Bool().Draw(t, "released") && len(there) > 0 {
				there[rapid.IntRange(0, len(there)-1).Draw(t, "which")].Finalizers = nil
			}
			f = f.with(spec, there)
			there = slices.DeleteFunc(there, func(*corev1.Pod) bool { return rapid.Bool().Draw(t, "deleted") })
		}
		// By the words of the page "Jobs": failures since the last success, each doubling.
		var success, last time.Time
		failures := 0
		for _, p := range all {
			if p.Status.Phase == corev1.PodSucceeded && finishedAt(p).After(success) {
				success = finishedAt(p)
			}
		}
		for _, p := range all {
			if at := finishedAt(p); p.Status.Phase == corev1.PodFailed && at.After(success) {
				failures++
				if at.After(last) {
					last = at
				}
			}
		}
		want := last.Add(backOff(failures))
		if got := f.until(); !got.Equal(want) {
			t.Fatalf("until %s, want %s after %d failures", got, want, failures)
		}
		if len(f.newest) > enoughFailures {
			t.Fatalf("%d failures are kept", len(f.newest))
		}
	})
}
