package defaults

import (
	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
)

// PriorityClass lets pods take the place of less important ones.
func PriorityClass(c *schedulingv1.PriorityClass) {
	missing(&c.PreemptionPolicy, corev1.PreemptLowerPriority)
}
