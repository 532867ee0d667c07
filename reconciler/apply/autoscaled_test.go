package apply

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
	"gitk8s.dev/gitk8s/reconciler/plan"
)

const autoscaler = `---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  maxReplicas: 9
`

func deployment(replicas, image string) string {
	return `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  ` + replicas + `
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "` + image + `"}]}
`
}

// TestAutoscaled: from the commit that has an autoscaler on, the number of pods is
// the autoscaler's, through deploys and looks for drift, and it is never reset.
func TestAutoscaled(t *testing.T) {
	cfg := apiservertest.Start(t)
	d, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	disco, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	k, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	c := NewCluster(d, disco)
	stamp := func(u *unstructured.Unstructured) *unstructured.Unstructured { return Stamp(u, shop, "c", "c") }
	// The cluster is not watched: what is live is asked for.
	deploy := func(text, want string, replicas int32) {
		t.Helper()
		objects := parse(t, text)
		candidates, err := c.Compare(ctx, shop, objects, stamp, plan.Replaceable)
		if err != nil {
			t.Fatal(err)
		}
		p, _ := plan.Make(shop, candidates, nil, false)
		if p.Summary() != want {
			t.Errorf("%s, want %s", p.Summary(), want)
		}
		for _, a := range p.Actions {
			if a.Verb == plan.Unchanged {
				continue
			}
			if _, err := c.Apply(ctx, WithReplicas(stamp(a.Desired.Unstructured), a.Desired, a.Live), false); err != nil {
				t.Fatal(err)
			}
		}
		live, err := k.AppsV1().Deployments("default").Get(ctx, "web", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if *live.Spec.Replicas != replicas {
			t.Fatalf("%d replicas, want %d", *live.Spec.Replicas, replicas)
		}
	}
	scale := func(n int32) {
		t.Helper()
		s, err := k.AppsV1().Deployments("default").GetScale(ctx, "web", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		s.Spec.Replicas = n
		if _, err := k.AppsV1().Deployments("default").UpdateScale(ctx, "web", s, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	three := "replicas: 3"
	deploy(deployment(three, "web:v1"), "1 to create", 3)
	// The autoscaler comes, and with it the field leaves the manifest or stays.
	deploy(deployment("", "web:v1")+autoscaler, "1 to create, 1 unchanged", 3)
	deploy(deployment("", "web:v2")+autoscaler, "1 to configure, 1 unchanged", 3)
	deploy(deployment(three, "web:v2")+autoscaler, "2 unchanged", 3)
	scale(5)
	deploy(deployment(three, "web:v2")+autoscaler, "2 unchanged", 5)
	deploy(deployment(three, "web:v3")+autoscaler, "1 to configure, 1 unchanged", 5)
	scale(4)
	deploy(deployment("", "web:v4")+autoscaler, "1 to configure, 1 unchanged", 4)
	// It goes, and the manifest counts again.
	deploy(deployment(three, "web:v4"), "1 to configure", 3)
	if err := k.AppsV1().Deployments("default").Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	deploy(deployment("replicas: 2", "web:v1")+autoscaler, "1 to create, 1 unchanged", 2)
}

func TestYieldReplicas(t *testing.T) {
	objects := parse(t, deployment("replicas: 3", "web:v1")+autoscaler)
	out := yieldReplicas(objects)
	if out[0].Replicas == nil || *out[0].Replicas != 3 || !out[0].Autoscaled {
		t.Errorf("%+v", out[0])
	}
	if n, found, _ := unstructured.NestedInt64(objects[0].Object, "spec", "replicas"); !found || n != 3 {
		t.Error("what was given has been changed")
	}
	objects[1].SetNamespace("elsewhere")
	if out := yieldReplicas(objects); out[0].Autoscaled {
		t.Error("an autoscaler scales a workload of another namespace")
	}
}
