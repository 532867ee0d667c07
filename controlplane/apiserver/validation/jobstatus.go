package validation

import (
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// JobStatus checks a status by itself and against the one before: whoever manages
// the Job (KEP-4368), its status can be relied on.
func JobStatus(job, old *batchv1.Job) field.ErrorList {
	s, was, path := &job.Status, &old.Status, field.NewPath("status")
	errs := jobCounts(s, path)
	errs = append(errs, jobConditions(job, path)...)
	errs = append(errs, jobIndexes(job, path)...)
	disabled := func(format string, t batchv1.JobConditionType) {
		if jobCondition(old, t) && !jobCondition(job, t) {
			errs = append(errs, field.Invalid(path.Child("conditions"), field.OmitValueType{}, fmt.Sprintf(format, t)))
		}
	}
	for _, t := range []batchv1.JobConditionType{batchv1.JobFailed, batchv1.JobComplete, batchv1.JobFailureTarget} {
		disabled("cannot disable the terminal %s=True condition", t)
	}
	disabled("cannot disable the %s=True condition", batchv1.JobSuccessCriteriaMet)
	if s.Failed < was.Failed {
		errs = append(errs, field.Invalid(path.Child("failed"), s.Failed, "cannot decrease the failed counter"))
	}
	if s.Succeeded < was.Succeeded && !indexed(&job.Spec) {
		errs = append(errs, field.Invalid(path.Child("succeeded"), s.Succeeded, "cannot decrease the succeeded counter"))
	}
	if s.CompletionTime != nil && was.CompletionTime != nil && !s.CompletionTime.Equal(was.CompletionTime) {
		errs = append(errs, field.Invalid(path.Child("completionTime"), s.CompletionTime, "completionTime cannot be mutated"))
	}
	if was.StartTime != nil && s.StartTime == nil && (job.Spec.Suspend == nil || !*job.Spec.Suspend) {
		errs = append(errs, field.Required(path.Child("startTime"), "startTime cannot be removed for unsuspended job"))
	}
	return errs
}

func jobCounts(s *batchv1.JobStatus, path *field.Path) field.ErrorList {
	errs := nonNegative(path.Child("active"), s.Active)
	errs = append(errs, nonNegative(path.Child("succeeded"), s.Succeeded)...)
	errs = append(errs, nonNegative(path.Child("failed"), s.Failed)...)
	errs = append(errs, optional(path.Child("ready"), s.Ready)...)
	errs = append(errs, optional(path.Child("terminating"), s.Terminating)...)
	if s.Ready != nil && *s.Ready > s.Active {
		errs = append(errs, field.Invalid(path.Child("ready"), *s.Ready, "cannot set more ready pods than active"))
	}
	if s.UncountedTerminatedPods == nil {
		return errs
	}
	seen := unique{}
	p := path.Child("uncountedTerminatedPods")
	for name, list := range map[string][]types.UID{"failed": s.UncountedTerminatedPods.Failed, "succeeded": s.UncountedTerminatedPods.Succeeded} {
		for i, uid := range list {
			if uid == "" {
				errs = append(errs, field.Invalid(p.Child(name).Index(i), uid, "must not be empty"))
				continue
			}
			errs = append(errs, seen.check(p.Child(name).Index(i), string(uid))...)
		}
	}
	slices.SortFunc(errs, func(a, b *field.Error) int { return compareStrings(a.Field, b.Field) })
	return errs
}

func jobConditions(job *batchv1.Job, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	refuse := func(why string) {
		errs = append(errs, field.Invalid(path.Child("conditions"), field.OmitValueType{}, why))
	}
	s := &job.Status
	complete, failed := jobCondition(job, batchv1.JobComplete), jobCondition(job, batchv1.JobFailed)
	criteria, target := jobCondition(job, batchv1.JobSuccessCriteriaMet), jobCondition(job, batchv1.JobFailureTarget)
	if complete && failed {
		refuse("cannot set Complete=True and Failed=true conditions")
	}
	if complete && target {
		refuse("cannot set Complete=True and FailureTarget=true conditions")
	}
	if failed && !target {
		refuse("cannot set Failed=True condition without the FailureTarget=true condition")
	}
	if complete && !criteria {
		refuse("cannot set Complete=True condition without the SuccessCriteriaMet=true condition")
	}
	if criteria && failed {
		refuse("cannot set SuccessCriteriaMet=True and Failed=true conditions")
	}
	if criteria && target {
		refuse("cannot set SuccessCriteriaMet=True and FailureTarget=true conditions")
	}
	p := path.Child("completionTime")
	switch {
	case s.CompletionTime != nil && !complete:
		errs = append(errs, field.Invalid(p, s.CompletionTime, "cannot set completionTime when there is no Complete=True condition"))
	case s.CompletionTime == nil && complete:
		errs = append(errs, field.Required(p, "completionTime is required for Complete jobs"))
	case s.CompletionTime != nil && s.StartTime != nil && s.CompletionTime.Before(s.StartTime):
		errs = append(errs, field.Invalid(p, s.CompletionTime, "completionTime cannot be set before startTime"))
	}
	if !complete && !failed {
		return errs
	}
	if s.Active > 0 {
		errs = append(errs, field.Invalid(path.Child("active"), s.Active, "active>0 is invalid for finished job"))
	}
	if s.Terminating != nil && *s.Terminating > 0 {
		errs = append(errs, field.Invalid(path.Child("terminating"), *s.Terminating, "terminating>0 is invalid for finished job"))
	}
	if s.StartTime == nil {
		errs = append(errs, field.Required(path.Child("startTime"), "startTime is required for finished job"))
	}
	if u := s.UncountedTerminatedPods; u != nil && len(u.Failed)+len(u.Succeeded) > 0 {
		errs = append(errs, field.Invalid(path.Child("uncountedTerminatedPods"), u, "uncountedTerminatedPods needs to be empty for finished job"))
	}
	return errs
}

func jobIndexes(job *batchv1.Job, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	s, p := &job.Status, path.Child("completedIndexes")
	if s.CompletedIndexes != "" && !indexed(&job.Spec) {
		errs = append(errs, field.Invalid(p, s.CompletedIndexes, "cannot set non-empty completedIndexes when non-indexed completion mode"))
	}
	if s.FailedIndexes != nil && job.Spec.BackoffLimitPerIndex == nil {
		errs = append(errs, field.Invalid(path.Child("failedIndexes"), *s.FailedIndexes, "cannot set non-null failedIndexes when backoffLimitPerIndex is null"))
	}
	if job.Spec.Completions == nil {
		return errs
	}
	if _, err := countIndexes(s.CompletedIndexes, *job.Spec.Completions); err != nil {
		errs = append(errs, field.Invalid(p, s.CompletedIndexes, "error parsing completedIndexes: "+err.Error()))
	}
	if s.FailedIndexes != nil {
		if _, err := countIndexes(*s.FailedIndexes, *job.Spec.Completions); err != nil {
			errs = append(errs, field.Invalid(path.Child("failedIndexes"), *s.FailedIndexes, "error parsing failedIndexes: "+err.Error()))
		}
	}
	return errs
}
