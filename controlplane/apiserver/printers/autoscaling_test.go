package printers

import (
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func TestTargets(t *testing.T) {
	cpu := autoscalingv2.MetricSpec{Resource: &autoscalingv2.ResourceMetricSource{Name: "cpu", Target: autoscalingv2.MetricTarget{AverageUtilization: ptr.To[int32](50)}}}
	memory := autoscalingv2.MetricSpec{Resource: &autoscalingv2.ResourceMetricSource{Name: "memory", Target: autoscalingv2.MetricTarget{AverageValue: ptr.To(resource.MustParse("64Mi"))}}}
	cpuNow := autoscalingv2.MetricStatus{Resource: &autoscalingv2.ResourceMetricStatus{Current: autoscalingv2.MetricValueStatus{AverageUtilization: ptr.To[int32](12)}}}
	memoryNow := autoscalingv2.MetricStatus{Resource: &autoscalingv2.ResourceMetricStatus{Current: autoscalingv2.MetricValueStatus{AverageValue: ptr.To(resource.MustParse("3Mi"))}}}
	for _, c := range []struct {
		specs []autoscalingv2.MetricSpec
		now   []autoscalingv2.MetricStatus
		want  string
	}{
		{nil, nil, "<none>"},
		{[]autoscalingv2.MetricSpec{cpu}, nil, "cpu: <unknown>/50%"},
		{[]autoscalingv2.MetricSpec{cpu, memory}, []autoscalingv2.MetricStatus{cpuNow, memoryNow}, "cpu: 12%/50%, memory: 3Mi/64Mi"},
		{[]autoscalingv2.MetricSpec{cpu, memory, cpu}, []autoscalingv2.MetricStatus{cpuNow, memoryNow}, "cpu: 12%/50%, memory: 3Mi/64Mi + 1 more..."},
	} {
		a := &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: autoscalingv2.HorizontalPodAutoscalerSpec{Metrics: c.specs}, Status: autoscalingv2.HorizontalPodAutoscalerStatus{CurrentMetrics: c.now}}
		if row := HorizontalPodAutoscalers.Row(a, time.Now()); row[2] != c.want {
			t.Errorf("%v, want %s", row[2], c.want)
		}
	}
}
