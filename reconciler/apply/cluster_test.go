package apply

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
	"gitk8s.dev/gitk8s/reconciler/plan"
	"gitk8s.dev/gitk8s/reconciler/render"
)

var shop = plan.Owner{Namespace: "default", Name: "shop"}

func parse(t *testing.T, text string) []render.Object {
	t.Helper()
	objects, err := render.Parse("app.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		o.SetNamespace("default")
	}
	return objects
}

const manifests = `apiVersion: v1
kind: ConfigMap
metadata: {name: cfg}
data: {a: "1"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: web:v1
        resources: {limits: {cpu: 1000m, memory: 0.5Gi}}
`

// TestAgainstAServer applies, compares, sees drift and conflicts on a real API.
func TestAgainstAServer(t *testing.T) {
	cfg := apiservertest.Start(t)
	d, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	disco, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	c := NewCluster(d, disco)
	changes := make(chan render.ID, 100)
	if err := c.Watch(ctx, func(o plan.Owner, id render.ID) {
		if o == shop {
			changes <- id
		}
	}); err != nil {
		t.Fatal(err)
	}
	stamp := func(commit string) func(*unstructured.Unstructured) *unstructured.Unstructured {
		return func(u *unstructured.Unstructured) *unstructured.Unstructured {
			return Stamp(u, shop, commit, commit+" subject")
		}
	}
	planFor := func(objects []render.Object, commit string) plan.Plan {
		t.Helper()
		candidates, err := c.Compare(ctx, shop, objects, stamp(commit), plan.Replaceable)
		if err != nil {
			t.Fatal(err)
		}
		p, conflicts := plan.Make(shop, candidates, c.Owned(shop), true)
		if len(conflicts) > 0 {
			t.Fatal(conflicts)
		}
		return p
	}
	objects := parse(t, manifests)
	if p := planFor(objects, "c1"); p.Summary() != "2 to create" {
		t.Fatal(p.Summary())
	}
	for _, o := range objects {
		if _, err := c.Apply(ctx, stamp("c1")(o.Unstructured), false); err != nil {
			t.Fatal(err)
		}
		<-changes
	}
	// Other spellings of quantities and the server's defaults are no change.
	if p := planFor(objects, "c2"); p.Summary() != "2 unchanged" {
		t.Errorf("after applying: %s\n%s", p.Summary(), p.Actions[1].Diff())
	}
	live := c.Cached(objects[0].Unstructured)
	if a := live.GetAnnotations(); a[v1alpha1.AnnotationCommit] != "c1" || a[v1alpha1.AnnotationChangeCause] != "c1 subject" {
		t.Errorf("annotations %v", a)
	}
	drifted := live.DeepCopy()
	_ = unstructured.SetNestedField(drifted.Object, "hacked", "data", "a")
	if _, err := d.Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace("default").Update(ctx, drifted, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	<-changes
	if p := planFor(objects, "c2"); p.Summary() != "1 to configure, 1 unchanged" {
		t.Errorf("after drift: %s", p.Summary())
	}
	// What is invalid is told with its place, and nothing is applied.
	bad := parse(t, strings.Replace(manifests, "replicas: 2", "replicas: -1", 1))
	if _, err := c.Compare(ctx, shop, bad, stamp("c3"), plan.Replaceable); err == nil || !strings.Contains(err.Error(), "app.yaml:6:") || !strings.Contains(err.Error(), "spec.replicas") {
		t.Errorf("a negative number of replicas: %v", err)
	}
	// What left the manifests is pruned.
	if p := planFor(objects[:1], "c4"); p.Count(plan.Prune) != 1 {
		t.Errorf("after leaving out the Deployment: %s", p.Summary())
	}
	other := plan.Owner{Namespace: "default", Name: "other"}
	candidates, err := c.Compare(ctx, other, objects[:1], stamp("c5"), plan.Replaceable)
	if err != nil {
		t.Fatal(err)
	}
	if _, conflicts := plan.Make(other, candidates, c.Owned(other), true); len(conflicts) != 1 {
		t.Errorf("another application claims the ConfigMap: %v", conflicts)
	}
}
