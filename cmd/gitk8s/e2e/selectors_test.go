package e2e

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestSelectors relabels pods out of what owns and serves them, and selects with
// every operator that Kubernetes has.
func TestSelectors(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "selectors")
	for kind, manifest := range map[string]string{
		"rs": `apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: rs}
spec:
  replicas: 2
  selector: {matchLabels: {app: rs}, matchExpressions: [{key: tier, operator: In, values: [front, back]}, {key: canary, operator: DoesNotExist}]}
`,
		"rc": `apiVersion: v1
kind: ReplicationController
metadata: {name: rc}
spec:
  replicas: 2
`,
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			c.apply(t, ns, manifest+`  template:
    metadata: {labels: {app: `+kind+`, tier: front}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: "`+testImage+`"}]}
---
apiVersion: v1
kind: Service
metadata: {name: `+kind+`}
spec: {selector: {app: `+kind+`, tier: front}, ports: [{port: 80, targetPort: 8080}]}
`)
			orphaned(t, c, ns, kind)
		})
	}
}

func orphaned(t *testing.T, c *cluster, ns, kind string) {
	readyPods := func(n int) func([]*corev1.Pod) bool {
		return func(pods []*corev1.Pod) bool {
			return len(pods) == n && !slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return !ready(p) })
		}
	}
	pods := c.awaitPods(t, ns, "app="+kind, "two are Ready", readyPods(2))
	c.kubectl(t, "label", "pod", pods[0].Name, "-n", ns, "app=debug-"+kind, "--overwrite")
	c.awaitPods(t, ns, "app="+kind, "a replacement is Ready", readyPods(2))
	p := c.awaitPod(t, ns, pods[0].Name, "it has no owner", func(p *corev1.Pod) bool { return metav1.GetControllerOf(p) == nil })
	if !ready(p) {
		t.Error("the pod that was set free is not Ready any more")
	}
	await(t, c, corev1.SchemeGroupVersion.WithResource("endpoints"), ns, kind, "the pod is not behind the Service", func(e *corev1.Endpoints) bool { //nolint:staticcheck // what kubectl get endpoints shows
		for _, s := range e.Subsets {
			for _, a := range s.Addresses {
				if a.IP == p.Status.PodIP {
					return false
				}
			}
		}
		return len(e.Subsets) == 1 && len(e.Subsets[0].Addresses) == 2
	})
	// Labelled back it is one too many, and the owner takes it up again.
	c.kubectl(t, "label", "pod", p.Name, "-n", ns, "app="+kind, "--overwrite")
	c.awaitPods(t, ns, "app="+kind, "there are two again", readyPods(2))
	c.kubectl(t, "scale", kind+"/"+kind, "-n", ns, "--replicas=1")
	c.awaitPods(t, ns, "app="+kind, "one is left", readyPods(1))
	names := func(selector string) int {
		return len(strings.Fields(c.kubectl(t, "get", "pods", "-n", ns, "-o", "name", "-l", selector)))
	}
	for selector, want := range map[string]int{
		"app=" + kind + ",tier=front":             1,
		"app=" + kind + ",tier=back":              0,
		"app=" + kind + ",tier":                   1,
		"app=" + kind + ",!tier":                  0,
		"app in (" + kind + ",x),tier notin (a)":  1,
		"app=" + kind + ",tier!=front":            0,
		"app=" + kind + ",missing notin (a,b)":    1,
		"app==" + kind + ",tier in (front, back)": 1,
	} {
		if got := names(selector); got != want {
			t.Errorf("%q selects %d pods, want %d", selector, got, want)
		}
	}
}
