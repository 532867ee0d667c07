package probe

import v1 "k8s.io/api/core/v1"

// Kind of probe.
type Kind string

// The three kinds of probe of a container.
const (
	Startup   Kind = "Startup"
	Liveness  Kind = "Liveness"
	Readiness Kind = "Readiness"
)

// Result of a probe.
type Result int

const (
	// Unknown: not asked yet, or the question itself could not be asked.
	Unknown Result = iota
	// Success: the container answered well.
	Success
	// Failure: it did not.
	Failure
)

// Tracker turns single answers into the result that counts, by the thresholds of
// "Configure Liveness, Readiness and Startup Probes" in the Kubernetes
// documentation. The zero value is not useful; see NewTracker.
type Tracker struct {
	result           Result
	last             Result
	run              int32
	success, failure int32
}

// NewTracker returns a tracker in the state in which the kind begins: readiness
// fails until asked, liveness holds until it fails, startup is unknown.
func NewTracker(kind Kind, spec *v1.Probe) *Tracker {
	t := &Tracker{success: max(spec.SuccessThreshold, 1), failure: max(spec.FailureThreshold, 1)}
	if spec.FailureThreshold == 0 {
		t.failure = 3
	}
	switch kind {
	case Readiness:
		t.result = Failure
	case Liveness:
		t.result = Success
	}
	return t
}

// Result is what counts now.
func (t *Tracker) Result() Result { return t.result }

// Resume begins with a result known from before.
func (t *Tracker) Resume(r Result) { t.result = r }

// Observe takes one answer and says whether the result changed.
func (t *Tracker) Observe(answer Result) (changed bool) {
	if answer == Unknown {
		return false
	}
	if answer == t.last {
		t.run++
	} else {
		t.last, t.run = answer, 1
	}
	if answer == Failure && t.run < t.failure || answer == Success && t.run < t.success {
		return false
	}
	changed = t.result != answer
	t.result = answer
	return changed
}
