package printers

import (
	"fmt"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
)

// Jobs prints Jobs.
var Jobs = Table{
	Columns: append([]metav1.TableColumnDefinition{
		nameColumn(), column("Status", "Status of the job."), column("Completions", "Number of pods that have succeeded, of those wanted."),
		column("Duration", "Time required to complete the job."), ageColumn(),
	}, templateColumns()...),
	Row: func(obj runtime.Object, now time.Time) []any {
		job := obj.(*batchv1.Job)
		return append([]any{
			job.Name, jobStatus(job), jobCompletions(job), jobDuration(job, now), age(job.CreationTimestamp, now),
		}, templateCells(&job.Spec.Template, job.Spec.Selector)...)
	},
}

// jobStatus is the furthest that a Job has come.
func jobStatus(job *batchv1.Job) string {
	has := map[batchv1.JobConditionType]bool{}
	for _, c := range job.Status.Conditions {
		has[c.Type] = c.Status == corev1.ConditionTrue
	}
	switch {
	case has[batchv1.JobComplete]:
		return "Complete"
	case has[batchv1.JobFailed]:
		return "Failed"
	case job.DeletionTimestamp != nil:
		return "Terminating"
	case has[batchv1.JobSuspended]:
		return "Suspended"
	case has[batchv1.JobFailureTarget]:
		return "FailureTarget"
	case has[batchv1.JobSuccessCriteriaMet]:
		return "SuccessCriteriaMet"
	}
	return "Running"
}

func jobCompletions(job *batchv1.Job) string {
	switch {
	case job.Spec.Completions != nil:
		return fmt.Sprintf("%d/%d", job.Status.Succeeded, *job.Spec.Completions)
	case job.Spec.Parallelism != nil && *job.Spec.Parallelism > 1:
		return fmt.Sprintf("%d/1 of %d", job.Status.Succeeded, *job.Spec.Parallelism)
	}
	return fmt.Sprintf("%d/1", job.Status.Succeeded)
}

func jobDuration(job *batchv1.Job, now time.Time) string {
	s := &job.Status
	switch {
	case s.StartTime == nil:
		return ""
	case s.CompletionTime != nil:
		now = s.CompletionTime.Time
	}
	return duration.HumanDuration(now.Sub(s.StartTime.Time))
}

// CronJobs prints CronJobs.
var CronJobs = Table{
	Columns: append([]metav1.TableColumnDefinition{
		nameColumn(), column("Schedule", "When it runs, in Cron format."), column("Timezone", "Time zone of the schedule."),
		column("Suspend", "Whether runs that have not started are held back."), number("Active", "Number of runs under way."),
		column("Last Schedule", "Time since the last run was scheduled."), ageColumn(),
	}, templateColumns()...),
	Row: func(obj runtime.Object, now time.Time) []any {
		c := obj.(*batchv1.CronJob)
		zone, suspend, last := none, unsetCell, none
		if c.Spec.TimeZone != nil {
			zone = *c.Spec.TimeZone
		}
		switch s := c.Spec.Suspend; {
		case s == nil:
		case *s:
			suspend = "True"
		default:
			suspend = "False"
		}
		if c.Status.LastScheduleTime != nil {
			last = age(*c.Status.LastScheduleTime, now)
		}
		return append([]any{
			c.Name, c.Spec.Schedule, zone, suspend, int64(len(c.Status.Active)), last, age(c.CreationTimestamp, now),
		}, templateCells(&c.Spec.JobTemplate.Spec.Template, c.Spec.JobTemplate.Spec.Selector)...)
	},
}
