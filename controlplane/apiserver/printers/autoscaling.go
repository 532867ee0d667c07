package printers

import (
	"fmt"
	"strings"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// shownMetrics is how many of an autoscaler's metrics are printed.
const shownMetrics = 2

// HorizontalPodAutoscalers prints HorizontalPodAutoscalers.
var HorizontalPodAutoscalers = Table{
	Columns: []metav1.TableColumnDefinition{
		nameColumn(), column("Reference", "What is scaled."), column("Targets", "What the metrics are, and should be."),
		column("MinPods", "The least number of pods."), number("MaxPods", "The greatest number of pods."),
		number("Replicas", "The number of pods now."), ageColumn(),
	},
	Row: func(obj runtime.Object, now time.Time) []any {
		a := obj.(*autoscalingv2.HorizontalPodAutoscaler)
		least := "<unset>"
		if a.Spec.MinReplicas != nil {
			least = fmt.Sprint(*a.Spec.MinReplicas)
		}
		return []any{
			a.Name, a.Spec.ScaleTargetRef.Kind + "/" + a.Spec.ScaleTargetRef.Name, targets(a.Spec.Metrics, a.Status.CurrentMetrics),
			least, int64(a.Spec.MaxReplicas), int64(a.Status.CurrentReplicas), age(a.CreationTimestamp, now),
		}
	},
}

// targets prints metrics and what they should be: "cpu: 12%/50%, memory: 3Mi/64Mi".
func targets(specs []autoscalingv2.MetricSpec, statuses []autoscalingv2.MetricStatus) string {
	if len(specs) == 0 {
		return none
	}
	var list []string
	for i, spec := range specs {
		if i == shownMetrics {
			break
		}
		var status autoscalingv2.MetricStatus
		if i < len(statuses) {
			status = statuses[i]
		}
		list = append(list, target(spec, status))
	}
	out := strings.Join(list, ", ")
	if more := len(specs) - len(list); more > 0 {
		out += fmt.Sprintf(" + %d more...", more)
	}
	return out
}

func target(spec autoscalingv2.MetricSpec, status autoscalingv2.MetricStatus) string {
	name, want, have := "", autoscalingv2.MetricTarget{}, autoscalingv2.MetricValueStatus{}
	switch {
	case spec.Resource != nil:
		name, want = string(spec.Resource.Name)+": ", spec.Resource.Target
		if status.Resource != nil {
			have = status.Resource.Current
		}
	case spec.ContainerResource != nil:
		name, want = string(spec.ContainerResource.Name)+": ", spec.ContainerResource.Target
		if status.ContainerResource != nil {
			have = status.ContainerResource.Current
		}
	case spec.Pods != nil:
		want = spec.Pods.Target
	case spec.Object != nil:
		want = spec.Object.Target
	case spec.External != nil:
		want = spec.External.Target
	default:
		return "<unknown type>"
	}
	const unknown = "<unknown>"
	current := unknown
	switch {
	case want.AverageUtilization != nil:
		if have.AverageUtilization != nil {
			current = fmt.Sprintf("%d%%", *have.AverageUtilization)
		}
		return fmt.Sprintf("%s%s/%d%%", name, current, *want.AverageUtilization)
	case want.AverageValue != nil:
		if have.AverageValue != nil {
			current = have.AverageValue.String()
		}
		if spec.Object != nil || spec.External != nil {
			return current + "/" + want.AverageValue.String() + " (avg)"
		}
		return name + current + "/" + want.AverageValue.String()
	case want.Value != nil:
		return current + "/" + want.Value.String()
	}
	return name + unknown + "/<auto>"
}
