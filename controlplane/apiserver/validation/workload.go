package validation

import (
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Deployment checks a Deployment.
func Deployment(d, old *appsv1.Deployment) field.ErrorList {
	path := field.NewPath("spec")
	errs := workload(d.Spec.Replicas, d.Spec.Selector, &d.Spec.Template, path)
	errs = append(errs, strategy(&d.Spec.Strategy, path.Child("strategy"))...)
	errs = append(errs, nonNegative(path.Child("minReadySeconds"), d.Spec.MinReadySeconds)...)
	if n := d.Spec.RevisionHistoryLimit; n != nil {
		errs = append(errs, nonNegative(path.Child("revisionHistoryLimit"), *n)...)
	}
	if n := d.Spec.ProgressDeadlineSeconds; n != nil {
		errs = append(errs, nonNegative(path.Child("progressDeadlineSeconds"), *n)...)
		if *n <= d.Spec.MinReadySeconds {
			errs = append(errs, field.Invalid(path.Child("progressDeadlineSeconds"), *n, "must be greater than minReadySeconds"))
		}
	}
	if old != nil {
		errs = append(errs, sameSelector(d.Spec.Selector, old.Spec.Selector, path)...)
	}
	return errs
}

// ReplicaSet checks a ReplicaSet.
func ReplicaSet(rs, old *appsv1.ReplicaSet) field.ErrorList {
	path := field.NewPath("spec")
	errs := workload(rs.Spec.Replicas, rs.Spec.Selector, &rs.Spec.Template, path)
	errs = append(errs, nonNegative(path.Child("minReadySeconds"), rs.Spec.MinReadySeconds)...)
	if old != nil {
		errs = append(errs, sameSelector(rs.Spec.Selector, old.Spec.Selector, path)...)
	}
	return errs
}

// ReplicationController checks a ReplicationController.
func ReplicationController(rc, _ *corev1.ReplicationController) field.ErrorList {
	path := field.NewPath("spec")
	errs := nonNegative(path.Child("minReadySeconds"), rc.Spec.MinReadySeconds)
	if len(rc.Spec.Selector) == 0 {
		errs = append(errs, field.Required(path.Child("selector"), ""))
	}
	if rc.Spec.Template == nil {
		return append(errs, field.Required(path.Child("template"), ""))
	}
	if len(errs) > 0 {
		return errs
	}
	return workload(rc.Spec.Replicas, &metav1.LabelSelector{MatchLabels: rc.Spec.Selector}, rc.Spec.Template, path)
}

// ControllerRevision checks a ControllerRevision, whose data never changes.
func ControllerRevision(r, old *appsv1.ControllerRevision) field.ErrorList {
	errs := nonNegative(field.NewPath("revision"), r.Revision)
	if old == nil {
		if len(r.Data.Raw) == 0 && r.Data.Object == nil {
			errs = append(errs, field.Required(field.NewPath("data"), "data is mandatory"))
		}
		return errs
	}
	return append(errs, apivalidation.ValidateImmutableField(r.Data, old.Data, field.NewPath("data"))...)
}

func sameSelector(now, old *metav1.LabelSelector, path *field.Path) field.ErrorList {
	return apivalidation.ValidateImmutableField(now, old, path.Child("selector"))
}

// workload checks what every workload with replicas of a template has.
func workload(replicas *int32, selector *metav1.LabelSelector, template *corev1.PodTemplateSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if replicas != nil {
		errs = append(errs, nonNegative(path.Child("replicas"), *replicas)...)
	}
	errs = append(errs, selects("deployment", selector, template.Labels, path)...)
	return append(errs, podTemplate("this workload", template, path.Child("template"))...)
}

// podTemplate checks the template of pods that are to run for ever; kind words the
// messages.
func podTemplate(kind string, template *corev1.PodTemplateSpec, p *field.Path) field.ErrorList {
	errs := metavalidation.ValidateLabels(template.Labels, p.Child("metadata", "labels"))
	errs = append(errs, apivalidation.ValidateAnnotations(template.Annotations, p.Child("metadata", "annotations"))...)
	errs = append(errs, PodSpec(&template.Spec, p.Child("spec"))...)
	if len(template.Spec.EphemeralContainers) > 0 {
		errs = append(errs, field.Forbidden(p.Child("spec", "ephemeralContainers"), "ephemeral containers not allowed in pod template"))
	}
	if r := template.Spec.RestartPolicy; r != corev1.RestartPolicyAlways && r != "" {
		errs = append(errs, field.NotSupported(p.Child("spec", "restartPolicy"), r, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
	}
	if template.Spec.ActiveDeadlineSeconds != nil {
		errs = append(errs, field.Forbidden(p.Child("spec", "activeDeadlineSeconds"), "activeDeadlineSeconds in "+kind+" is not Supported"))
	}
	return errs
}

// selects checks that the selector of a kind is there, is not empty and matches
// the labels.
func selects(kind string, selector *metav1.LabelSelector, have map[string]string, path *field.Path) field.ErrorList {
	p := path.Child("selector")
	if selector == nil {
		return field.ErrorList{field.Required(p, "")}
	}
	errs := metavalidation.ValidateLabelSelector(selector, metavalidation.LabelSelectorValidationOptions{}, p)
	if len(selector.MatchLabels)+len(selector.MatchExpressions) == 0 {
		errs = append(errs, field.Invalid(p, selector, "empty selector is invalid for "+kind))
	}
	if len(errs) > 0 {
		return errs
	}
	compiled, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return append(errs, field.Invalid(p, selector, "invalid label selector"))
	}
	if !compiled.Matches(labels.Set(have)) {
		errs = append(errs, field.Invalid(path.Child("template", "metadata", "labels"), have, "`selector` does not match template `labels`"))
	}
	return errs
}

func strategy(s *appsv1.DeploymentStrategy, path *field.Path) field.ErrorList {
	switch s.Type {
	case appsv1.RecreateDeploymentStrategyType:
		if s.RollingUpdate != nil {
			return field.ErrorList{field.Forbidden(path.Child("rollingUpdate"), "may not be specified when strategy `type` is 'Recreate'")}
		}
		return nil
	case appsv1.RollingUpdateDeploymentStrategyType:
	default:
		return field.ErrorList{field.NotSupported(path, s.Type, []appsv1.DeploymentStrategyType{
			appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType,
		})}
	}
	p := path.Child("rollingUpdate")
	if s.RollingUpdate == nil {
		return field.ErrorList{field.Required(p, "this should be defaulted and never be nil")}
	}
	errs := amount(s.RollingUpdate.MaxUnavailable, p.Child("maxUnavailable"))
	errs = append(errs, amount(s.RollingUpdate.MaxSurge, p.Child("maxSurge"))...)
	if isZero(s.RollingUpdate.MaxUnavailable) && isZero(s.RollingUpdate.MaxSurge) {
		errs = append(errs, field.Invalid(p.Child("maxUnavailable"), s.RollingUpdate.MaxUnavailable, "may not be 0 when `maxSurge` is 0"))
	}
	if n, ok := percent(s.RollingUpdate.MaxUnavailable); ok && n > 100 {
		errs = append(errs, field.Invalid(p.Child("maxUnavailable"), s.RollingUpdate.MaxUnavailable, "must not be greater than 100%"))
	}
	return errs
}

// amount checks a number or percentage.
func amount(v *intstr.IntOrString, p *field.Path) field.ErrorList {
	if v == nil {
		return nil
	}
	if v.Type == intstr.Int {
		return nonNegative(p, v.IntVal)
	}
	if _, ok := percent(v); !ok {
		return field.ErrorList{field.Invalid(p, v, "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%', or '93%', regex used for validation is '[0-9]+%')")}
	}
	return nil
}

func percent(v *intstr.IntOrString) (int, bool) {
	if v == nil || v.Type != intstr.String || !strings.HasSuffix(v.StrVal, "%") {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(v.StrVal, "%"), 10, 31)
	return int(n), err == nil
}

func isZero(v *intstr.IntOrString) bool {
	if v == nil {
		return false
	}
	if v.Type == intstr.Int {
		return v.IntVal == 0
	}
	n, ok := percent(v)
	return ok && n == 0
}

// same tells whether two values are equal as Kubernetes compares them.
func same(a, b any) bool { return equality.Semantic.DeepEqual(a, b) }
