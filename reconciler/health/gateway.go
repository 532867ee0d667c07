package health

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// gateway is Current when it is Programmed for its newest spec.
func gateway(u *unstructured.Unstructured) Result {
	all, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, kind := range []string{"Accepted", "Programmed"} {
		if r := said(all, kind, u.GetGeneration()); r.Status != Current {
			return r
		}
	}
	return Result{Status: Current, Message: "is Programmed"}
}

// gatewayRoute is Current when each of its parents has accepted it as it is now and
// found everything that it refers to.
func gatewayRoute(u *unstructured.Unstructured) Result {
	refs, _, _ := unstructured.NestedSlice(u.Object, "spec", "parentRefs")
	parents, _, _ := unstructured.NestedSlice(u.Object, "status", "parents")
	for _, ref := range refs {
		name := fmt.Sprint(field(ref, "name"))
		i := slices.IndexFunc(parents, func(p any) bool { return sameParent(ref, field(p, "parentRef")) })
		if i < 0 {
			return progress("no controller has looked at its parent %s yet", name)
		}
		all, _ := field(parents[i], "conditions").([]any)
		for _, kind := range []string{"Accepted", "ResolvedRefs"} {
			if r := said(all, kind, u.GetGeneration()); r.Status != Current {
				r.Message = "parent " + name + ": " + r.Message
				return r
			}
		}
	}
	return Result{Status: Current, Message: "is Accepted"}
}

// said is what a condition comes to. One that is not true may become so without a
// change of the object, when what it refers to appears: it never fails for good.
func said(all []any, kind string, generation int64) Result {
	for _, c := range all {
		if field(c, "type") != kind {
			continue
		}
		observed, _ := field(c, "observedGeneration").(int64)
		switch {
		case field(c, "status") == "True" && observed >= generation:
			return Result{Status: Current}
		case observed < generation:
			return progress("the controller has not seen the newest spec yet")
		default:
			return progress("is not %s: %v: %v", kind, field(c, "reason"), field(c, "message"))
		}
	}
	return progress("is not %s", kind)
}

func sameParent(a, b any) bool {
	for _, name := range []string{"group", "kind", "namespace", "name", "sectionName", "port"} {
		if fmt.Sprint(field(a, name)) != fmt.Sprint(field(b, name)) {
			return false
		}
	}
	return true
}

func field(of any, name string) any {
	m, _ := of.(map[string]any)
	return m[name]
}
