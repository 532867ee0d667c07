package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestScheduler places pods on two real nodes, with a cluster of its own: it fills
// them.
func TestScheduler(t *testing.T) {
	t.Parallel()
	c := ownCluster(t)
	bulky := c.namespace(t, "image")
	digest := pulled(t, c, bulky)
	t.Run("cordon", func(t *testing.T) { cordon(t, c, c.namespace(t, "cordon")) })
	t.Run("apart", func(t *testing.T) { apart(t, c, c.namespace(t, "apart")) })
	t.Run("together", func(t *testing.T) { together(t, c, c.namespace(t, "together")) })
	t.Run("gates", func(t *testing.T) { gates(t, c, c.namespace(t, "gates")) })
	t.Run("extended", func(t *testing.T) { extended(t, c, c.namespace(t, "extended")) })
	t.Run("overhead", func(t *testing.T) { overhead(t, c, c.namespace(t, "overhead")) })
	t.Run("budget", func(t *testing.T) { budget(t, c, c.namespace(t, "budget")) })
	t.Run("priority", func(t *testing.T) { priority(t, c, c.namespace(t, "priority")) })
	t.Run("image", func(t *testing.T) { imageThere(t, c, bulky, digest) })
}

// cordon takes a node out of use in the four ways that kubectl has, and back into it.
func cordon(t *testing.T, c *cluster, ns string) {
	k := kubectls(c)["own"].in(ns)
	pod := func(name, tolerations string) {
		c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: `+name+`}
spec:
  terminationGracePeriodSeconds: 1
  tolerations: [`+tolerations+`]
  containers: [{name: main, image: "`+testImage+`"}]
  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [worker-2]}]}]
`)
	}
	contains(t, k.run(t, "cordon", "worker-2"), "node/worker-2 cordoned")
	contains(t, k.run(t, "get", "node", "worker-2"), "Ready,SchedulingDisabled")
	pod("waits", "")
	c.unscheduled(t, ns, "waits", "1 node(s) were unschedulable", "1 node(s) didn't match Pod's node affinity/selector")
	contains(t, k.run(t, "uncordon", "worker-2"), "node/worker-2 uncordoned")
	c.awaitPod(t, ns, "waits", "it runs", ready)

	const brief = `{key: dedicated, operator: Exists, effect: NoExecute, tolerationSeconds: 3600}`
	pod("tolerant", brief)
	c.awaitPod(t, ns, "tolerant", "it runs", ready)
	t.Cleanup(func() { c.run("kubectl", "taint", "node", "worker-2", "dedicated-") })
	k.run(t, "taint", "node", "worker-2", "dedicated=gpu:NoExecute")
	awaitGone(t, c, podsGVR, ns, "waits")
	contains(t, k.run(t, "get", "events", "--field-selector=reason=TaintManagerEviction"), "pod/waits")
	k.run(t, "taint", "node", "worker-2", "dedicated=gpu:NoSchedule")
	k.run(t, "taint", "node", "worker-2", "dedicated:NoExecute-")
	pod("late", brief)
	c.unscheduled(t, ns, "late", "1 node(s) had untolerated taint {dedicated: gpu}")
	contains(t, k.run(t, "describe", "node", "worker-2"), "dedicated=gpu:NoSchedule")
	k.run(t, "taint", "node", "worker-2", "dedicated-")
	c.awaitPod(t, ns, "late", "it runs", ready)
	if p := c.awaitPod(t, ns, "tolerant", "it runs", ready); p.DeletionTimestamp != nil {
		t.Error("the pod that tolerates the taint had to go")
	}

	// Bare pods go by a drain that is told to.
	if r := k.try("", "drain", "worker-2"); !strings.Contains(r.stderr, "cannot delete Pods that declare no controller") {
		t.Errorf("drained pods that nobody makes anew: %s", r)
	}
	contains(t, k.run(t, "drain", "worker-2", "--force"), "pod/late evicted", "pod/tolerant evicted", "node/worker-2 drained")
	k.run(t, "uncordon", "worker-2")
}

// extended counts what an administrator says that a node has.
func extended(t *testing.T, c *cluster, ns string) {
	c.kubectl(t, "patch", "node", "worker-2", "--subresource=status", "-p", `{"status":{"capacity":{"example.com/dongle":"1"}}}`)
	for _, name := range []string{"first", "second"} {
		c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: `+name+`}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: "`+testImage+`", resources: {limits: {example.com/dongle: 1}}}]
`)
		if name == "first" {
			if p := c.awaitPod(t, ns, name, "it is ready", ready); p.Spec.NodeName != "worker-2" {
				t.Errorf("it runs on %s", p.Spec.NodeName)
			}
		}
	}
	c.awaitPod(t, ns, "second", "it waits for another", func(p *corev1.Pod) bool {
		for _, cond := range p.Status.Conditions {
			if cond.Type == corev1.PodScheduled && strings.Contains(cond.Message, "2 Insufficient example.com/dongle") {
				return true
			}
		}
		return false
	})
}

