package validation

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// spreadCounting checks what a topology spread constraint says of which nodes and
// pods count.
func spreadCounting(c *corev1.TopologySpreadConstraint, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if c.MinDomains != nil && c.WhenUnsatisfiable != corev1.DoNotSchedule {
		errs = append(errs, field.Invalid(p.Child("minDomains"), *c.MinDomains,
			fmt.Sprintf("can only use minDomains if whenUnsatisfiable=%s, not %s", corev1.DoNotSchedule, c.WhenUnsatisfiable)))
	}
	for name, policy := range map[string]*corev1.NodeInclusionPolicy{"nodeAffinityPolicy": c.NodeAffinityPolicy, "nodeTaintsPolicy": c.NodeTaintsPolicy} {
		if policy != nil {
			errs = append(errs, oneOf(p.Child(name), *policy, corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore)...)
		}
	}
	return append(errs, labelKeys(c.MatchLabelKeys, c.LabelSelector, p.Child("matchLabelKeys"))...)
}

// labelKeys checks keys that are added to a selector.
func labelKeys(keys []string, selector *metav1.LabelSelector, p *field.Path) field.ErrorList {
	if len(keys) > 0 && selector == nil {
		return field.ErrorList{field.Forbidden(p, "must not be specified when labelSelector is not set")}
	}
	var errs field.ErrorList
	for i, key := range keys {
		errs = append(errs, metavalidation.ValidateLabelName(key, p.Index(i))...)
	}
	return errs
}

// termLabelKeys checks the keys of a term of pod affinity.
func termLabelKeys(t *corev1.PodAffinityTerm, path *field.Path) field.ErrorList {
	errs := labelKeys(t.MatchLabelKeys, t.LabelSelector, path.Child("matchLabelKeys"))
	errs = append(errs, labelKeys(t.MismatchLabelKeys, t.LabelSelector, path.Child("mismatchLabelKeys"))...)
	for i, key := range t.MatchLabelKeys {
		if slices.Contains(t.MismatchLabelKeys, key) {
			errs = append(errs, field.Invalid(path.Child("matchLabelKeys").Index(i), key, "exists in both matchLabelKeys and mismatchLabelKeys"))
		}
	}
	return errs
}
