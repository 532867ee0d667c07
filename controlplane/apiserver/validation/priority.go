package validation

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"
)

const (
	// SystemPriorityPrefix begins the names of the system's priority classes.
	SystemPriorityPrefix = "system-"
	// highestUserPriority is the highest that other classes may have.
	highestUserPriority = 1_000_000_000
)

// SystemPriorityClasses are the two priority classes that every cluster has.
func SystemPriorityClasses() []*schedulingv1.PriorityClass {
	class := func(name string, value int32, description string) *schedulingv1.PriorityClass {
		return &schedulingv1.PriorityClass{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value, Description: description,
			PreemptionPolicy: ptr.To(corev1.PreemptLowerPriority),
		}
	}
	return []*schedulingv1.PriorityClass{
		class("system-node-critical", 2*highestUserPriority+1000, "Used for system critical pods that must not be moved from their current node."),
		class("system-cluster-critical", 2*highestUserPriority, "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary."),
	}
}

// PriorityClass checks a priority class, and on update that pods keep what it
// gave them.
func PriorityClass(c, old *schedulingv1.PriorityClass) field.ErrorList {
	var errs field.ErrorList
	value, policy := field.NewPath("value"), field.NewPath("preemptionPolicy")
	switch {
	case strings.HasPrefix(c.Name, SystemPriorityPrefix):
		if why := notOfSystem(c); why != "" {
			errs = append(errs, field.Forbidden(field.NewPath("metadata", "name"),
				"priority class names with '"+SystemPriorityPrefix+"' prefix are reserved for system use only. error: "+why))
		}
	case c.Value > highestUserPriority:
		errs = append(errs, field.Forbidden(value, fmt.Sprintf("maximum allowed value of a user defined priority is %v", highestUserPriority)))
	}
	if c.PreemptionPolicy != nil {
		errs = append(errs, oneOf(policy, *c.PreemptionPolicy, corev1.PreemptLowerPriority, corev1.PreemptNever)...)
	}
	if old == nil {
		return errs
	}
	if c.Value != old.Value {
		errs = append(errs, field.Forbidden(value, "may not be changed in an update."))
	}
	return append(errs, apivalidation.ValidateImmutableField(c.PreemptionPolicy, old.PreemptionPolicy, policy)...)
}

// notOfSystem says why a class is none of the system's.
func notOfSystem(c *schedulingv1.PriorityClass) string {
	for _, s := range SystemPriorityClasses() {
		switch {
		case s.Name != c.Name:
		case s.Value != c.Value:
			return fmt.Sprintf("value of %v PriorityClass must be %v", s.Name, s.Value)
		case c.GlobalDefault:
			return fmt.Sprintf("globalDefault of %v PriorityClass must be %v", s.Name, false)
		default:
			return ""
		}
	}
	return fmt.Sprintf("%v is not a known system priority class", c.Name)
}
