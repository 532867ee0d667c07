package validation

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	maxPolicyRules      = 20
	maxPolicyConditions = 20
	maxPolicyExitCodes  = 255
	maxIndexesLength    = 64 * 1024
)

// enumerated checks an enumeration whose message lists the values also when there
// is none.
func enumerated[T ~string](p *field.Path, value T, allowed ...T) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(p, fmt.Sprintf("valid values: %q", allowed))}
	}
	if !slices.Contains(allowed, value) {
		return field.ErrorList{field.NotSupported(p, value, allowed)}
	}
	return nil
}

// podFailurePolicy checks which failures count (KEP-3329).
func podFailurePolicy(spec *batchv1.JobSpec, path *field.Path) field.ErrorList {
	rules, path := spec.PodFailurePolicy.Rules, path.Child("rules")
	var errs field.ErrorList
	if len(rules) > maxPolicyRules {
		errs = append(errs, field.TooMany(path, len(rules), maxPolicyRules))
	}
	for i := range rules {
		r, p := &rules[i], path.Index(i)
		errs = append(errs, enumerated(p.Child("action"), r.Action, batchv1.PodFailurePolicyActionCount, batchv1.PodFailurePolicyActionFailIndex,
			batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyActionIgnore)...)
		if r.Action == batchv1.PodFailurePolicyActionFailIndex && spec.BackoffLimitPerIndex == nil {
			errs = append(errs, field.Invalid(p.Child("action"), r.Action, "requires the backoffLimitPerIndex to be set"))
		}
		if r.OnExitCodes != nil {
			errs = append(errs, onExitCodes(r.OnExitCodes, &spec.Template.Spec, p.Child("onExitCodes"))...)
		}
		errs = append(errs, onPodConditions(r.OnPodConditions, p.Child("onPodConditions"))...)
		switch {
		case r.OnExitCodes != nil && len(r.OnPodConditions) > 0:
			errs = append(errs, field.Invalid(p, field.OmitValueType{}, "specifying both OnExitCodes and OnPodConditions is not supported"))
		case r.OnExitCodes == nil && len(r.OnPodConditions) == 0:
			errs = append(errs, field.Invalid(p, field.OmitValueType{}, "specifying one of OnExitCodes and OnPodConditions is required"))
		}
	}
	return errs
}

func onExitCodes(r *batchv1.PodFailurePolicyOnExitCodesRequirement, spec *corev1.PodSpec, path *field.Path) field.ErrorList {
	errs := enumerated(path.Child("operator"), r.Operator, batchv1.PodFailurePolicyOnExitCodesOpIn, batchv1.PodFailurePolicyOnExitCodesOpNotIn)
	if n := r.ContainerName; n != nil {
		named := func(c corev1.Container) bool { return c.Name == *n }
		if !slices.ContainsFunc(spec.Containers, named) && !slices.ContainsFunc(spec.InitContainers, named) {
			errs = append(errs, field.Invalid(path.Child("containerName"), *n, "must be one of the container or initContainer names in the pod template"))
		}
	}
	p := path.Child("values")
	switch {
	case len(r.Values) == 0:
		errs = append(errs, field.Invalid(p, r.Values, "at least one value is required"))
	case len(r.Values) > maxPolicyExitCodes:
		errs = append(errs, field.TooMany(p, len(r.Values), maxPolicyExitCodes))
	}
	for i, v := range r.Values {
		if r.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn && v == 0 {
			errs = append(errs, field.Invalid(p.Index(i), v, "must not be 0 for the In operator"))
		}
		if slices.Contains(r.Values[:i], v) {
			errs = append(errs, field.Duplicate(p.Index(i), v))
		}
	}
	if !slices.IsSorted(r.Values) {
		errs = append(errs, field.Invalid(p, r.Values, "must be ordered"))
	}
	return errs
}

