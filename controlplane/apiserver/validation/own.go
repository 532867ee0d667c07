package validation

import (
	"path"
	"regexp"
	"strings"
	"time"
	// The zone names must be known on machines without a zone database.
	_ "time/tzdata"

	"github.com/robfig/cron/v3"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

var (
	// remoteURL is http(s), ssh or file, or scp's form of ssh: user@host:path.
	remoteURL = regexp.MustCompile(`^(https?|ssh|file)://[^\s]+$|^[A-Za-z0-9_.-]+@[A-Za-z0-9_.-]+:[^\s]+$`)
	commitSHA = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)
)

// minInterval keeps a typing error from hammering a Git server.
const minInterval = time.Second

// Application checks an Application.
func Application(a, _ *v1alpha1.Application) field.ErrorList {
	spec := field.NewPath("spec")
	errs := source(&a.Spec.Source, spec.Child("source"))
	errs = append(errs, syncSpec(&a.Spec.Sync, spec.Child("sync"))...)
	errs = append(errs, oneOf(spec.Child("images", "resolve"), a.Spec.Images.Resolve, v1alpha1.ResolveDigest, v1alpha1.ResolveOff)...)
	if n := a.Spec.History.Limit; n != nil && *n < 1 {
		errs = append(errs, field.Invalid(spec.Child("history", "limit"), *n, "must be greater than 0"))
	}
	return append(errs, operation(a.Operation, field.NewPath("operation"))...)
}

func source(s *v1alpha1.Source, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if s.RepoURL != "" && !remoteURL.MatchString(s.RepoURL) {
		errs = append(errs, field.Invalid(p.Child("repoURL"), s.RepoURL, "must be an http(s), ssh or file URL, or empty for the embedded Git server"))
	}
	if strings.ContainsAny(s.Ref, "\x00\n\r") || strings.HasPrefix(s.Ref, "-") {
		errs = append(errs, field.Invalid(p.Child("ref"), s.Ref, "must be a branch, a tag, a semver range or a commit"))
	}
	if path.IsAbs(s.Path) {
		errs = append(errs, field.Invalid(p.Child("path"), s.Path, "must be a relative path"))
	}
	errs = append(errs, noBackSteps(p.Child("path"), s.Path)...)
	return append(errs, reference(s.SecretRef, p.Child("secretRef"))...)
}

func reference(r *v1alpha1.LocalReference, p *field.Path) field.ErrorList {
	if r == nil {
		return nil
	}
	return requiredSubdomain(p.Child("name"), r.Name)
}

func syncSpec(s *v1alpha1.Sync, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if s.Interval != nil && s.Interval.Duration != 0 && s.Interval.Duration < minInterval {
		errs = append(errs, field.Invalid(p.Child("interval"), s.Interval.Duration.String(), "must be 0 or at least "+minInterval.String()))
	}
	if s.Timeout != nil && s.Timeout.Duration <= 0 {
		errs = append(errs, field.Invalid(p.Child("timeout"), s.Timeout.Duration.String(), "must be greater than 0"))
	}
	if s.Schedule != "" {
		errs = append(errs, schedule(p.Child("schedule"), s.Schedule)...)
	}
	if s.TimeZone != "" {
		errs = append(errs, timeZone(p.Child("timeZone"), s)...)
	}
	return append(errs, reference(s.WebhookSecretRef, p.Child("webhookSecretRef"))...)
}

func schedule(p *field.Path, value string) field.ErrorList {
	if strings.Contains(value, "TZ=") {
		return field.ErrorList{field.Invalid(p, value, "must not contain a time zone: use timeZone")}
	}
	if _, err := cron.ParseStandard(value); err != nil {
		return field.ErrorList{field.Invalid(p, value, "must be a cron expression of five fields: "+err.Error())}
	}
	return nil
}

func timeZone(p *field.Path, s *v1alpha1.Sync) field.ErrorList {
	if s.Schedule == "" {
		return field.ErrorList{field.Invalid(p, s.TimeZone, "has no meaning without schedule")}
	}
	if _, err := time.LoadLocation(s.TimeZone); err != nil || s.TimeZone == "Local" {
		return field.ErrorList{field.Invalid(p, s.TimeZone, "must be the IANA name of a time zone")}
	}
	return nil
}

func operation(o *v1alpha1.Operation, p *field.Path) field.ErrorList {
	if o == nil {
		return nil
	}
	var errs field.ErrorList
	if o.ID == "" {
		errs = append(errs, field.Required(p.Child("id"), ""))
	}
	count := 0
	for _, set := range []bool{o.Sync != nil, o.Rollback != nil, o.Hold != nil, o.Resume != nil} {
		if set {
			count++
		}
	}
	if count != 1 {
		errs = append(errs, field.Invalid(p, o.ID, "must have exactly one of `sync`, `rollback`, `hold` and `resume`"))
	}
	return errs
}

// Revision checks a Revision, whose spec is written once.
func Revision(r, old *v1alpha1.Revision) field.ErrorList {
	spec := field.NewPath("spec")
	errs := requiredLabel(spec.Child("application"), r.Spec.Application)
	if !commitSHA.MatchString(r.Spec.Commit) {
		errs = append(errs, field.Invalid(spec.Child("commit"), r.Spec.Commit, "must be a full commit SHA"))
	}
	if r.Spec.Number < 1 {
		errs = append(errs, field.Invalid(spec.Child("number"), r.Spec.Number, "must be greater than 0"))
	}
	if old != nil {
		now, before := r.Spec.DeepCopy(), old.Spec.DeepCopy()
		// A stored time has no fraction of a second.
		now.CommittedAt, before.CommittedAt = metav1.Time{}, metav1.Time{}
		if !same(now, before) {
			errs = append(errs, apivalidation.ValidateImmutableField(r.Spec, old.Spec, spec)...)
		}
	}
	return errs
}
