package e2e

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
)

var budgetsGVR = policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets")

// TestEviction evicts pods as a drain does: while the budget over them has no place
// left it is refused and says why, and with one pod more it goes through once.
func TestEviction(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "eviction")
	c.apply(t, ns, `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: "`+testImage+`"}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 2, selector: {matchLabels: {app: web}}}
`)
	allowed := func(n, healthy int32) func(*policyv1.PodDisruptionBudget) bool {
		return func(b *policyv1.PodDisruptionBudget) bool {
			return b.Status.ObservedGeneration == b.Generation && b.Status.DisruptionsAllowed == n && b.Status.CurrentHealthy == healthy
		}
	}
	evict := func(name string, dryRun string) result {
		return c.exec("", fmt.Sprintf(`{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":%q,"namespace":%q}}`, name, ns),
			suite.bin, "kubectl", "create", "--raw", "/api/v1/namespaces/"+ns+"/pods/"+name+"/eviction"+dryRun, "-f", "-")
	}
	await(t, c, budgetsGVR, ns, "web", "both are healthy and needed", allowed(0, 2))
	pods := c.awaitPods(t, ns, "app=web", "two", func(pods []*corev1.Pod) bool { return len(pods) == 2 })
	r := evict(pods[0].Name, "")
	if r.code == 0 {
		t.Fatalf("evicted without a place in the budget: %s", r)
	}
	contains(t, r.stderr, "Cannot evict pod as it would violate the pod's disruption budget.")

	c.kubectl(t, "scale", "deployment/web", "-n", ns, "--replicas=3")
	await(t, c, budgetsGVR, ns, "web", "one may go", allowed(1, 3))
	contains(t, c.kubectl(t, "get", "pdb", "-n", ns), "MIN AVAILABLE", "ALLOWED DISRUPTIONS", "N/A")
	if r := evict(pods[0].Name, "?dryRun=All"); r.code != 0 {
		t.Fatal(r)
	}
	if r := evict(pods[0].Name, ""); r.code != 0 {
		t.Fatal(r)
	}
	c.awaitPods(t, ns, "app=web", "the evicted pod is gone and replaced", func(now []*corev1.Pod) bool {
		n := 0
		for _, p := range now {
			if p.UID == pods[0].UID {
				return false
			}
			if ready(p) {
				n++
			}
		}
		return n == 3
	})
	await(t, c, budgetsGVR, ns, "web", "one may go again", allowed(1, 3))
}

// drained moves the two pods app=web of namespace default from worker-1 to worker-2
// with kubectl drain: refused at once while a budget needs both, then one by one.
func drained(t *testing.T, c *cluster) {
	t.Helper()
	c.kubectl(t, "create", "pdb", "web", "--selector=app=web", "--min-available=2")
	await(t, c, budgetsGVR, "default", "web", "it is counted", func(b *policyv1.PodDisruptionBudget) bool {
		return b.Status.ObservedGeneration == b.Generation && b.Status.CurrentHealthy == 2
	})
	r := c.run("kubectl", "drain", "worker-1", "--timeout=2s")
	if r.code == 0 {
		t.Fatalf("drained against the budget: %s", r)
	}
	contains(t, r.stderr, "Cannot evict pod as it would violate the pod's disruption budget.", "will retry after 5s")
	c.kubectl(t, "patch", "pdb", "web", "--type=merge", "--patch", `{"spec":{"minAvailable":1}}`)
	contains(t, c.kubectl(t, "drain", "worker-1", "--timeout=60s"), "node/worker-1 drained")
	c.awaitPods(t, "default", "app=web", "both are on worker-2", func(pods []*corev1.Pod) bool {
		return len(pods) == 2 && allReady(pods) && pods[0].Spec.NodeName == "worker-2" && pods[1].Spec.NodeName == "worker-2"
	})
	contains(t, c.kubectl(t, "get", "nodes"), "Ready,SchedulingDisabled")
	c.kubectl(t, "uncordon", "worker-1")
}
