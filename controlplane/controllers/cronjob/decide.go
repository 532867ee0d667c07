package cronjob

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Snapshot is everything a decision about one CronJob rests on.
type Snapshot struct {
	CronJob *batchv1.CronJob
	// Jobs that the CronJob owns. One that the status calls active and that is not
	// among them is gone.
	Jobs []*batchv1.Job
}

// Decision is one step of a CronJob.
type Decision struct {
	Status batchv1.CronJobStatus
	// Start is the Job of the run that is due since At. When it exists, the status is
	// that of Started.
	Start *batchv1.Job
	At    time.Time
	// Replaced are Jobs that make room for Start, and go before it comes. Expired are
	// finished Jobs beyond the limits of the history.
	Replaced, Expired []*batchv1.Job
	Events            []Event
	// Skipped is the time of a run that is due and does not start, with Why; it is told
	// once.
	Skipped time.Time
	Why     *Event
	// Recheck is when the next run is due; zero for never.
	Recheck time.Duration
}

// Event is something to be told about a CronJob.
type Event struct{ Type, Reason, Message string }

func warning(reason, format string, args ...any) *Event {
	return &Event{corev1.EventTypeWarning, reason, fmt.Sprintf(format, args...)}
}

func (d *Decision) tell(kind, reason, format string, args ...any) {
	d.Events = append(d.Events, Event{kind, reason, fmt.Sprintf(format, args...)})
}

// longestWait bounds Recheck: a timer does not see that the clock was set.
const longestWait = time.Minute

// Decide takes the next step of a CronJob, by the rules of the page "CronJob". It
// changes nothing of the snapshot.
func Decide(s Snapshot, now time.Time) Decision {
	d := Decision{Status: *s.CronJob.Status.DeepCopy()}
	follow(&d, s)
	if s.CronJob.DeletionTimestamp != nil {
		return d
	}
	expire(&d, s)
	if s.CronJob.Spec.Suspend == nil || !*s.CronJob.Spec.Suspend {
		start(&d, s, now)
	}
	return d
}

// finished returns the condition by which a Job is over, or "".
func finished(job *batchv1.Job) batchv1.JobConditionType {
	for _, c := range job.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return c.Type
		}
	}
	return ""
}

// follow brings the list of active Jobs up to date.
func follow(d *Decision, s Snapshot) {
	byUID := map[types.UID]*batchv1.Job{}
	for _, job := range s.Jobs {
		byUID[job.UID] = job
	}
	var active []corev1.ObjectReference
	for _, ref := range s.CronJob.Status.Active {
		job := byUID[ref.UID]
		switch {
		case job == nil:
			d.tell(corev1.EventTypeNormal, "MissingJob", "Active job went missing: %v", ref.Name)
		case finished(job) != "":
			d.tell(corev1.EventTypeNormal, "SawCompletedJob", "Saw completed job: %s, condition: %v", job.Name, finished(job))
		default:
			active = append(active, ref)
		}
	}
	d.Status.Active = active
	for _, job := range s.Jobs {
		// One with a time is this controller's own, and not written down yet.
		if finished(job) == "" && job.Annotations[batchv1.CronJobScheduledTimestampAnnotation] == "" &&
			!slices.ContainsFunc(active, func(r corev1.ObjectReference) bool { return r.UID == job.UID }) {
			d.tell(corev1.EventTypeWarning, "UnexpectedJob", "Saw a job that the controller did not create or forgot: %s", job.Name)
		}
		if at := job.Status.CompletionTime; finished(job) == batchv1.JobComplete && at != nil && (d.Status.LastSuccessfulTime == nil || at.After(d.Status.LastSuccessfulTime.Time)) {
			d.Status.LastSuccessfulTime = at.DeepCopy()
		}
	}
}

