package validation

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// gatedUpdate checks what else may change of a pod that has scheduling gates, and
// takes it out of the comparison: which nodes it can run on may be narrowed (KEP-3838).
func gatedUpdate(merged, old *corev1.PodSpec, path *field.Path) field.ErrorList {
	if len(old.SchedulingGates) == 0 {
		return nil
	}
	var errs field.ErrorList
	for key, value := range old.NodeSelector {
		if now, ok := merged.NodeSelector[key]; !ok || now != value {
			errs = append(errs, field.Invalid(path.Child("nodeSelector"), merged.NodeSelector,
				"only additions to spec.nodeSelector are allowed (no mutations or deletions)"))
			break
		}
	}
	errs = append(errs, metavalidation.ValidateLabels(merged.NodeSelector, path.Child("nodeSelector"))...)
	merged.NodeSelector = old.NodeSelector

	at, before := path.Child("affinity", "nodeAffinity"), nodeAffinityOf(old)
	now := nodeAffinityOf(merged)
	errs = append(errs, nodeAffinity(now, at)...)
	errs = append(errs, narrowed(requiredNodes(now), requiredNodes(before), at.Child(requiredTerms, "nodeSelectorTerms"))...)
	switch {
	case merged.Affinity != nil:
		merged.Affinity.NodeAffinity = before
		if old.Affinity == nil && equality.Semantic.DeepEqual(*merged.Affinity, corev1.Affinity{}) {
			merged.Affinity = nil
		}
	case old.Affinity != nil:
		merged.Affinity = &corev1.Affinity{NodeAffinity: before}
	}
	return errs
}

func nodeAffinityOf(s *corev1.PodSpec) *corev1.NodeAffinity {
	if s.Affinity == nil {
		return nil
	}
	return s.Affinity.NodeAffinity
}

func requiredNodes(a *corev1.NodeAffinity) []corev1.NodeSelectorTerm {
	if a == nil || a.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return nil
	}
	return a.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
}

// narrowed: one of the terms must match, so there can't be more of them, and of a term
// everything must, so there can. A term with nothing in it matches no node.
func narrowed(now, old []corev1.NodeSelectorTerm, path *field.Path) field.ErrorList {
	if len(old) == 0 {
		return nil
	}
	if len(now) != len(old) {
		return field.ErrorList{field.Invalid(path, now, "no additions/deletions to non-empty NodeSelectorTerms list are allowed")}
	}
	has := func(list []corev1.NodeSelectorRequirement, r corev1.NodeSelectorRequirement) bool {
		return slices.ContainsFunc(list, func(o corev1.NodeSelectorRequirement) bool { return equality.Semantic.DeepEqual(o, r) })
	}
	size := func(t corev1.NodeSelectorTerm) int { return len(t.MatchExpressions) + len(t.MatchFields) }
	var errs field.ErrorList
	for i := range old {
		kept := size(old[i]) > 0 || size(now[i]) == 0
		for _, r := range old[i].MatchExpressions {
			kept = kept && has(now[i].MatchExpressions, r)
		}
		for _, r := range old[i].MatchFields {
			kept = kept && has(now[i].MatchFields, r)
		}
		if !kept {
			errs = append(errs, field.Invalid(path.Index(i), now[i], "only additions are allowed (no mutations or deletions)"))
		}
	}
	return errs
}
