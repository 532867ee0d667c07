package reconciler

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/reconciler/health"
)

// Snapshot is everything that the next step of an Application rests on.
type Snapshot struct {
	App *v1alpha1.Application
	// Observed is the newest commit of the ref; empty if it was never read.
	Observed string
	// Trigger is what made us look.
	Trigger string
	// HeldBack says that Observed is the held commit or an ancestor of it.
	HeldBack bool
	// Health of the deployed objects together.
	Health Health
	// Force deploys what a hold or an earlier failure keeps back.
	Force bool
}

// Health sums up the objects of an Application.
type Health struct {
	Ready, Total int
	// Failed is set when an object has failed for good; Message names it.
	Failed bool
	// Message is about the object furthest from being Ready.
	Message string
}

// Step is what is to be done next.
type Step int

const (
	// Rest: nothing is to be done.
	Rest Step = iota
	// Deploy the observed commit.
	Deploy
	// Succeed: the deploy under way is Ready.
	Succeed
	// Fail: the deploy under way will not become Ready.
	Fail
	// Await: the deploy under way needs more time.
	Await
)

// Decision is the next step and why.
type Decision struct {
	Step Step
	// LiftHold says that the hold no longer applies.
	LiftHold bool
	// Message explains a Fail.
	Message string
	// Recheck is when to decide again if nothing happens; 0 for never.
	Recheck time.Duration
}

// Decide chooses the next step of an Application. It is a pure function.
func Decide(s Snapshot, now time.Time) Decision {
	var d Decision
	st := &s.App.Status
	fresh := s.Observed != "" && s.Observed != st.DeployedCommit
	if h := st.HeldAt; h != nil && h.Reason != v1alpha1.HeldByUser && s.Observed != "" && !s.HeldBack {
		d.LiftHold = true
	}
	held := st.HeldAt != nil && !d.LiftHold && !s.Force
	underWay := st.LastSync != nil && st.LastSync.FinishedAt == nil
	if fresh && !held && (s.Force || mayTry(st.LastSync, s.Observed, now)) {
		d.Step = Deploy // a newer commit supersedes a deploy under way
		return d
	}
	if !underWay {
		if ls := st.LastSync; fresh && !held && ls != nil && ls.RetryAt != nil {
			d.Recheck = max(ls.RetryAt.Sub(now), time.Millisecond)
		}
		return d
	}
	timeout := 5 * time.Minute
	if t := s.App.Spec.Sync.Timeout; t != nil {
		timeout = t.Duration
	}
	left := st.LastSync.StartedAt.Add(timeout).Sub(now)
	switch {
	case s.Health.Failed:
		d.Step, d.Message = Fail, s.Health.Message
	case s.Health.Ready == s.Health.Total:
		d.Step = Succeed
	case left <= 0:
		d.Step, d.Message = Fail, fmt.Sprintf("not Ready after %s: %s", timeout, s.Health.Message)
	default:
		d.Step, d.Recheck = Await, left
	}
	return d
}

// mayTry says whether a commit may be tried: it was not tried before, or its last
// failure may have passed by now.
func mayTry(last *v1alpha1.SyncResult, commit string, now time.Time) bool {
	if last == nil || last.Commit != commit || last.FinishedAt == nil {
		// A deploy under way of this very commit is the deployed one, not a fresh one.
		return true
	}
	// A time further away than the pause was written before the clock was put back.
	return last.RetryAt != nil && (!now.Before(last.RetryAt.Time) || last.RetryAt.Sub(now) > backoff(last.Failures)+time.Second)
}

// backoff is how long after the n-th failure in a row the next try is due.
func backoff(failures int32) time.Duration {
	const first, most = 5 * time.Second, 5 * time.Minute
	d := first
	for range failures - 1 {
		if d *= 2; d >= most {
			return most
		}
	}
	return d
}

// phaseOf sums up the status in one word and a sentence.
func phaseOf(st *v1alpha1.ApplicationStatus, h Health) (v1alpha1.Phase, string) {
	ls := st.LastSync
	switch {
	case ls != nil && ls.FinishedAt == nil:
		return v1alpha1.PhaseProgressing, h.Message
	case ls != nil && ls.Outcome == v1alpha1.OutcomeFailed:
		return v1alpha1.PhaseFailed, ls.Message
	case st.DeployedCommit == "":
		return v1alpha1.PhasePending, "nothing has been deployed yet"
	case h.Failed || h.Ready < h.Total:
		return v1alpha1.PhaseDegraded, h.Message
	}
	return v1alpha1.PhaseReady, fmt.Sprintf("%d of %d objects are Ready", h.Ready, h.Total)
}

// conditionsOf derives the conditions from the rest of the status.
func conditionsOf(st *v1alpha1.ApplicationStatus, h Health, sourceErr error, generation int64, now time.Time) []metav1.Condition {
	out := append([]metav1.Condition(nil), st.Conditions...)
	set := func(kind string, ok bool, reason, message string) {
		c := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: generation}
		if ok {
			c.Status = metav1.ConditionTrue
		}
		c.LastTransitionTime = metav1.NewTime(now)
		for i := range out {
			if out[i].Type == kind {
				if out[i].Status == c.Status {
					c.LastTransitionTime = out[i].LastTransitionTime
				}
				out[i] = c
				return
			}
		}
		out = append(out, c)
	}
	phase, message := phaseOf(st, h)
	deployed := st.DeployedCommit != ""
	set(v1alpha1.ConditionReady, deployed && !h.Failed && h.Ready == h.Total, string(phase), message)
	synced := deployed && st.DeployedCommit == st.ObservedCommit
	reason := "OutOfSync"
	if synced {
		reason = "Synced"
	}
	set(v1alpha1.ConditionSynced, synced, reason, fmt.Sprintf("deployed %s, newest %s", shortOrNone(st.DeployedCommit), shortOrNone(st.ObservedCommit)))
	if st.HeldAt != nil {
		set(v1alpha1.ConditionHeld, true, string(st.HeldAt.Reason), st.HeldAt.Message)
	} else {
		set(v1alpha1.ConditionHeld, false, "NotHeld", "")
	}
	if sourceErr != nil {
		set(v1alpha1.ConditionSourceReady, false, "FetchFailed", sourceErr.Error())
	} else if st.ObservedCommit != "" {
		set(v1alpha1.ConditionSourceReady, true, "Fetched", "")
	}
	return out
}

func shortOrNone(sha string) string {
	if sha == "" {
		return "none"
	}
	return sha[:min(len(sha), 10)]
}

// worse says whether a is further from Ready than b, to name one object in a
// message.
func worse(a, b health.Status) bool {
	order := map[health.Status]int{health.Failed: 3, health.Terminating: 2, health.InProgress: 1, health.Current: 0}
	return order[a] > order[b]
}