func onPodConditions(list []batchv1.PodFailurePolicyOnPodConditionsPattern, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(list) > maxPolicyConditions {
		errs = append(errs, field.TooMany(path, len(list), maxPolicyConditions))
	}
	for i, c := range list {
		errs = append(errs, check(path.Index(i).Child("type"), string(c.Type), utilvalidation.IsQualifiedName)...)
		errs = append(errs, enumerated(path.Index(i).Child("status"), c.Status, corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown)...)
	}
	return errs
}

// podReplacementPolicy checks when a pod is replaced (KEP-3939).
func podReplacementPolicy(spec *batchv1.JobSpec, path *field.Path) field.ErrorList {
	if spec.PodReplacementPolicy == nil {
		return nil
	}
	allowed := []batchv1.PodReplacementPolicy{batchv1.Failed}
	if spec.PodFailurePolicy == nil {
		allowed = append(allowed, batchv1.TerminatingOrFailed)
	}
	if !slices.Contains(allowed, *spec.PodReplacementPolicy) {
		return field.ErrorList{field.NotSupported(path, *spec.PodReplacementPolicy, allowed)}
	}
	return nil
}

// successPolicy checks when some of the indexes are enough (KEP-3998).
func successPolicy(spec *batchv1.JobSpec, path *field.Path) field.ErrorList {
	rules, path := spec.SuccessPolicy.Rules, path.Child("rules")
	var errs field.ErrorList
	if len(rules) == 0 {
		errs = append(errs, field.Required(path, "at least one rules must be specified when the successPolicy is specified"))
	}
	if len(rules) > maxPolicyRules {
		errs = append(errs, field.TooMany(path, len(rules), maxPolicyRules))
	}
	for i, r := range rules {
		p := path.Index(i)
		if r.SucceededCount == nil && r.SucceededIndexes == nil {
			errs = append(errs, field.Required(p, "at least one of succeededCount or succeededIndexes must be specified"))
		}
		total := int32(0)
		if r.SucceededIndexes != nil {
			p := p.Child("succeededIndexes")
			if len(*r.SucceededIndexes) > maxIndexesLength {
				errs = append(errs, field.TooLong(p, *r.SucceededIndexes, maxIndexesLength))
			}
			var err error
			if total, err = countIndexes(*r.SucceededIndexes, *spec.Completions); err != nil {
				errs = append(errs, field.Invalid(p, *r.SucceededIndexes, "error parsing succeededIndexes: "+err.Error()))
			}
		}
		if n := r.SucceededCount; n != nil {
			p := p.Child("succeededCount")
			errs = append(errs, nonNegative(p, *n)...)
			if *n > *spec.Completions {
				errs = append(errs, field.Invalid(p, *n, fmt.Sprintf("must be less than or equal to %d (the number of specified completions)", *spec.Completions)))
			}
			if r.SucceededIndexes != nil && *n > total {
				errs = append(errs, field.Invalid(p, *n, fmt.Sprintf("must be less than or equal to %d (the number of indexes in the specified succeededIndexes field)", total)))
			}
		}
	}
	return errs
}

// countIndexes counts the indexes of a list like "1,3-5,7", which is in increasing
// order and stays below completions.
func countIndexes(text string, completions int32) (int32, error) {
	if text == "" {
		return 0, nil
	}
	total, last := int32(0), int32(-1)
	for _, part := range strings.Split(text, ",") {
		from, to, isRange := strings.Cut(part, "-")
		first, err := indexOf(from, completions)
		if err != nil {
			return 0, err
		}
		end := first
		if isRange {
			if end, err = indexOf(to, completions); err != nil {
				return 0, err
			}
		}
		switch {
		case first <= last:
			return 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", last, first)
		case isRange && end <= first:
			return 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", first, end)
		}
		total += end - first + 1
		last = end
	}
	return total, nil
}

func indexOf(text string, completions int32) (int32, error) {
	n, err := strconv.ParseInt(text, 10, 32)
	switch {
	case errors.Is(err, strconv.ErrSyntax), err == nil && n < 0:
		return 0, fmt.Errorf("cannot convert string to integer for index: %q", text)
	case err != nil, int32(n) >= completions:
		return 0, fmt.Errorf("too large index: %q", text)
	}
	return int32(n), nil
}