// expire deletes the oldest finished Jobs that are too many.
func expire(d *Decision, s Snapshot) {
	spec := &s.CronJob.Spec
	for _, h := range []struct {
		ended batchv1.JobConditionType
		limit *int32
	}{{batchv1.JobComplete, spec.SuccessfulJobsHistoryLimit}, {batchv1.JobFailed, spec.FailedJobsHistoryLimit}} {
		if h.limit == nil {
			continue
		}
		jobs := slices.DeleteFunc(slices.Clone(s.Jobs), func(job *batchv1.Job) bool { return finished(job) != h.ended })
		slices.SortFunc(jobs, func(a, b *batchv1.Job) int {
			return cmp.Or(started(a).Compare(started(b)), cmp.Compare(a.Name, b.Name))
		})
		for _, job := range jobs[:max(len(jobs)-int(*h.limit), 0)] {
			if job.DeletionTimestamp == nil {
				d.Expired = append(d.Expired, job)
			}
		}
	}
}

func started(job *batchv1.Job) time.Time {
	if job.Status.StartTime != nil {
		return job.Status.StartTime.Time
	}
	return job.CreationTimestamp.Time
}

// start begins the newest run that is due, unless that is not wanted any more.
func start(d *Decision, s Snapshot, now time.Time) {
	c, spec := s.CronJob, &s.CronJob.Spec
	sched, zone, fault := schedule(spec)
	if fault != nil {
		d.Events = append(d.Events, *fault)
		return
	}
	since := c.CreationTimestamp.Time
	if last := c.Status.LastScheduleTime; last != nil {
		since = last.Time
	}
	from := since
	if limit := spec.StartingDeadlineSeconds; limit != nil {
		if first := now.Add(-time.Duration(*limit) * time.Second); first.After(from) {
			from = first // what is older is too late to start
		}
	}
	at, next, missed := due(sched, from, now)
	if !next.IsZero() {
		d.Recheck = min(max(next.Sub(now), time.Millisecond), longestWait)
	}
	if at.IsZero() {
		if late, _, _ := due(sched, since, from); !late.IsZero() {
			d.Skipped, d.Why = late, warning("MissSchedule", "Missed scheduled time to start a job: %s", late.UTC().Format(time.RFC1123Z))
		}
		return
	}
	name := jobName(c, at)
	if i := slices.IndexFunc(s.Jobs, func(job *batchv1.Job) bool { return job.Name == name }); i >= 0 {
		d.Status = Started(d.Status, s.Jobs[i], at) // made, and not written down
		return
	}
	if len(d.Status.Active) > 0 && spec.ConcurrencyPolicy == batchv1.ForbidConcurrent {
		d.Skipped = at
		d.Why = &Event{corev1.EventTypeNormal, "JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy is Forbid"}
		return
	}
	if spec.ConcurrencyPolicy == batchv1.ReplaceConcurrent {
		for _, job := range s.Jobs {
			if slices.ContainsFunc(d.Status.Active, func(r corev1.ObjectReference) bool { return r.UID == job.UID }) {
				d.Replaced = append(d.Replaced, job)
			}
		}
		d.Status.Active = nil
	}
	if missed > many {
		d.tell(corev1.EventTypeWarning, "TooManyMissedTimes", "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew")
	}
	d.Start, d.At = newJob(c, at, zone), at
}

// Started is the status once the Job of a run exists.
func Started(s batchv1.CronJobStatus, job *batchv1.Job, at time.Time) batchv1.CronJobStatus {
	s.Active = slices.Clone(s.Active)
	if finished(job) == "" && !slices.ContainsFunc(s.Active, func(r corev1.ObjectReference) bool { return r.UID == job.UID }) {
		s.Active = append(s.Active, corev1.ObjectReference{
			APIVersion: batchv1.SchemeGroupVersion.String(), Kind: "Job", Namespace: job.Namespace, Name: job.Name,
			UID: job.UID, ResourceVersion: job.ResourceVersion,
		})
	}
	s.LastScheduleTime = &metav1.Time{Time: at}
	return s
}

// newJob is the Job of the run that was due at a time.
func newJob(c *batchv1.CronJob, at time.Time, zone *time.Location) *batchv1.Job {
	t := c.Spec.JobTemplate.DeepCopy()
	job := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{
			Name: jobName(c, at), Namespace: c.Namespace, Labels: t.Labels, Annotations: map[string]string{},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(c, kind)},
		},
		Spec: t.Spec,
	}
	maps.Copy(job.Annotations, t.Annotations)
	job.Annotations[batchv1.CronJobScheduledTimestampAnnotation] = at.In(zone).Format(time.RFC3339)
	return job
}
