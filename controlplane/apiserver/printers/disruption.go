package printers

import (
	"time"

	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// PodDisruptionBudgets prints PodDisruptionBudgets.
var PodDisruptionBudgets = Table{
	Columns: []metav1.TableColumnDefinition{
		nameColumn(), column("Min Available", "Number or percentage of pods that stay."),
		column("Max Unavailable", "Number or percentage of pods that may be missing."),
		number("Allowed Disruptions", "Number of pods that may be evicted now."), ageColumn(),
	},
	Row: func(obj runtime.Object, now time.Time) []any {
		b := obj.(*policyv1.PodDisruptionBudget)
		return []any{
			b.Name, orNA(b.Spec.MinAvailable), orNA(b.Spec.MaxUnavailable), int64(b.Status.DisruptionsAllowed), age(b.CreationTimestamp, now),
		}
	},
}

func orNA(v *intstr.IntOrString) string {
	if v == nil {
		return "N/A"
	}
	return v.String()
}
