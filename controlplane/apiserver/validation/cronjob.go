package validation

import (
	"regexp"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// maxCronJobName leaves room in the name of a Job for the time of its run.
const maxCronJobName = 52

// CronJob checks a CronJob.
func CronJob(c, old *batchv1.CronJob) field.ErrorList {
	spec, path := &c.Spec, field.NewPath("spec")
	var errs field.ErrorList
	var was batchv1.CronJobSpec
	if old != nil {
		was = old.Spec
	}
	errs = append(errs, cronSchedule(spec, was.Schedule, path.Child("schedule"))...)
	errs = append(errs, optional(path.Child("startingDeadlineSeconds"), spec.StartingDeadlineSeconds)...)
	if old == nil || !same(spec.TimeZone, was.TimeZone) {
		errs = append(errs, cronTimeZone(spec.TimeZone, path.Child("timeZone"))...)
	}
	errs = append(errs, oneOf(path.Child("concurrencyPolicy"), spec.ConcurrencyPolicy,
		batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent)...)
	job, p := &spec.JobTemplate.Spec, path.Child("jobTemplate", "spec")
	errs = append(errs, jobSpec(job, p)...)
	if job.Selector != nil {
		errs = append(errs, field.Invalid(p.Child("selector"), job.Selector, "`selector` will be auto-generated"))
	}
	if m := job.ManualSelector; m != nil && *m {
		errs = append(errs, field.NotSupported(p.Child("manualSelector"), *m, []string{"nil", "false"}))
	}
	errs = append(errs, optional(path.Child("successfulJobsHistoryLimit"), spec.SuccessfulJobsHistoryLimit)...)
	errs = append(errs, optional(path.Child("failedJobsHistoryLimit"), spec.FailedJobsHistoryLimit)...)
	if old == nil && len(c.Name) > maxCronJobName {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), c.Name, "must be no more than 52 characters"))
	}
	return errs
}

// cronSchedule checks a schedule. One that had a time zone in it may keep it.
func cronSchedule(spec *batchv1.CronJobSpec, was string, p *field.Path) field.ErrorList {
	if spec.Schedule == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	var errs field.ErrorList
	if _, err := cron.ParseStandard(spec.Schedule); err != nil {
		errs = append(errs, field.Invalid(p, spec.Schedule, err.Error()))
	}
	switch {
	case !strings.Contains(spec.Schedule, "TZ"):
	case !strings.Contains(was, "TZ"):
		errs = append(errs, field.Invalid(p, spec.Schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"))
	case spec.TimeZone != nil:
		errs = append(errs, field.Invalid(p, spec.Schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule"))
	}
	return errs
}

// zonePart is a part of the name of a time zone, as the time zone database writes
// them; digits and plus are of older names.
var zonePart = regexp.MustCompile(`^[A-Za-z._0-9+][A-Za-z._0-9+-]{0,13}$`)

func cronTimeZone(zone *string, p *field.Path) field.ErrorList {
	switch {
	case zone == nil:
		return nil
	case *zone == "":
		return field.ErrorList{field.Invalid(p, *zone, "timeZone must be nil or non-empty string")}
	case strings.EqualFold(*zone, "Local"):
		return field.ErrorList{field.Invalid(p, *zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones")}
	}
	for part := range strings.SplitSeq(*zone, "/") {
		if part == "." || part == ".." || !zonePart.MatchString(part) {
			return field.ErrorList{field.Invalid(p, *zone, "unknown time zone "+*zone)}
		}
	}
	if _, err := time.LoadLocation(*zone); err != nil {
		return field.ErrorList{field.Invalid(p, *zone, err.Error())}
	}
	return nil
}
