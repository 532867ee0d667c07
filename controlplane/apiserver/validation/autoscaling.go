package validation

import (
	"fmt"
	"reflect"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	pathvalidation "k8s.io/apimachinery/pkg/api/validation/path"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Bounds of an autoscaler's behavior, in seconds.
const (
	maxStabilizationWindow = 3600
	maxPolicyPeriod        = 1800
)

// HorizontalPodAutoscaler checks a HorizontalPodAutoscaler.
func HorizontalPodAutoscaler(a, _ *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList {
	spec, path := &a.Spec, field.NewPath("spec")
	var errs field.ErrorList
	least := int32(0)
	if spec.MinReplicas != nil {
		if least = *spec.MinReplicas; least < 1 {
			errs = append(errs, field.Invalid(path.Child("minReplicas"), least, "must be greater than or equal to 1"))
		}
	}
	if spec.MaxReplicas < 1 {
		errs = append(errs, field.Invalid(path.Child("maxReplicas"), spec.MaxReplicas, "must be greater than 0"))
	}
	if spec.MaxReplicas < least {
		errs = append(errs, field.Invalid(path.Child("maxReplicas"), spec.MaxReplicas, "must be greater than or equal to `minReplicas`"))
	}
	errs = append(errs, objectReference(&spec.ScaleTargetRef, path.Child("scaleTargetRef"))...)
	for i := range spec.Metrics {
		errs = append(errs, metric(&spec.Metrics[i], path.Child("metrics").Index(i))...)
	}
	if b := spec.Behavior; b != nil {
		errs = append(errs, scalingRules(b.ScaleUp, path.Child("behavior", "scaleUp"))...)
		errs = append(errs, scalingRules(b.ScaleDown, path.Child("behavior", "scaleDown"))...)
	}
	return errs
}

func objectReference(ref *autoscalingv2.CrossVersionObjectReference, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, f := range []struct{ name, value string }{{"kind", ref.Kind}, {"name", ref.Name}} {
		if f.value == "" {
			errs = append(errs, field.Required(path.Child(f.name), ""))
			continue
		}
		errs = append(errs, check(path.Child(f.name), f.value, func(v string) []string { return pathvalidation.IsValidPathSegmentName(v) })...)
	}
	return errs
}

// metric checks that a metric has the one source that its type names.
func metric(m *autoscalingv2.MetricSpec, path *field.Path) field.ErrorList {
	sources := map[autoscalingv2.MetricSourceType]string{
		autoscalingv2.ObjectMetricSourceType: "object", autoscalingv2.PodsMetricSourceType: "pods",
		autoscalingv2.ResourceMetricSourceType: "resource", autoscalingv2.ContainerResourceMetricSourceType: "containerResource",
		autoscalingv2.ExternalMetricSourceType: "external",
	}
	name, known := sources[m.Type]
	if m.Type == "" {
		return field.ErrorList{field.Required(path.Child("type"), "must specify a metric source type")}
	}
	if !known {
		return field.ErrorList{oneOf(path.Child("type"), m.Type, autoscalingv2.ContainerResourceMetricSourceType, autoscalingv2.ExternalMetricSourceType,
			autoscalingv2.ObjectMetricSourceType, autoscalingv2.PodsMetricSourceType, autoscalingv2.ResourceMetricSourceType)[0]}
	}
	var errs field.ErrorList
	found := false
	for _, set := range setMetricSources(m) {
		if set == name {
			found = true
			continue
		}
		errs = append(errs, field.Forbidden(path.Child(set), "must populate the given metric source only"))
	}
	if !found {
		return append(errs, field.Required(path.Child(name), "must populate information for the given metric source"))
	}
	return append(errs, metricSource(m, path.Child(name))...)
}

func setMetricSources(m *autoscalingv2.MetricSpec) (out []string) {
	for name, source := range map[string]any{
		"object": m.Object, "pods": m.Pods, "resource": m.Resource, "containerResource": m.ContainerResource, "external": m.External,
	} {
		if !reflect.ValueOf(source).IsNil() {
			out = append(out, name)
		}
	}
	return out
}

func metricSource(m *autoscalingv2.MetricSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	required := func(child, value, detail string) {
		if value == "" {
			errs = append(errs, field.Required(path.Child(child), detail))
		}
	}
	target := path.Child("target")
	switch {
	case m.Resource != nil:
		required("name", string(m.Resource.Name), "must specify a resource name")
		errs = append(errs, resourceTarget(&m.Resource.Target, target)...)
	case m.ContainerResource != nil:
		required("name", string(m.ContainerResource.Name), "must specify a resource name")
		required("container", m.ContainerResource.Container, "must specify a container")
		errs = append(errs, resourceTarget(&m.ContainerResource.Target, target)...)
	case m.Pods != nil:
		required("metric.name", m.Pods.Metric.Name, "must specify a metric name")
		errs = append(errs, metricTarget(&m.Pods.Target, target)...)
		if v := m.Pods.Target.AverageValue; v == nil || v.Sign() != 1 {
			errs = append(errs, field.Required(target.Child("averageValue"), "must specify a positive target averageValue"))
		}
	case m.Object != nil:
		errs = append(errs, objectReference(&m.Object.DescribedObject, path.Child("describedObject"))...)
		required("metric.name", m.Object.Metric.Name, "must specify a metric name")
		errs = append(errs, metricTarget(&m.Object.Target, target)...)
		errs = append(errs, valueTarget(&m.Object.Target, target)...)
	case m.External != nil:
		required("metric.name", m.External.Metric.Name, "must specify a metric name")
		errs = append(errs, metricTarget(&m.External.Target, target)...)
		errs = append(errs, valueTarget(&m.External.Target, target)...)
	}
	return errs
}

func resourceTarget(t *autoscalingv2.MetricTarget, path *field.Path) field.ErrorList {
	errs := metricTarget(t, path)
	switch {
	case t.AverageUtilization == nil && t.AverageValue == nil:
		errs = append(errs, field.Required(path.Child("averageUtilization"), "must set either a target raw value or a target utilization"))
	case t.AverageUtilization != nil && t.AverageValue != nil:
		errs = append(errs, field.Forbidden(path.Child("averageValue"), "may not set both a target raw value and a target utilization"))
	}
	return errs
}

func valueTarget(t *autoscalingv2.MetricTarget, path *field.Path) field.ErrorList {
	if t.Value == nil && t.AverageValue == nil {
		return field.ErrorList{field.Required(path.Child("averageValue"), "must set either a target value for metric or a per-pod target")}
	}
	return nil
}

func metricTarget(t *autoscalingv2.MetricTarget, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch t.Type {
	case "":
		errs = append(errs, field.Required(path.Child("type"), "must specify a metric target type"))
	case autoscalingv2.UtilizationMetricType, autoscalingv2.ValueMetricType, autoscalingv2.AverageValueMetricType:
	default:
		errs = append(errs, field.Invalid(path.Child("type"), t.Type, "must be either Utilization, Value, or AverageValue"))
	}
	positive := func(name string, q *resource.Quantity) {
		if q != nil && q.Sign() != 1 {
			errs = append(errs, field.Invalid(path.Child(name), q, "must be positive"))
		}
	}
	positive("value", t.Value)
	positive("averageValue", t.AverageValue)
	if u := t.AverageUtilization; u != nil && *u < 1 {
		errs = append(errs, field.Invalid(path.Child("averageUtilization"), *u, "must be greater than 0"))
	}
	return errs
}

func scalingRules(r *autoscalingv2.HPAScalingRules, path *field.Path) field.ErrorList {
	if r == nil {
		return nil
	}
	var errs field.ErrorList
	bounded := func(p *field.Path, v, limit int32) {
		if v > limit {
			errs = append(errs, field.Invalid(p, v, fmt.Sprintf("must be less than or equal to %d", limit)))
		}
	}
	if w := r.StabilizationWindowSeconds; w != nil {
		if *w < 0 {
			errs = append(errs, field.Invalid(path.Child("stabilizationWindowSeconds"), *w, "must be greater than or equal to zero"))
		}
		bounded(path.Child("stabilizationWindowSeconds"), *w, maxStabilizationWindow)
	}
	if s := r.SelectPolicy; s != nil {
		errs = append(errs, oneOf(path.Child("selectPolicy"), *s,
			autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect, autoscalingv2.DisabledPolicySelect)...)
	}
	if t := r.Tolerance; t != nil && t.Sign() < 0 {
		errs = append(errs, field.Invalid(path.Child("tolerance"), t.String(), "must be greater than or equal to 0"))
	}
	policies := path.Child("policies")
	if len(r.Policies) == 0 {
		errs = append(errs, field.Required(policies, "must specify at least one Policy"))
	}
	for i, p := range r.Policies {
		at := policies.Index(i)
		errs = append(errs, oneOf(at.Child("type"), p.Type, autoscalingv2.PodsScalingPolicy, autoscalingv2.PercentScalingPolicy)...)
		for _, f := range []struct {
			name  string
			value int32
		}{{"value", p.Value}, {"periodSeconds", p.PeriodSeconds}} {
			if f.value <= 0 {
				errs = append(errs, field.Invalid(at.Child(f.name), f.value, "must be greater than zero"))
			}
		}
		bounded(at.Child("periodSeconds"), p.PeriodSeconds, maxPolicyPeriod)
	}
	return errs
}
