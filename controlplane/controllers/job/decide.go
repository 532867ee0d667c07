package job

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// Snapshot is everything a decision about one Job rests on.
type Snapshot struct {
	Job *batchv1.Job
	// Pods that the Job owns.
	Pods []*corev1.Pod
	// Behind says that Pods does not show yet what the last decisions have created and
	// deleted. Then what has ended is counted, nothing else is done, and the Job is not
	// at its end: a pod that is not shown would run on after it.
	Behind bool
	// Failures are those that the last decision knew of; none if there was none.
	Failures Failures
}

// Decision is one step of a Job. The status is written first; what comes after it
// may be done again, or not at all, without a pod being lost or counted twice.
type Decision struct {
	Status batchv1.JobStatus
	// Release are pods whose end is recorded in Status: they lose their finalizer.
	Release []*corev1.Pod
	// Create are the pods that are missing.
	Create []Want
	// Remove are running pods that are too many. They lose their finalizer before
	// they are deleted, and so count for nothing.
	Remove []*corev1.Pod
	// Stop are running pods of a Job that has come to its end. They count as failed.
	Stop []*corev1.Pod
	// Events to be told once the status is written.
	Events []Event
	// Failures are to be given to the next decision.
	Failures Failures
	// Recheck is when time alone may ask for another step; zero for never.
	Recheck time.Duration
}

// Event is something to be told about a Job.
type Event struct{ Type, Reason, Message string }

// decision is the working state of Decide.
type decision struct {
	job  *batchv1.Job
	spec *batchv1.JobSpec
	now  time.Time
	out  Decision

	// pods, the oldest first; active and stopping are those that may still run.
	pods, active, stopping []*corev1.Pod
	behind                 bool
	// uncounted are the pods that the status names, whose finalizer may be gone.
	uncounted map[types.UID]bool
	// newSucceeded and newFailed have ended and are in the status nowhere.
	newSucceeded, newFailed []*corev1.Pod
	// done and broken are the indexes that have succeeded and failed for good.
	done, broken indexes
	// kept are pods that have failed and carry the history of their index until
	// another pod takes it over.
	kept map[int]*corev1.Pod
	// succeeded and failed count all pods, recorded or not.
	succeeded, failed int
	// end is FailureTarget or SuccessCriteriaMet, once the Job has come to an end.
	end *batchv1.JobCondition
}

