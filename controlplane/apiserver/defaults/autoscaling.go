package defaults

import (
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
)

// defaultUtilization is the share of its CPU request that an average pod should use
// when an autoscaler names no metric, in percent.
const defaultUtilization = 80

// HorizontalPodAutoscaler sets one replica as the least, a target for the CPU, and
// what is left out of a behavior that is given.
func HorizontalPodAutoscaler(a *autoscalingv2.HorizontalPodAutoscaler) {
	missing(&a.Spec.MinReplicas, 1)
	if len(a.Spec.Metrics) == 0 {
		percent := int32(defaultUtilization)
		a.Spec.Metrics = []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
			Name:   corev1.ResourceCPU,
			Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent},
		}}}
	}
	if b := a.Spec.Behavior; b != nil {
		ScalingRules(b)
		spell(b.ScaleUp.Tolerance)
		spell(b.ScaleDown.Tolerance)
	}
	for i := range a.Spec.Metrics {
		spellTarget(&a.Spec.Metrics[i])
	}
	for _, m := range a.Status.CurrentMetrics {
		for _, v := range currentValues(m) {
			spell(v.Value)
			spell(v.AverageValue)
		}
	}
}

func spellTarget(m *autoscalingv2.MetricSpec) {
	target := func(t *autoscalingv2.MetricTarget) {
		spell(t.Value)
		spell(t.AverageValue)
	}
	if m.Resource != nil {
		target(&m.Resource.Target)
	}
	if m.ContainerResource != nil {
		target(&m.ContainerResource.Target)
	}
	if m.Pods != nil {
		target(&m.Pods.Target)
	}
	if m.Object != nil {
		target(&m.Object.Target)
	}
	if m.External != nil {
		target(&m.External.Target)
	}
}

func currentValues(m autoscalingv2.MetricStatus) (out []autoscalingv2.MetricValueStatus) {
	if m.Resource != nil {
		out = append(out, m.Resource.Current)
	}
	if m.ContainerResource != nil {
		out = append(out, m.ContainerResource.Current)
	}
	return out
}

// ScalingRules completes a behavior ("Horizontal Pod Autoscaling", "Default
// Behavior"): up by four pods or to the double in 15 seconds, whichever is more,
// and down to what is needed. How long a lower need must last has no default in the
// API; it is the controller's, 5 minutes.
func ScalingRules(b *autoscalingv2.HorizontalPodAutoscalerBehavior) {
	double := autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15}
	missing(&b.ScaleUp, autoscalingv2.HPAScalingRules{})
	missing(&b.ScaleDown, autoscalingv2.HPAScalingRules{})
	for _, r := range []*autoscalingv2.HPAScalingRules{b.ScaleUp, b.ScaleDown} {
		missing(&r.SelectPolicy, autoscalingv2.MaxChangePolicySelect)
		if r.Policies == nil {
			r.Policies = []autoscalingv2.HPAScalingPolicy{double}
			if r == b.ScaleUp {
				r.Policies = []autoscalingv2.HPAScalingPolicy{{Type: autoscalingv2.PodsScalingPolicy, Value: 4, PeriodSeconds: 15}, double}
			}
		}
	}
	missing(&b.ScaleUp.StabilizationWindowSeconds, 0)
}