// overhead is counted with what the containers ask for.
func overhead(t *testing.T, c *cluster, ns string) {
	node, err := c.k.CoreV1().Nodes().Get(t.Context(), "worker-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for name, overhead := range map[string]string{"bare": "", "wrapped": fmt.Sprintf("overhead: {cpu: %s}", node.Status.Allocatable.Cpu())} {
		c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: `+name+`}
spec:
  terminationGracePeriodSeconds: 1
  nodeSelector: {kubernetes.io/hostname: worker-1}
  containers: [{name: main, image: "`+testImage+`", resources: {requests: {cpu: 10m}}}]
  `+overhead+`
`)
	}
	c.awaitPod(t, ns, "bare", "it is Ready", ready)
	c.unscheduled(t, ns, "wrapped", "1 Insufficient cpu")
	contains(t, c.kubectl(t, "get", "pod", "wrapped", "-n", ns), "Pending")
	c.kubectl(t, "delete", "pods", "--all", "-n", ns)
}

// apart wants three pods on different nodes, of which there are two.
func apart(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: main, image: "`+testImage+`"}]
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: web}}}]
`)
	split := func(pods []*corev1.Pod) (placed, waiting []*corev1.Pod) {
		for _, p := range pods {
			if p.Spec.NodeName == "" {
				waiting = append(waiting, p)
			} else if ready(p) && p.DeletionTimestamp == nil {
				placed = append(placed, p)
			}
		}
		return placed, waiting
	}
	pods := c.awaitPods(t, ns, "app=web", "two are Ready and one waits", func(pods []*corev1.Pod) bool {
		placed, waiting := split(pods)
		return len(placed) == 2 && len(waiting) == 1
	})
	placed, waiting := split(pods)
	if placed[0].Spec.NodeName == placed[1].Spec.NodeName {
		t.Errorf("both are on %s", placed[0].Spec.NodeName)
	}
	const why = "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules. preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod."
	c.unscheduled(t, ns, waiting[0].Name, why)
	contains(t, c.ok(t, "explain", "pod/"+waiting[0].Name, "-n", ns), "fits nowhere", why, "worker-1", "worker-2", "InterPodAffinity: node(s) didn't match pod anti-affinity rules")

	var x struct {
		RunsOn, Chosen string
		Nodes          []struct {
			Node, Plugin string
			Fits         bool
			Score        int64
		}
	}
	if err := json.Unmarshal([]byte(c.ok(t, "explain", "pod/"+placed[0].Name, "-n", ns, "-o", "json")), &x); err != nil {
		t.Fatal(err)
	}
	if own := placed[0].Spec.NodeName; x.RunsOn != own || x.Chosen != own || len(x.Nodes) != 2 || !x.Nodes[0].Fits || x.Nodes[0].Score <= 0 || x.Nodes[1].Fits {
		t.Errorf("explained a pod on %s: %+v", own, x)
	}
	if r := c.run("explain", "pod/absent", "-n", ns); r.code == 0 {
		t.Errorf("explained a pod that is not there: %s", r)
	}

	c.kubectl(t, "patch", "deployment", "web", "-n", ns, "-p", `{"spec":{"replicas":2}}`)
	c.awaitPods(t, ns, "app=web", "two are left", func(pods []*corev1.Pod) bool {
		placed, waiting := split(pods)
		return len(placed) == 2 && len(waiting) == 0
	})
}

// together puts a pod beside another, which it waits for.
func together(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: follows}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "`+testImage+`"}]
  affinity:
    podAffinity:
      requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: leads}}}]
`)
	c.unscheduled(t, ns, "follows", "2 node(s) didn't match pod affinity rules")
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: leads, labels: {app: leads}}
spec:
  terminationGracePeriodSeconds: 1
  nodeSelector: {kubernetes.io/hostname: worker-2}
  containers: [{name: main, image: "`+testImage+`"}]
`)
	if p := c.awaitPod(t, ns, "follows", "it is Ready", ready); p.Spec.NodeName != "worker-2" {
		t.Errorf("it is on %s", p.Spec.NodeName)
	}
}

