package main

import (
	"sort"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// podSelector finds the pods of one workload.
type podSelector struct{ namespace, selector string }

// workloadSelectors are the selectors of the workloads among objects.
func workloadSelectors(objects []*unstructured.Unstructured) []podSelector {
	var out []podSelector
	for _, u := range objects {
		if u.GroupVersionKind().Group != "apps" {
			continue
		}
		m, ok, err := unstructured.NestedMap(u.Object, "spec", "selector")
		if !ok || err != nil {
			continue
		}
		var s metav1.LabelSelector
		if runtime.DefaultUnstructuredConverter.FromUnstructured(m, &s) != nil {
			continue
		}
		if sel, err := metav1.LabelSelectorAsSelector(&s); err == nil && !sel.Empty() {
			out = append(out, podSelector{u.GetNamespace(), sel.String()})
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].selector < out[j].selector })
	return out
}
