package apiserver

import (
	"encoding/json"
	"fmt"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"gitk8s.dev/gitk8s/controlplane/apiserver/defaults"
	"gitk8s.dev/gitk8s/controlplane/apiserver/printers"
	"gitk8s.dev/gitk8s/controlplane/apiserver/validation"
)

// autoscalingResources are the kinds that scale others.
func autoscalingResources() []*resource {
	return []*resource{
		{
			gv: autoscalingv2.SchemeGroupVersion, alsoIn: []schema.GroupVersion{autoscalingv1.SchemeGroupVersion},
			kind: "HorizontalPodAutoscaler", plural: "horizontalpodautoscalers",
			singular: "horizontalpodautoscaler", shortNames: []string{"hpa"}, categories: []string{"all"}, namespaced: true,
			newObject: object[autoscalingv2.HorizontalPodAutoscaler], newList: object[autoscalingv2.HorizontalPodAutoscalerList],
			table: printers.HorizontalPodAutoscalers, name: apivalidation.NameIsDNSSubdomain, status: true, generation: true,
			check: checked(validation.HorizontalPodAutoscaler), warnings: autoscalerWarnings,
		},
	}
}

func autoscalerWarnings(obj runtime.Object) []string {
	var out []string
	for i, m := range obj.(*autoscalingv2.HorizontalPodAutoscaler).Spec.Metrics {
		if m.Type != autoscalingv2.ResourceMetricSourceType && m.Type != autoscalingv2.ContainerResourceMetricSourceType {
			out = append(out, fmt.Sprintf("%s: metrics of type %s are %s", field.NewPath("spec", "metrics").Index(i), m.Type, notActedOn))
		}
	}
	return out
}

// annotationV2 of an autoscaling/v1 HorizontalPodAutoscaler is what that version
// has no fields for, so that who reads and writes that version takes nothing away.
const annotationV2 = "autoscaling.gitk8s.dev/v2"

// beyondV1 is the content of that annotation.
type beyondV1 struct {
	Metrics  []autoscalingv2.MetricSpec                     `json:"metrics,omitempty"`
	Behavior *autoscalingv2.HorizontalPodAutoscalerBehavior `json:"behavior,omitempty"`
}

// addConversions registers how kinds change between the versions of their group
// that have a form of their own.
func addConversions(s *runtime.Scheme) error {
	convert := func(from, to any, f conversion.ConversionFunc) error { return s.AddConversionFunc(from, to, f) }
	for _, err := range []error{
		convert((*autoscalingv1.HorizontalPodAutoscaler)(nil), (*autoscalingv2.HorizontalPodAutoscaler)(nil), func(a, b any, _ conversion.Scope) error {
			return autoscalerFromV1(a.(*autoscalingv1.HorizontalPodAutoscaler), b.(*autoscalingv2.HorizontalPodAutoscaler))
		}),
		convert((*autoscalingv2.HorizontalPodAutoscaler)(nil), (*autoscalingv1.HorizontalPodAutoscaler)(nil), func(a, b any, _ conversion.Scope) error {
			return autoscalerToV1(a.(*autoscalingv2.HorizontalPodAutoscaler), b.(*autoscalingv1.HorizontalPodAutoscaler))
		}),
		convert((*autoscalingv2.HorizontalPodAutoscalerList)(nil), (*autoscalingv1.HorizontalPodAutoscalerList)(nil), func(a, b any, _ conversion.Scope) error {
			from, to := a.(*autoscalingv2.HorizontalPodAutoscalerList), b.(*autoscalingv1.HorizontalPodAutoscalerList)
			to.ListMeta, to.Items = from.ListMeta, make([]autoscalingv1.HorizontalPodAutoscaler, len(from.Items))
			for i := range from.Items {
				if err := autoscalerToV1(&from.Items[i], &to.Items[i]); err != nil {
					return err
				}
			}
			return nil
		}),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// autoscalerFromV1 reads what autoscaling/v1 says: one target, of the CPU.
func autoscalerFromV1(in *autoscalingv1.HorizontalPodAutoscaler, out *autoscalingv2.HorizontalPodAutoscaler) error {
	out.ObjectMeta = *in.ObjectMeta.DeepCopy()
	out.Spec = autoscalingv2.HorizontalPodAutoscalerSpec{
		ScaleTargetRef: autoscalingv2.CrossVersionObjectReference(in.Spec.ScaleTargetRef),
		MinReplicas:    in.Spec.MinReplicas, MaxReplicas: in.Spec.MaxReplicas,
	}
	out.Status = autoscalingv2.HorizontalPodAutoscalerStatus{
		ObservedGeneration: in.Status.ObservedGeneration, LastScaleTime: in.Status.LastScaleTime,
		CurrentReplicas: in.Status.CurrentReplicas, DesiredReplicas: in.Status.DesiredReplicas,
	}
	if t := in.Spec.TargetCPUUtilizationPercentage; t != nil {
		out.Spec.Metrics = []autoscalingv2.MetricSpec{cpuMetric(*t)}
	}
	if more, ok := out.Annotations[annotationV2]; ok {
		var b beyondV1
		if err := json.Unmarshal([]byte(more), &b); err != nil {
			return fmt.Errorf("annotation %s: %w", annotationV2, err)
		}
		out.Spec.Metrics, out.Spec.Behavior = append(out.Spec.Metrics, b.Metrics...), b.Behavior
		delete(out.Annotations, annotationV2)
		if len(out.Annotations) == 0 {
			out.Annotations = nil
		}
	}
	defaults.HorizontalPodAutoscaler(out)
	return nil
}

// autoscalerToV1 puts the first target of the CPU's utilization into the field of
// autoscaling/v1, and the rest into an annotation.
func autoscalerToV1(in *autoscalingv2.HorizontalPodAutoscaler, out *autoscalingv1.HorizontalPodAutoscaler) error {
	out.ObjectMeta = *in.ObjectMeta.DeepCopy()
	out.Spec = autoscalingv1.HorizontalPodAutoscalerSpec{
		ScaleTargetRef: autoscalingv1.CrossVersionObjectReference(in.Spec.ScaleTargetRef),
		MinReplicas:    in.Spec.MinReplicas, MaxReplicas: in.Spec.MaxReplicas,
	}
	out.Status = autoscalingv1.HorizontalPodAutoscalerStatus{
		ObservedGeneration: in.Status.ObservedGeneration, LastScaleTime: in.Status.LastScaleTime,
		CurrentReplicas: in.Status.CurrentReplicas, DesiredReplicas: in.Status.DesiredReplicas,
	}
	more := beyondV1{Behavior: in.Spec.Behavior}
	for _, m := range in.Spec.Metrics {
		if r := m.Resource; r != nil && r.Name == corev1.ResourceCPU && r.Target.AverageUtilization != nil && out.Spec.TargetCPUUtilizationPercentage == nil {
			out.Spec.TargetCPUUtilizationPercentage = r.Target.AverageUtilization
			continue
		}
		more.Metrics = append(more.Metrics, m)
	}
	for _, m := range in.Status.CurrentMetrics {
		if m.Resource != nil && m.Resource.Name == corev1.ResourceCPU {
			out.Status.CurrentCPUUtilizationPercentage = m.Resource.Current.AverageUtilization
		}
	}
	if len(more.Metrics) == 0 && more.Behavior == nil {
		return nil
	}
	text, err := json.Marshal(more)
	if err != nil {
		return err
	}
	metav1.SetMetaDataAnnotation(&out.ObjectMeta, annotationV2, string(text))
	return nil
}

func cpuMetric(percent int32) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
		Name:   corev1.ResourceCPU,
		Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent},
	}}
}