// Decide takes the next step of a Job. It changes nothing of the snapshot. The rules
// are those of the page "Jobs" and of KEP-2307 (tracking with finalizers).
func Decide(s Snapshot, now time.Time) Decision {
	d := &decision{job: s.Job, spec: &s.Job.Spec, now: now, behind: s.Behind, uncounted: map[types.UID]bool{}, kept: map[int]*corev1.Pod{}}
	d.out.Status = *s.Job.Status.DeepCopy()
	d.pods = slices.Clone(s.Pods)
	slices.SortFunc(d.pods, func(a, b *corev1.Pod) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	if Finished(s.Job) {
		d.out.Release = slices.DeleteFunc(d.pods, func(p *corev1.Pod) bool { return !tracked(p) })
		return d.out
	}
	d.out.Failures = s.Failures.with(d.spec, d.pods)
	d.settle()
	d.sort()
	deleted := s.Job.DeletionTimestamp != nil
	if !deleted {
		d.begin()
		d.judge()
	}
	d.keepHistories()
	switch {
	case deleted:
	case d.end != nil:
		d.out.Stop = d.active
	default:
		d.manage()
		d.complete()
	}
	d.record()
	d.count()
	if d.behind {
		d.out.Create, d.out.Remove, d.out.Stop = nil, nil, nil
		return d.out
	}
	d.finish()
	return d.out
}

// Finished says whether a Job is Complete or Failed.
func Finished(job *batchv1.Job) bool {
	return holds(&job.Status, batchv1.JobComplete) || holds(&job.Status, batchv1.JobFailed)
}

func condition(s *batchv1.JobStatus, t batchv1.JobConditionType) *batchv1.JobCondition {
	i := slices.IndexFunc(s.Conditions, func(c batchv1.JobCondition) bool { return c.Type == t })
	if i < 0 {
		return nil
	}
	return &s.Conditions[i]
}

func holds(s *batchv1.JobStatus, t batchv1.JobConditionType) bool {
	c := condition(s, t)
	return c != nil && c.Status == corev1.ConditionTrue
}

// set changes a condition and returns it.
func (d *decision) set(t batchv1.JobConditionType, status corev1.ConditionStatus, reason, message string) *batchv1.JobCondition {
	c := batchv1.JobCondition{
		Type: t, Status: status, Reason: reason, Message: message,
		LastProbeTime: metav1.NewTime(d.now), LastTransitionTime: metav1.NewTime(d.now),
	}
	if old := condition(&d.out.Status, t); old != nil {
		*old = c
	} else {
		d.out.Status.Conditions = append(d.out.Status.Conditions, c)
	}
	return &c
}

func (d *decision) tell(kind, reason, message string) {
	d.out.Events = append(d.out.Events, Event{kind, reason, message})
}

// wait asks for another look after a while, if that is the soonest.
func (d *decision) wait(w time.Duration) {
	if w > 0 && (d.out.Recheck == 0 || w < d.out.Recheck) {
		d.out.Recheck = w
	}
}

func (d *decision) completions() int {
	if d.spec.Completions == nil {
		return 0
	}
	return int(*d.spec.Completions)
}

func (d *decision) suspended() bool { return d.spec.Suspend != nil && *d.spec.Suspend }

// begin notes when the Job started, and whether it is suspended (KEP-2232).
func (d *decision) begin() {
	st := &d.out.Status
	was := holds(st, batchv1.JobSuspended)
	now := metav1.NewTime(d.now)
	switch {
	case d.suspended():
		if !was && !holds(st, batchv1.JobFailureTarget) && !holds(st, batchv1.JobSuccessCriteriaMet) {
			d.set(batchv1.JobSuspended, corev1.ConditionTrue, "JobSuspended", "Job suspended")
			d.tell(corev1.EventTypeNormal, "Suspended", "Job suspended")
		}
	case was:
		d.set(batchv1.JobSuspended, corev1.ConditionFalse, "JobResumed", "Job resumed")
		d.tell(corev1.EventTypeNormal, "Resumed", "Job resumed")
		st.StartTime = &now
	case st.StartTime == nil:
		st.StartTime = &now
	}
}

// judge says whether the Job has come to its end before all its pods have
// succeeded.
func (d *decision) judge() {
	st := &d.out.Status
	for _, t := range []batchv1.JobConditionType{batchv1.JobFailureTarget, batchv1.JobSuccessCriteriaMet} {
		if holds(st, t) {
			d.end = condition(st, t)
			return
		}
	}
	fail := func(reason, message string) {
		d.end = d.set(batchv1.JobFailureTarget, corev1.ConditionTrue, reason, message)
	}
	for _, p := range d.pods {
		if v := judgePod(d.spec.PodFailurePolicy, p); v.action == batchv1.PodFailurePolicyActionFailJob && failed(p, d.spec) {
			fail(batchv1.JobReasonPodFailurePolicy, v.message)
			return
		}
	}
	if d.spec.BackoffLimit != nil && (d.failed > int(*d.spec.BackoffLimit) || d.restartedTooOften()) {
		fail(batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit")
		return
	}
	if deadline := d.spec.ActiveDeadlineSeconds; deadline != nil && !d.suspended() {
		left := st.StartTime.Add(time.Duration(*deadline) * time.Second).Sub(d.now)
		if left <= 0 {
			fail(batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline")
			return
		}
		d.wait(left)
	}
	if d.spec.BackoffLimitPerIndex != nil {
		n := d.broken.total()
		switch limit := d.spec.MaxFailedIndexes; {
		case limit != nil && n > int(*limit):
			fail(batchv1.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes")
			return
		case n > 0 && n+d.done.total() >= d.completions():
			fail(batchv1.JobReasonFailedIndexes, "Job has failed indexes")
			return
		}
	}
	if rule := enough(d.spec.SuccessPolicy, d.done, d.completions()); rule >= 0 {
		d.end = d.set(batchv1.JobSuccessCriteriaMet, corev1.ConditionTrue, batchv1.JobReasonSuccessPolicy, fmt.Sprintf("Matched rules at index %d", rule))
	}
}

// restartedTooOften: containers that their node restarts count against the same
// limit as pods.
func (d *decision) restartedTooOften() bool {
	if d.spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		return false
	}
	restarts := 0
	for _, p := range d.pods {
		if p.Status.Phase != corev1.PodRunning && p.Status.Phase != corev1.PodPending {
			continue
		}
		for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
			for i := range list {
				restarts += int(list[i].RestartCount)
			}
		}
	}
	limit := int(*d.spec.BackoffLimit)
	return restarts > 0 && restarts >= limit
}

// complete ends the Job when as many pods as wanted have succeeded and none runs.
func (d *decision) complete() {
	if len(d.active) > 0 || d.behind {
		return
	}
	switch {
	case d.spec.Completions == nil && (d.succeeded == 0 || d.suspended()):
		return
	case d.succeeded < d.completions():
		return
	}
	d.end = d.set(batchv1.JobSuccessCriteriaMet, corev1.ConditionTrue, batchv1.JobReasonCompletionsReached, "Reached expected number of succeeded pods")
}

// count writes what runs into the status.
func (d *decision) count() {
	st := &d.out.Status
	ready, stopping := int32(0), int32(len(d.stopping))
	for _, p := range d.active {
		if controller.PodReady(p) {
			ready++
		}
	}
	st.Active, st.Ready, st.Terminating = int32(len(d.active)), &ready, &stopping
}

// finish turns the end into Complete or Failed when the last pod has stopped and
// all are counted (KEP-3939: not before).
func (d *decision) finish() {
	st := &d.out.Status
	if d.end == nil || len(d.active)+len(d.stopping)+len(d.newSucceeded)+len(d.newFailed)+len(d.uncounted) > 0 {
		return
	}
	if d.end.Type == batchv1.JobFailureTarget {
		d.set(batchv1.JobFailed, corev1.ConditionTrue, d.end.Reason, d.end.Message)
		d.tell(corev1.EventTypeWarning, d.end.Reason, d.end.Message)
		if st.StartTime == nil {
			st.StartTime = &metav1.Time{Time: d.now}
		}
		return
	}
	now := metav1.NewTime(d.now)
	if st.StartTime == nil || now.Before(st.StartTime) {
		st.StartTime = &now // suspended all the time, or the clock was set back
	}
	st.CompletionTime = &now
	d.set(batchv1.JobComplete, corev1.ConditionTrue, d.end.Reason, d.end.Message)
	if d.spec.Completions != nil && d.succeeded > d.completions() {
		d.tell(corev1.EventTypeWarning, "TooManySucceededPods", "Too many succeeded pods running after completion count reached")
	}
	d.tell(corev1.EventTypeNormal, "Completed", "Job completed")
}
