package apiserver

import (
	"testing"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/controlplane/apiserver/defaults"
)

// TestAutoscalerVersions: what is read in autoscaling/v1 and written back has lost
// nothing of autoscaling/v2.
func TestAutoscalerVersions(t *testing.T) {
	full := &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", Annotations: map[string]string{"a": "b"}},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{Kind: "Deployment", Name: "web", APIVersion: "apps/v1"},
			MinReplicas:    ptr.To[int32](2), MaxReplicas: 9,
			Metrics: []autoscalingv2.MetricSpec{cpuMetric(50), {Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
				Name: corev1.ResourceMemory, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: ptr.To(apiresource.MustParse("64Mi"))},
			}}},
			Behavior: &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleDown: &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: ptr.To[int32](7)}},
		},
	}
	defaults.HorizontalPodAutoscaler(full)
	plain := full.DeepCopy()
	plain.Annotations, plain.Spec.Behavior, plain.Spec.Metrics = nil, nil, plain.Spec.Metrics[:1]
	for name, a := range map[string]*autoscalingv2.HorizontalPodAutoscaler{"full": full, "plain": plain} {
		before := a.DeepCopy()
		var v1 autoscalingv1.HorizontalPodAutoscaler
		if err := autoscalerToV1(a, &v1); err != nil {
			t.Fatal(err)
		}
		if p := v1.Spec.TargetCPUUtilizationPercentage; p == nil || *p != 50 {
			t.Errorf("%s: the target in v1 is %v", name, p)
		}
		var back autoscalingv2.HorizontalPodAutoscaler
		if err := autoscalerFromV1(&v1, &back); err != nil {
			t.Fatal(err)
		}
		if !equality.Semantic.DeepEqual(&back, a) || !equality.Semantic.DeepEqual(a, before) {
			t.Errorf("%s: came back as %+v, was %+v", name, back, a)
		}
	}
	var out autoscalingv2.HorizontalPodAutoscaler
	if err := autoscalerFromV1(&autoscalingv1.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{annotationV2: "{"}}}, &out); err == nil {
		t.Error("a broken annotation is read")
	}
	if err := autoscalerFromV1(&autoscalingv1.HorizontalPodAutoscaler{}, &out); err != nil || len(out.Spec.Metrics) != 1 || *out.Spec.Metrics[0].Resource.Target.AverageUtilization != 80 {
		t.Errorf("without a target: %+v, %v", out.Spec, err)
	}
}
