package validation

import (
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The limits of Jobs with indexes: all of them have to fit into the status.
const (
	maxParallelismIndexed = 100_000
	maxFailedIndexes      = 100_000
	manyCompletions       = 100_000
	maxWithMany           = 10_000
	maxManagedByLength    = 63
)

// The labels that bind pods to their Job, those of today and those before them.
const (
	legacyControllerUIDLabel = "controller-uid"
	legacyJobNameLabel       = "job-name"
)

// JobLabels are the labels that the pods of a Job have when its selector is
// generated.
func JobLabels(job *batchv1.Job) map[string]string {
	return map[string]string{
		legacyJobNameLabel: job.Name, batchv1.JobNameLabel: job.Name,
		legacyControllerUIDLabel: string(job.UID), batchv1.ControllerUidLabel: string(job.UID),
	}
}

// Job checks a Job, and on update that only what may change has.
func Job(job, old *batchv1.Job) field.ErrorList {
	path := field.NewPath("spec")
	errs := generatedSelector(job, path)
	errs = append(errs, jobSpec(&job.Spec, path)...)
	if job.Spec.Selector == nil {
		errs = append(errs, field.Required(path.Child("selector"), ""))
	} else {
		errs = append(errs, metavalidation.ValidateLabelSelector(job.Spec.Selector, metavalidation.LabelSelectorValidationOptions{}, path.Child("selector"))...)
	}
	if s, err := metav1.LabelSelectorAsSelector(job.Spec.Selector); err == nil && !s.Matches(labels.Set(job.Spec.Template.Labels)) {
		errs = append(errs, field.Invalid(path.Child("template", "metadata", "labels"), job.Spec.Template.Labels, "`selector` does not match template `labels`"))
	}
	if old != nil {
		return append(errs, jobUpdate(job, old, path)...)
	}
	if indexed(&job.Spec) && job.Spec.Completions != nil && *job.Spec.Completions > 0 {
		last := fmt.Sprintf("%s-%d", job.Name, *job.Spec.Completions-1)
		if len(utilvalidation.IsDNS1123Label(last)) > 0 {
			errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), job.Name, "will not able to create pod with invalid DNS label: "+last))
		}
	}
	return errs
}

// generatedSelector checks that a selector that was not given by hand selects the
// pods of this Job alone.
func generatedSelector(job *batchv1.Job, path *field.Path) field.ErrorList {
	if m := job.Spec.ManualSelector; m != nil && *m || job.Spec.Selector == nil {
		return nil
	}
	var errs field.ErrorList
	p := path.Child("template", "metadata", "labels")
	want := JobLabels(job)
	for _, key := range []string{legacyControllerUIDLabel, legacyJobNameLabel, batchv1.ControllerUidLabel, batchv1.JobNameLabel} {
		have, ok := job.Spec.Template.Labels[key]
		switch {
		case !ok:
			errs = append(errs, field.Required(p.Key(key), fmt.Sprintf("must be '%s'", want[key])))
		case have != want[key]:
			errs = append(errs, field.Invalid(p.Key(key), job.Spec.Template.Labels, fmt.Sprintf("must be '%s'", want[key])))
		}
	}
	if s, err := metav1.LabelSelectorAsSelector(job.Spec.Selector); err == nil && !s.Matches(labels.Set(want)) {
		errs = append(errs, field.Invalid(path.Child("selector"), job.Spec.Selector, "`selector` not auto-generated"))
	}
	return errs
}

func indexed(spec *batchv1.JobSpec) bool {
	return spec.CompletionMode != nil && *spec.CompletionMode == batchv1.IndexedCompletion
}

// optional checks a number that may be left out.
func optional[T ~int32 | ~int64](p *field.Path, value *T) field.ErrorList {
	if value == nil {
		return nil
	}
	return nonNegative(p, *value)
}

