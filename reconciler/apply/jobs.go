package apply

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"gitk8s.dev/gitk8s/reconciler/render"
)

var jobs = schema.GroupKind{Group: "batch", Kind: "Job"}

// HasTTL says whether an object is a Job that is deleted some time after it has
// finished.
func HasTTL(u *unstructured.Unstructured) bool {
	_, ok, _ := unstructured.NestedFieldNoCopy(u.Object, "spec", "ttlSecondsAfterFinished")
	return ok && u.GroupVersionKind().GroupKind() == jobs
}

// Finished says whether a Job is Complete or Failed.
func Finished(job *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(job.Object, "status", "conditions")
	for _, item := range conditions {
		c, _ := item.(map[string]any)
		if c != nil && c["status"] == "True" && (c["type"] == "Complete" || c["type"] == "Failed") {
			return true
		}
	}
	return false
}

// remember keeps the last state of a Job that has finished and been deleted.
func (c *Cluster) remember(u *unstructured.Unstructured) {
	if !HasTTL(u) || !Finished(u) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended[render.IDOf(u)] = u
}

func (c *Cluster) forget(u *unstructured.Unstructured) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.ended, render.IDOf(u))
}

// Ended returns the last state of a Job that has finished and, since Watch runs, has
// been deleted; nil if there is none.
func (c *Cluster) Ended(u *unstructured.Unstructured) *unstructured.Unstructured {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.ended[render.IDOf(u)]
}
