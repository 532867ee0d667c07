package printers

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

var usageColumns = []metav1.TableColumnDefinition{
	nameColumn(), column("cpu", "CPU that is used."), column("memory", "Memory of the working set."), column("Window", "Time over which the CPU was measured."),
}

// NodeMetrics prints what nodes use.
var NodeMetrics = Table{
	Columns: usageColumns,
	Row: func(obj runtime.Object, _ time.Time) []any {
		m := obj.(*metricsv1beta1.NodeMetrics)
		return []any{m.Name, m.Usage.Cpu().String(), m.Usage.Memory().String(), m.Window.Duration.String()}
	},
}

// PodMetrics prints what pods use, all containers together.
var PodMetrics = Table{
	Columns: usageColumns,
	Row: func(obj runtime.Object, _ time.Time) []any {
		m := obj.(*metricsv1beta1.PodMetrics)
		var cpu, memory resource.Quantity
		for _, c := range m.Containers {
			cpu.Add(c.Usage[corev1.ResourceCPU])
			memory.Add(c.Usage[corev1.ResourceMemory])
		}
		return []any{m.Name, cpu.String(), memory.String(), m.Window.Duration.String()}
	},
}