// jobSpec checks a Job's spec, in the template of a CronJob or not.
func jobSpec(spec *batchv1.JobSpec, path *field.Path) field.ErrorList {
	errs := optional(path.Child("parallelism"), spec.Parallelism)
	errs = append(errs, optional(path.Child("completions"), spec.Completions)...)
	errs = append(errs, optional(path.Child("activeDeadlineSeconds"), spec.ActiveDeadlineSeconds)...)
	errs = append(errs, optional(path.Child("backoffLimit"), spec.BackoffLimit)...)
	errs = append(errs, optional(path.Child("ttlSecondsAfterFinished"), spec.TTLSecondsAfterFinished)...)
	errs = append(errs, optional(path.Child("backoffLimitPerIndex"), spec.BackoffLimitPerIndex)...)
	errs = append(errs, optional(path.Child("maxFailedIndexes"), spec.MaxFailedIndexes)...)
	if spec.MaxFailedIndexes != nil && spec.BackoffLimitPerIndex == nil {
		errs = append(errs, field.Required(path.Child("backoffLimitPerIndex"), "when maxFailedIndexes is specified"))
	}
	if m := spec.ManagedBy; m != nil {
		errs = append(errs, utilvalidation.IsDomainPrefixedPath(path.Child("managedBy"), *m)...)
		if len(*m) > maxManagedByLength {
			errs = append(errs, field.TooLong(path.Child("managedBy"), *m, maxManagedByLength))
		}
	}
	if m := spec.CompletionMode; m != nil && *m != batchv1.NonIndexedCompletion && *m != batchv1.IndexedCompletion {
		errs = append(errs, field.NotSupported(path.Child("completionMode"), *m, []batchv1.CompletionMode{batchv1.NonIndexedCompletion, batchv1.IndexedCompletion}))
	}
	if indexed(spec) {
		errs = append(errs, indexedSpec(spec, path)...)
	} else {
		const need = "requires indexed completion mode"
		if spec.BackoffLimitPerIndex != nil {
			errs = append(errs, field.Invalid(path.Child("backoffLimitPerIndex"), *spec.BackoffLimitPerIndex, need))
		}
		if spec.MaxFailedIndexes != nil {
			errs = append(errs, field.Invalid(path.Child("maxFailedIndexes"), *spec.MaxFailedIndexes, need))
		}
		if spec.SuccessPolicy != nil {
			errs = append(errs, field.Invalid(path.Child("successPolicy"), *spec.SuccessPolicy, need))
		}
	}
	if spec.PodFailurePolicy != nil {
		errs = append(errs, podFailurePolicy(spec, path.Child("podFailurePolicy"))...)
	}
	errs = append(errs, podReplacementPolicy(spec, path.Child("podReplacementPolicy"))...)
	return append(errs, jobTemplate(spec, path.Child("template"))...)
}

func indexedSpec(spec *batchv1.JobSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if p := spec.Parallelism; p != nil && *p > maxParallelismIndexed {
		errs = append(errs, field.Invalid(path.Child("parallelism"), *p,
			fmt.Sprintf("must be less than or equal to %d when completion mode is %s", maxParallelismIndexed, batchv1.IndexedCompletion)))
	}
	if f := spec.MaxFailedIndexes; f != nil && *f > maxFailedIndexes {
		errs = append(errs, field.Invalid(path.Child("maxFailedIndexes"), *f, fmt.Sprintf("must be less than or equal to %d", maxFailedIndexes)))
	}
	if spec.Completions == nil {
		return append(errs, field.Required(path.Child("completions"), fmt.Sprintf("when completion mode is %s", batchv1.IndexedCompletion)))
	}
	if f := spec.MaxFailedIndexes; f != nil && *f > *spec.Completions {
		errs = append(errs, field.Invalid(path.Child("maxFailedIndexes"), *f, "must be less than or equal to completions"))
	}
	if spec.SuccessPolicy != nil {
		errs = append(errs, successPolicy(spec, path.Child("successPolicy"))...)
	}
	if *spec.Completions <= manyCompletions || spec.BackoffLimitPerIndex == nil {
		return errs
	}
	limit := fmt.Sprintf("must be less than or equal to %d when completions are above %d and used with backoff limit per index", maxWithMany, manyCompletions)
	if spec.MaxFailedIndexes == nil {
		errs = append(errs, field.Required(path.Child("maxFailedIndexes"), fmt.Sprintf("must be specified when completions is above %d", manyCompletions)))
	} else if *spec.MaxFailedIndexes > maxWithMany {
		errs = append(errs, field.Invalid(path.Child("maxFailedIndexes"), *spec.MaxFailedIndexes, limit))
	}
	if p := spec.Parallelism; p != nil && *p > maxWithMany {
		errs = append(errs, field.Invalid(path.Child("parallelism"), *p, limit))
	}
	return errs
}