// gates hold a pod back until the last one is taken away.
func gates(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: gated}
spec:
  terminationGracePeriodSeconds: 1
  schedulingGates: [{name: example.com/one}, {name: example.com/two}]
  containers: [{name: main, image: "`+testImage+`"}]
`)
	contains(t, c.kubectl(t, "get", "pod", "gated", "-n", ns), "SchedulingGated")
	contains(t, c.ok(t, "explain", "pod/gated", "-n", ns), "held back", "example.com/one, example.com/two")
	gate := func(list string) result {
		return c.run("kubectl", "patch", "pod", "gated", "-n", ns, "--type=merge", "-p", `{"spec":{"schedulingGates":`+list+`}}`)
	}
	r := gate(`[{"name":"example.com/three"}]`)
	if r.code == 0 {
		t.Fatalf("added a gate: %s", r)
	}
	contains(t, r.stderr, "only deletion is allowed, but found new scheduling gate 'example.com/three'")
	if r := gate(`[{"name":"example.com/two"}]`); r.code != 0 {
		t.Fatal(r)
	}
	if p := c.awaitPod(t, ns, "gated", "it is there", func(*corev1.Pod) bool { return true }); p.Spec.NodeName != "" {
		t.Errorf("placed with a gate, on %s", p.Spec.NodeName)
	}
	if r := gate(`null`); r.code != 0 {
		t.Fatal(r)
	}
	c.awaitPod(t, ns, "gated", "it runs without gates", ready)
}

// bulkyPod runs a pod of a large image.
func bulkyPod(t *testing.T, c *cluster, ns, name, spec string) *corev1.Pod {
	t.Helper()
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: `+name+`}
spec: {`+spec+`terminationGracePeriodSeconds: 0, containers: [{name: main, image: "gitk8s.local/test/bulky:v1"}]}
`)
	return c.awaitPod(t, ns, name, "it is Ready", ready)
}

// pulled leaves a large image on worker-2, which tells of it after a while.
func pulled(t *testing.T, c *cluster, ns string) (digest string) {
	t.Helper()
	digest, err := c.pushLarge("test/bulky:v1", 90<<20)
	if err != nil {
		t.Fatal(err)
	}
	bulkyPod(t, c, ns, "first", "nodeName: worker-2, ")
	c.kubectl(t, "delete", "pod", "first", "-n", ns)
	return digest
}

// imageThere prefers the node that has a large image already.
func imageThere(t *testing.T, c *cluster, ns, digest string) {
	await(t, c, nodesGVR, "", "worker-2", "it tells of the image", func(n *corev1.Node) bool { return has(n, digest) })
	if p := bulkyPod(t, c, ns, "second", ""); p.Spec.NodeName != "worker-2" {
		t.Errorf("it is on %s", p.Spec.NodeName)
	}
	var x struct {
		Nodes []struct {
			Node  string
			Score int64
		}
	}
	if err := json.Unmarshal([]byte(c.ok(t, "explain", "pod/second", "-n", ns, "-o", "json")), &x); err != nil {
		t.Fatal(err)
	}
	if len(x.Nodes) != 2 || x.Nodes[0].Node != "worker-2" || x.Nodes[0].Score <= x.Nodes[1].Score {
		t.Errorf("explained: %+v", x)
	}
	c.kubectl(t, "delete", "pod", "second", "-n", ns)
}

