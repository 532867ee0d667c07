package agent

import (
	"time"

	v1 "k8s.io/api/core/v1"
)

// verb is something that a worker can do for its pod.
type verb string

const (
	makeSandbox   verb = "make sandbox"
	startCtr      verb = "start"
	stopCtr       verb = "stop"
	removeSandbox verb = "remove sandbox"
	deleteObject  verb = "delete object"
	forget        verb = "forget"
)

// action is one thing to do.
type action struct {
	verb verb
	ctr  *ctr
	// grace of a stop, preStop hook included.
	grace time.Duration
	// message says why, for the event.
	message string
}

// plan is what to do now, and when to ask again if nothing happens before.
type plan struct {
	actions []action
	wake    time.Time
	// terminal is the phase that the pod has reached, or "".
	terminal v1.PodPhase
	// failure ends the pod for a reason of the node's.
	failure *podFailure
}

func (p *plan) do(a action) { p.actions = append(p.actions, a) }

func (p *plan) wakeAt(t time.Time) {
	if !t.IsZero() && (p.wake.IsZero() || t.Before(p.wake)) {
		p.wake = t
	}
}

// decide says what the pod needs next. It changes nothing: the same state and time
// always give the same plan.
func decide(s *podState, now time.Time) plan {
	var p plan
	if s.ending() {
		decideEnd(s, now, &p)
		return p
	}
	if d := s.pod.Spec.ActiveDeadlineSeconds; d != nil && !s.startTime.IsZero() {
		deadline := s.startTime.Add(time.Duration(*d) * time.Second)
		if !now.Before(deadline) {
			p.failure = &podFailure{Reason: "DeadlineExceeded", Message: "Pod was active on the node longer than the specified deadline"}
			return p
		}
		p.wakeAt(deadline)
	}
	switch s.sandbox {
	case sandboxNone:
		if !s.admitted && !s.hasRun() {
			if p.failure = admit(s); p.failure != nil {
				return p
			}
		}
		decideSandbox(s, now, &p)
	case sandboxLost:
		p.do(action{verb: removeSandbox})
	case sandboxReady:
		decideRun(s, now, &p)
	}
	return p
}

func decideSandbox(s *podState, now time.Time, p *plan) {
	if !s.pod.Spec.HostNetwork && !s.networkReady {
		return
	}
	if !s.sandboxRetry.due(now) {
		p.wakeAt(s.sandboxRetry.At)
		return
	}
	p.do(action{verb: makeSandbox})
}

// decideRun brings the containers of a pod up and keeps them up.
func decideRun(s *podState, now time.Time, p *plan) {
	for _, c := range s.ctrs {
		if c.kill != nil && c.running() && !c.stopping {
			p.do(action{verb: stopCtr, ctr: c, grace: c.kill.grace, message: c.kill.message})
		}
	}
	// Before the init containers, so that these can be looked into too.
	for _, c := range s.ctrs {
		if c.kind == ephemeralCtr && c.cur == nil {
			tryStart(c, now, p)
		}
	}
	if !decideInit(s, now, p) {
		return
	}
	// One after the other, as Kubernetes does: a container whose start is under way,
	// postStart hook included, holds up those after it; one that cannot start does
	// not.
	open, failed := false, false
	for _, c := range s.ctrs {
		if c.kind != mainCtr {
			continue
		}
		if c.starting {
			return
		}
		switch {
		case c.running():
			open = true
		case c.exited() && !c.restarts(s.pod.Spec.RestartPolicy, c.cur.ExitCode):
			failed = failed || c.cur.ExitCode != 0
		default:
			open = true
			if tryStart(c, now, p) {
				return
			}
		}
	}
	if !open {
		p.terminal = v1.PodSucceeded
		if failed {
			p.terminal = v1.PodFailed
		}
	}
}

// decideInit walks the init containers and says whether the regular containers may
// run. Sidecars (KEP-753) are kept running throughout, and count as done once
// started.
func decideInit(s *podState, now time.Time, p *plan) bool {
	for _, c := range s.ctrs {
		switch c.kind {
		case sidecarCtr:
			if !c.running() && !c.starting {
				tryStart(c, now, p)
			}
			if !s.mainStarted && !(c.running() && c.started) {
				return false
			}
		case initCtr:
			if s.mainStarted || c.done {
				continue
			}
			switch {
			case c.starting || c.running():
			case c.exited() && !c.restarts(s.pod.Spec.RestartPolicy, c.cur.ExitCode) && c.cur.ExitCode != 0:
				p.terminal = v1.PodFailed
			default:
				tryStart(c, now, p)
			}
			return false
		}
	}
	return true
}

// tryStart starts c if its back-offs allow it.
func tryStart(c *ctr, now time.Time, p *plan) bool {
	if c.starting || c.stopping {
		return true
	}
	if !c.startRetry.due(now) || !c.crash.due(now) {
		p.wakeAt(c.startRetry.At)
		p.wakeAt(c.crash.At)
		if !c.wait.Since.IsZero() {
			// The reason shown turns from the error into the back-off.
			if t := c.wait.Since.Add(showErrorFor); t.After(now) {
				p.wakeAt(t)
			}
		}
		return false
	}
	p.do(action{verb: startCtr, ctr: c})
	return true
}

// decideEnd stops the containers, regular ones first and sidecars after them in
// reverse order, then removes the sandbox, and only then lets the object go.
func decideEnd(s *podState, now time.Time, p *plan) {
	left := s.endStart.Add(s.grace()).Sub(now)
	if s.endStart.IsZero() {
		left = s.grace()
	}
	left = max(left, 0)
	busy := false
	stop := func(c *ctr) {
		busy = busy || c.starting || c.stopping || c.running()
		switch {
		case !c.running():
		case !c.stopping:
			p.do(action{verb: stopCtr, ctr: c, grace: left, message: "Stopping container " + c.spec.Name})
		case now.Add(left + minimumGrace).Before(c.stopBy.Add(-time.Second)):
			// Deleted again with a shorter grace.
			p.do(action{verb: stopCtr, ctr: c, grace: left})
		}
	}
	for _, c := range s.ctrs {
		if c.kind != sidecarCtr {
			stop(c)
		}
	}
	for i := len(s.ctrs) - 1; i >= 0 && !busy; i-- {
		if s.ctrs[i].kind == sidecarCtr {
			stop(s.ctrs[i])
		}
	}
	if busy {
		return
	}
	switch {
	case s.sandbox == sandboxMaking || s.sandbox == sandboxRemoving:
	case s.sandbox != sandboxRemoved:
		if !s.sandboxRetry.due(now) && s.sandbox == sandboxLost {
			p.wakeAt(s.sandboxRetry.At)
			return
		}
		p.do(action{verb: removeSandbox})
	case s.gone || s.draining:
		p.do(action{verb: forget})
	case s.pod.DeletionTimestamp != nil && !s.deleting:
		if !s.sandboxRetry.due(now) {
			p.wakeAt(s.sandboxRetry.At)
			return
		}
		p.do(action{verb: deleteObject})
	}
}
