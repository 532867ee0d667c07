package printers

import (
	"time"

	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
)

// PriorityClasses prints PriorityClasses.
var PriorityClasses = Table{
	Columns: []metav1.TableColumnDefinition{
		nameColumn(), number("Value", "Priority of the pods."),
		{Name: "Global-Default", Type: "boolean", Description: "Whether pods that name no class get this one."},
		ageColumn(), column("PreemptionPolicy", "Whether the pods may take the place of others."),
	},
	Row: func(obj runtime.Object, now time.Time) []any {
		c := obj.(*schedulingv1.PriorityClass)
		return []any{c.Name, int64(c.Value), c.GlobalDefault, age(c.CreationTimestamp, now), string(ptr.Deref(c.PreemptionPolicy, ""))}
	},
}
