package health

import (
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// job: what is deployed with a Job is there when it has completed, not when it has
// started, and failing is failing. A suspended Job waits for people, and so nobody
// waits for it.
func job(u *unstructured.Unstructured) Result {
	isTrue := func(kind string) (map[string]any, bool) {
		c := condition(u, kind)
		return c, c != nil && c["status"] == "True"
	}
	want := num(u, 0, "spec", "completions")
	done, active := num(u, 0, "status", "succeeded"), num(u, 0, "status", "active")
	r := Result{Status: InProgress, Done: done, Total: want}
	if c, ok := isTrue("Failed"); ok {
		r.Status, r.Message = Failed, fmt.Sprint(c["message"])
		return r
	}
	if _, ok := isTrue("Complete"); ok {
		r.Status, r.Message = Current, "has completed"
		return r
	}
	suspended, _, _ := unstructured.NestedBool(u.Object, "spec", "suspend")
	ending, ends := isTrue("FailureTarget")
	switch {
	case ends:
		r.Message = fmt.Sprintf("is about to fail: %v", ending["message"])
	case suspended:
		r.Status, r.Message = Current, "is suspended"
	case want > 0:
		r.Message = fmt.Sprintf("%d of %d pods succeeded", done, want)
	default:
		r.Message = fmt.Sprintf("%d pods still to end", active)
	}
	return r
}
