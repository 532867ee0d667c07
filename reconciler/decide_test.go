package reconciler

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func at(d time.Duration) *metav1.Time {
	t := metav1.NewTime(now.Add(d))
	return &t
}

func TestDecide(t *testing.T) {
	deploying := &v1alpha1.SyncResult{Commit: "b", StartedAt: *at(-time.Minute)}
	for _, c := range []struct {
		name string
		st   v1alpha1.ApplicationStatus
		s    Snapshot
		want Decision
	}{
		{name: "nothing was ever read", want: Decision{Step: Rest}},
		{name: "the first commit", s: Snapshot{Observed: "a"}, want: Decision{Step: Deploy}},
		{name: "nothing new", st: v1alpha1.ApplicationStatus{DeployedCommit: "a"}, s: Snapshot{Observed: "a"}, want: Decision{Step: Rest}},
		{name: "under way", st: v1alpha1.ApplicationStatus{DeployedCommit: "b", LastSync: deploying},
			s: Snapshot{Observed: "b", Health: Health{Ready: 1, Total: 2}}, want: Decision{Step: Await, Recheck: 4 * time.Minute}},
		{name: "Ready", st: v1alpha1.ApplicationStatus{DeployedCommit: "b", LastSync: deploying},
			s: Snapshot{Observed: "b", Health: Health{Ready: 2, Total: 2}}, want: Decision{Step: Succeed}},
		{name: "failed", st: v1alpha1.ApplicationStatus{DeployedCommit: "b", LastSync: deploying},
			s: Snapshot{Observed: "b", Health: Health{Ready: 1, Total: 2, Failed: true, Message: "web: no"}}, want: Decision{Step: Fail, Message: "web: no"}},
		{name: "timed out", st: v1alpha1.ApplicationStatus{DeployedCommit: "b", LastSync: &v1alpha1.SyncResult{Commit: "b", StartedAt: *at(-5 * time.Minute)}},
			s: Snapshot{Observed: "b", Health: Health{Ready: 1, Total: 2, Message: "web: waits"}}, want: Decision{Step: Fail, Message: "not Ready after 5m0s: web: waits"}},
		{name: "a newer commit overtakes", st: v1alpha1.ApplicationStatus{DeployedCommit: "b", LastSync: deploying},
			s: Snapshot{Observed: "c"}, want: Decision{Step: Deploy}},
		{name: "a commit that cannot pass is not tried again", st: v1alpha1.ApplicationStatus{DeployedCommit: "a", LastSync: &v1alpha1.SyncResult{Commit: "b", FinishedAt: at(-time.Minute)}},
			s: Snapshot{Observed: "b"}, want: Decision{Step: Rest}},
		{name: "unless forced", st: v1alpha1.ApplicationStatus{DeployedCommit: "a", LastSync: &v1alpha1.SyncResult{Commit: "b", FinishedAt: at(-time.Minute)}},
			s: Snapshot{Observed: "b", Force: true}, want: Decision{Step: Deploy}},
		{name: "a failure that may pass is tried when due", st: v1alpha1.ApplicationStatus{DeployedCommit: "a", LastSync: &v1alpha1.SyncResult{Commit: "b", FinishedAt: at(-time.Minute), RetryAt: at(-time.Second)}},
			s: Snapshot{Observed: "b"}, want: Decision{Step: Deploy}},
		{name: "and not before", st: v1alpha1.ApplicationStatus{DeployedCommit: "a", LastSync: &v1alpha1.SyncResult{Commit: "b", FinishedAt: at(-time.Minute), RetryAt: at(7 * time.Second), Failures: 2}},
			s: Snapshot{Observed: "b"}, want: Decision{Step: Rest, Recheck: 7 * time.Second}},
		{name: "nobody waits for a clock that was put back", st: v1alpha1.ApplicationStatus{DeployedCommit: "a", LastSync: &v1alpha1.SyncResult{Commit: "b", FinishedAt: at(time.Hour), RetryAt: at(time.Hour + 10*time.Second), Failures: 2}},
			s: Snapshot{Observed: "b"}, want: Decision{Step: Deploy}},
		{name: "a failed sync does not block a newer commit", st: v1alpha1.ApplicationStatus{DeployedCommit: "a", LastSync: &v1alpha1.SyncResult{Commit: "b", FinishedAt: at(-time.Minute), RetryAt: at(time.Hour)}},
			s: Snapshot{Observed: "c"}, want: Decision{Step: Deploy}},
		{name: "held", st: v1alpha1.ApplicationStatus{DeployedCommit: "a", HeldAt: &v1alpha1.Hold{Commit: "b", Reason: v1alpha1.HeldByRollback}},
			s: Snapshot{Observed: "b", HeldBack: true}, want: Decision{Step: Rest}},
		{name: "a newer commit lifts the hold", st: v1alpha1.ApplicationStatus{DeployedCommit: "a", HeldAt: &v1alpha1.Hold{Commit: "b", Reason: v1alpha1.HeldByAutoRollback}},
			s: Snapshot{Observed: "c"}, want: Decision{Step: Deploy, LiftHold: true}},
		{name: "but not one put on by hand", st: v1alpha1.ApplicationStatus{DeployedCommit: "a", HeldAt: &v1alpha1.Hold{Commit: "b", Reason: v1alpha1.HeldByUser}},
			s: Snapshot{Observed: "c"}, want: Decision{Step: Rest}},
		{name: "a remote that cannot be read lifts nothing", st: v1alpha1.ApplicationStatus{DeployedCommit: "a", HeldAt: &v1alpha1.Hold{Commit: "b", Reason: v1alpha1.HeldByRollback}},
			want: Decision{Step: Rest}},
		{name: "a rollback under way is awaited although the branch is ahead",
			st: v1alpha1.ApplicationStatus{DeployedCommit: "a", HeldAt: &v1alpha1.Hold{Commit: "b", Reason: v1alpha1.HeldByRollback}, LastSync: &v1alpha1.SyncResult{Commit: "a", StartedAt: *at(0)}},
			s:  Snapshot{Observed: "b", HeldBack: true, Health: Health{Ready: 0, Total: 1}}, want: Decision{Step: Await, Recheck: 5 * time.Minute}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.s.App = &v1alpha1.Application{Status: c.st}
			if got := Decide(c.s, now); got != c.want {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestBackoff(t *testing.T) {
	for n, want := range map[int32]time.Duration{1: 5 * time.Second, 2: 10 * time.Second, 4: 40 * time.Second, 7: 5 * time.Minute, 1000: 5 * time.Minute} {
		if got := backoff(n); got != want {
			t.Errorf("backoff(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestConditionsKeepTheirTimes(t *testing.T) {
	st := &v1alpha1.ApplicationStatus{DeployedCommit: "a", ObservedCommit: "a"}
	st.Conditions = conditionsOf(st, Health{Ready: 1, Total: 1}, nil, 1, now)
	st.Conditions = conditionsOf(st, Health{Ready: 0, Total: 1, Message: "web: waits"}, nil, 1, now.Add(time.Minute))
	for _, c := range st.Conditions {
		moved := c.LastTransitionTime.Time.Equal(now.Add(time.Minute))
		if moved != (c.Type == v1alpha1.ConditionReady) {
			t.Errorf("%s moved: %v", c.Type, moved)
		}
		if c.Type == v1alpha1.ConditionReady && (c.Status != metav1.ConditionFalse || !strings.Contains(c.Message, "waits")) {
			t.Errorf("Ready is %s: %s", c.Status, c.Message)
		}
	}
}
