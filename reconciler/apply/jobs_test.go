package apply

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
	"gitk8s.dev/gitk8s/reconciler/plan"
	"gitk8s.dev/gitk8s/reconciler/render"
)

const migrate = `apiVersion: batch/v1
kind: Job
metadata: {name: migrate}
spec:
  ttlSecondsAfterFinished: 60
  template:
    spec: {restartPolicy: Never, containers: [{name: c, image: "app:v1"}]}
`

// TestJobs: what the server adds to a Job is no change; what cannot be changed is
// refused with a way out, or replaced; and one that has ended is remembered.
func TestJobs(t *testing.T) {
	cfg := apiservertest.Start(t)
	d := dynamic.NewForConfigOrDie(cfg)
	ctx := t.Context()
	c := NewCluster(d, discovery.NewDiscoveryClientForConfigOrDie(cfg))
	changes := make(chan render.ID, 100)
	if err := c.Watch(ctx, func(_ plan.Owner, id render.ID) { changes <- id }); err != nil {
		t.Fatal(err)
	}
	stamp := func(u *unstructured.Unstructured) *unstructured.Unstructured { return Stamp(u, shop, "c1", "c1") }
	compare := func(objects []render.Object) (plan.Plan, error) {
		candidates, err := c.Compare(ctx, shop, objects, stamp, plan.Replaceable)
		p, _ := plan.Make(shop, candidates, c.Owned(shop), true)
		return p, err
	}
	objects := parse(t, migrate)
	if _, err := c.Apply(ctx, stamp(objects[0].Unstructured), false); err != nil {
		t.Fatal(err)
	}
	<-changes
	// Spelt otherwise, so that the server is asked: the same.
	for _, text := range []string{migrate, migrate + "  parallelism: 1\n"} {
		if p, err := compare(parse(t, text)); err != nil || p.Summary() != "1 unchanged" {
			t.Errorf("%s, %v\n%s", p.Summary(), err, p.Actions[0].Diff())
		}
	}
	other := strings.Replace(migrate, "app:v1", "app:v2", 1)
	if _, err := compare(parse(t, other)); err == nil || !strings.Contains(err.Error(), "app.yaml:1: what a Job runs cannot be changed: give it another name") {
		t.Errorf("another image: %v", err)
	}
	marked := strings.Replace(other, "name: migrate", "name: migrate, annotations: {gitk8s.dev/replace: enabled}", 1)
	if p, err := compare(parse(t, marked)); err != nil || p.Summary() != "1 to replace" {
		t.Errorf("another image, to be replaced: %s, %v", p.Summary(), err)
	}
	if _, err := compare(parse(t, marked+"  backoffLimit: -1\n")); err == nil || strings.Contains(err.Error(), "give it another name") {
		t.Errorf("replaced by what is invalid: %v", err)
	}

	api := d.Resource(schema.GroupVersionResource{Group: "batch", Version: "v1", Resource: "jobs"}).Namespace("default")
	end := func(finish bool) {
		live := c.Cached(objects[0].Unstructured).DeepCopy()
		if finish {
			_ = unstructured.SetNestedField(live.Object, "2026-01-01T00:00:00Z", "status", "startTime")
			_ = unstructured.SetNestedSlice(live.Object, []any{
				map[string]any{"type": "FailureTarget", "status": "True"}, map[string]any{"type": "Failed", "status": "True"},
			}, "status", "conditions")
			if _, err := api.UpdateStatus(ctx, live, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			<-changes
		}
		if err := c.Delete(ctx, live); err != nil {
			t.Fatal(err)
		}
		<-changes
	}
	end(true)
	if ended := c.Ended(objects[0].Unstructured); ended == nil || !Finished(ended) {
		t.Errorf("the Job that failed and is gone: %v", ended)
	}
	if _, err := c.Apply(ctx, stamp(objects[0].Unstructured), false); err != nil {
		t.Fatal(err)
	}
	<-changes
	if c.Ended(objects[0].Unstructured) != nil {
		t.Error("the Job exists again")
	}
	end(false)
	if c.Ended(objects[0].Unstructured) != nil {
		t.Error("a Job that was deleted before its end has not ended")
	}
}