// budget keeps the pod that nobody may disrupt where another can go, though that matters
// more.
func budget(t *testing.T, c *cluster, ns string) {
	node, err := c.k.CoreV1().Nodes().Get(t.Context(), "worker-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.run("kubectl", "delete", "priorityclass", "urgent", "middling", "--ignore-not-found") })
	c.apply(t, ns, `apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: urgent}
value: 1000
---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: middling}
value: 10
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: kept}
spec: {minAvailable: 1, selector: {matchLabels: {app: kept}}}
`)
	pod := func(name, spec string) {
		c.apply(t, ns, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %[1]s}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: %q, resources: {requests: {cpu: %s}}}]
  %s
`, name, testImage, node.Status.Allocatable.Cpu(), spec))
		c.awaitPod(t, ns, name, "it is Ready", ready)
	}
	pod("kept", "nodeSelector: {kubernetes.io/hostname: worker-1}")
	pod("free", "nodeSelector: {kubernetes.io/hostname: worker-2}\n  priorityClassName: middling")
	await(t, c, budgetsGVR, ns, "kept", "its pod is counted", func(b *policyv1.PodDisruptionBudget) bool { return b.Status.CurrentHealthy == 1 })
	pod("high", "priorityClassName: urgent")
	awaitGone(t, c, podsGVR, ns, "free")
	if p := c.awaitPod(t, ns, "kept", "it is as it was", ready); p.DeletionTimestamp != nil {
		t.Error("it had to go")
	}
	c.kubectl(t, "delete", "pods", "--all", "-n", ns)
}

// priority lets an important pod take the place of another.
func priority(t *testing.T, c *cluster, ns string) {
	contains(t, c.kubectl(t, "get", "priorityclasses"), "NAME", "VALUE", "GLOBAL-DEFAULT", "AGE", "PREEMPTIONPOLICY",
		"system-cluster-critical", "2000000000", "system-node-critical", "2000001000", "PreemptLowerPriority")
	c.apply(t, ns, `apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: important}
value: 1000
`)
	t.Cleanup(func() { c.run("kubectl", "delete", "priorityclass", "important") })
	node, err := c.k.CoreV1().Nodes().Get(t.Context(), "worker-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod := func(name, class, finalizers string) string {
		return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, finalizers: [%s]}
spec:
  priorityClassName: %q
  terminationGracePeriodSeconds: 5
  nodeSelector: {kubernetes.io/hostname: worker-1}
  containers: [{name: main, image: %q, resources: {requests: {cpu: %s}}, lifecycle: {preStop: {sleep: {seconds: 3}}}}]
`, name, finalizers, class, testImage, node.Status.Allocatable.Cpu())
	}
	r := c.exec("", pod("nobody", "unheard-of", ""), suite.bin, "kubectl", "apply", "-n", ns, "-f", "-")
	if r.code == 0 {
		t.Fatalf("made a pod of a class that is not there: %s", r)
	}
	contains(t, r.stderr, `pods "nobody" is forbidden: no PriorityClass with name unheard-of was found`)

	// The finalizer keeps the victim to be looked at.
	c.apply(t, ns, pod("low", "", "example.com/look"))
	c.awaitPod(t, ns, "low", "it is Ready", ready)
	c.apply(t, ns, pod("high", "important", ""))
	// While the victim ends, its place is kept.
	c.kubectl(t, "wait", "-n", ns, "--for=jsonpath={.status.nominatedNodeName}=worker-1", "pod/high", "--timeout=45s")
	if p := c.awaitPod(t, ns, "high", "it is Ready", ready); *p.Spec.Priority != 1000 || p.Spec.NodeName != "worker-1" {
		t.Errorf("it has priority %d and is on %s", *p.Spec.Priority, p.Spec.NodeName)
	}
	victim := c.awaitPod(t, ns, "low", "it says why it went", func(p *corev1.Pod) bool {
		for _, cond := range p.Status.Conditions {
			if cond.Type == corev1.DisruptionTarget && cond.Status == corev1.ConditionTrue && cond.Reason == corev1.PodReasonPreemptionByScheduler {
				return p.DeletionTimestamp != nil
			}
		}
		return false
	})
	c.kubectl(t, "patch", "pod", "low", "-n", ns, "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
	awaitGone(t, c, podsGVR, ns, "low")
	contains(t, c.kubectl(t, "get", "events", "-n", ns, "--field-selector=reason=Preempted", "-o", "wide"), "Preempted by pod", "on node worker-1", "pod/"+victim.Name)
	failed := c.kubectl(t, "get", "events", "-n", ns, "--field-selector=reason=FailedScheduling")
	if contains(t, failed, "pod/high", "1 Insufficient cpu"); strings.Contains(failed, "preemption:") {
		t.Errorf("the pod that was given room was told that there is none:\n%s", failed)
	}

	// The one that had to go comes back as soon as there is room.
	c.apply(t, ns, pod("low", "", ""))
	c.unscheduled(t, ns, "low", "1 Insufficient cpu", "1 No preemption victims found for incoming pod", "1 Preemption is not helpful for scheduling")
	c.kubectl(t, "delete", "pod", "high", "-n", ns)
	c.awaitPod(t, ns, "low", "it runs again", ready)
}