// jobTemplate checks the template of pods that are to end.
func jobTemplate(spec *batchv1.JobSpec, p *field.Path) field.ErrorList {
	t := &spec.Template
	errs := metavalidation.ValidateLabels(t.Labels, p.Child("metadata", "labels"))
	errs = append(errs, apivalidation.ValidateAnnotations(t.Annotations, p.Child("metadata", "annotations"))...)
	errs = append(errs, PodSpec(&t.Spec, p.Child("spec"))...)
	p = p.Child("spec", "restartPolicy")
	once := []corev1.RestartPolicy{corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}
	switch r := t.Spec.RestartPolicy; {
	case r == corev1.RestartPolicyAlways, r == "":
		errs = append(errs, field.Required(p, fmt.Sprintf("valid values: %q, %q", once[0], once[1])))
	case slices.Contains(once, r) && spec.PodFailurePolicy != nil && r != corev1.RestartPolicyNever:
		errs = append(errs, field.Invalid(p, r, fmt.Sprintf("only %q is supported when podFailurePolicy is specified", corev1.RestartPolicyNever)))
	}
	return errs
}

// jobUpdate checks what may change of a Job: its size, its limits, whether it runs,
// and while it does not, where and with what its pods will.
func jobUpdate(job, old *batchv1.Job, path *field.Path) field.ErrorList {
	spec, was := &job.Spec, &old.Spec
	var errs field.ErrorList
	p := path.Child("completions")
	switch {
	case !indexed(spec):
		errs = append(errs, apivalidation.ValidateImmutableField(spec.Completions, was.Completions, p)...)
	case spec.Completions == nil || same(spec.Completions, was.Completions):
	case spec.Parallelism == nil || *spec.Completions != *spec.Parallelism:
		errs = append(errs, field.Invalid(p, *spec.Completions, "can only be modified in tandem with "+path.Child("parallelism").String()))
	}
	for _, f := range []struct {
		name     string
		now, was any
	}{
		{"selector", spec.Selector, was.Selector},
		{"template", spec.Template, mutableTemplate(spec, old)},
		{"completionMode", spec.CompletionMode, was.CompletionMode},
		{"podFailurePolicy", spec.PodFailurePolicy, was.PodFailurePolicy},
		{"backoffLimitPerIndex", spec.BackoffLimitPerIndex, was.BackoffLimitPerIndex},
		{"managedBy", spec.ManagedBy, was.ManagedBy},
		{"successPolicy", spec.SuccessPolicy, was.SuccessPolicy},
	} {
		errs = append(errs, apivalidation.ValidateImmutableField(f.now, f.was, path.Child(f.name))...)
	}
	return errs
}

// mutableTemplate is the old template with all that may change taken from the new
// one: of a Job that is suspended and has no pods, scheduling directives (KEP-2926)
// and resources (KEP-5440).
func mutableTemplate(spec *batchv1.JobSpec, old *batchv1.Job) corev1.PodTemplateSpec {
	was := *old.Spec.Template.DeepCopy()
	suspended := old.Spec.Suspend != nil && *old.Spec.Suspend
	if !suspended || old.Status.StartTime != nil && !jobCondition(old, batchv1.JobSuspended) {
		return was
	}
	now := &spec.Template
	was.Labels, was.Annotations = now.Labels, now.Annotations
	was.Spec.NodeSelector, was.Spec.Tolerations, was.Spec.SchedulingGates = now.Spec.NodeSelector, now.Spec.Tolerations, now.Spec.SchedulingGates
	switch a, b := now.Spec.Affinity, was.Spec.Affinity; {
	case a != nil && b != nil:
		b.NodeAffinity = a.NodeAffinity
	case a != nil:
		was.Spec.Affinity = &corev1.Affinity{NodeAffinity: a.NodeAffinity}
	case b != nil:
		if b.NodeAffinity = nil; same(*b, corev1.Affinity{}) {
			was.Spec.Affinity = nil
		}
	}
	for _, lists := range [][2][]corev1.Container{{was.Spec.Containers, now.Spec.Containers}, {was.Spec.InitContainers, now.Spec.InitContainers}} {
		for i := range min(len(lists[0]), len(lists[1])) {
			lists[0][i].Resources = lists[1][i].Resources
		}
	}
	return was
}

func jobCondition(job *batchv1.Job, t batchv1.JobConditionType) bool {
	return slices.ContainsFunc(job.Status.Conditions, func(c batchv1.JobCondition) bool {
		return c.Type == t && c.Status == corev1.ConditionTrue
	})
}
