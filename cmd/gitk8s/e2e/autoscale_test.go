package e2e

import (
	"fmt"
	"strings"
	"testing"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
)

var autoscalersGVR = autoscalingv2.SchemeGroupVersion.WithResource("horizontalpodautoscalers")

// TestAutoscale: what pods use is told, and a workload follows it up and down.
func TestAutoscale(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "autoscale")
	k := kubectls(c)["own"].in(ns)
	c.apply(t, ns, `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: web, image: "gitk8s.local/test/web:v1", args: [busy, /busy], resources: {requests: {cpu: 50m}, limits: {cpu: 200m}}}
`)
	// kubectl autoscale writes autoscaling/v1; the rest is added in v2.
	k.run(t, "autoscale", "deployment", "web", "--min=1", "--max=3", "--cpu-percent=50")
	k.run(t, "patch", "hpa", "web", "--type=merge", "-p", `{"spec":{"behavior":{"scaleDown":{"stabilizationWindowSeconds":0}},"metrics":[
		{"type":"Resource","resource":{"name":"cpu","target":{"type":"Utilization","averageUtilization":50}}},
		{"type":"Resource","resource":{"name":"memory","target":{"type":"AverageValue","averageValue":"4Gi"}}}]}}`)
	if got := k.run(t, "get", "horizontalpodautoscalers.v1.autoscaling", "web", "-o", "jsonpath={.spec.targetCPUUtilizationPercentage} {.metadata.annotations}"); !strings.HasPrefix(got, "50 ") || !strings.Contains(got, "stabilizationWindowSeconds") {
		t.Errorf("in autoscaling/v1 it is %q", got)
	}
	first := c.awaitPods(t, ns, "app=web", "one is ready", func(pods []*corev1.Pod) bool { return len(pods) == 1 && ready(pods[0]) })[0]
	k.run(t, "exec", first.Name, "--", "/server", "write", "/busy", "x")

	await(t, c, autoscalersGVR, ns, "web", "it wants three pods", func(a *autoscalingv2.HorizontalPodAutoscaler) bool { return a.Status.DesiredReplicas == 3 })
	c.awaitPods(t, ns, "app=web", "three are ready", func(pods []*corev1.Pod) bool {
		n := 0
		for _, p := range pods {
			if ready(p) {
				n++
			}
		}
		return n == 3 && len(pods) == 3
	})
	contains(t, k.run(t, "get", "hpa"), "REFERENCE", "TARGETS", "MINPODS   MAXPODS   REPLICAS", "web    Deployment/web   cpu: ", "%/50%, memory: ", "/4Gi")
	contains(t, k.run(t, "describe", "hpa", "web"), "SuccessfulRescale", "New size: 3; reason: cpu resource utilization (percentage of request) above target",
		"ScalingActive   True    ValidMetricFound")

	// The one that works hard shows: 200m is its limit.
	eventually(t, "the usage of all pods is told", func() error {
		r := k.try("", "top", "pod", "--containers")
		for line := range strings.Lines(r.stdout) {
			var pod, container string
			var cpu, memory int
			if n, _ := fmt.Sscanf(line, "%s %s %dm %dMi", &pod, &container, &cpu, &memory); n < 3 || pod != first.Name {
				continue
			}
			if container != "web" || cpu < 50 || cpu > 300 {
				return fmt.Errorf("%s", r)
			}
			if strings.Count(r.stdout, "\n") != 4 {
				return fmt.Errorf("not all pods: %s", r)
			}
			return nil
		}
		return fmt.Errorf("%s", r)
	})
	contains(t, k.run(t, "top", "node"), "CPU(cores)", "MEMORY(bytes)", "worker-1", "worker-2")
	contains(t, k.run(t, "get", "--raw", "/apis/metrics.k8s.io/v1beta1/namespaces/"+ns+"/pods/"+first.Name), `"kind":"PodMetrics"`, `"app":"web"`, `"window":"`)

	k.run(t, "exec", first.Name, "--", "/server", "remove", "/busy")
	await(t, c, autoscalersGVR, ns, "web", "it wants one pod", func(a *autoscalingv2.HorizontalPodAutoscaler) bool { return a.Status.DesiredReplicas == 1 })
	c.awaitPods(t, ns, "app=web", "one is left", func(pods []*corev1.Pod) bool { return len(pods) == 1 })

	// Without a request there is nothing of which it could be a percentage.
	k.run(t, "set", "resources", "deployment/web", "--requests=cpu=0", "--limits=cpu=0")
	k.run(t, "patch", "deployment", "web", "--type=json", "-p", `[{"op":"remove","path":"/spec/template/spec/containers/0/resources"}]`)
	eventually(t, "it says what is missing", func() error {
		out := k.run(t, "describe", "hpa", "web")
		if !strings.Contains(out, "missing request for cpu in container web of Pod") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	for manifest, want := range map[string]string{
		`{"spec":{"maxReplicas":0}}`: "spec.maxReplicas: Invalid value: 0: must be greater than 0",
		`{"spec":{"metrics":[{"type":"Pods","pods":{"metric":{"name":"rps"},"target":{"type":"AverageValue","averageValue":"1"}}}]}}`: "Warning: spec.metrics[0]: metrics of type Pods are not acted on yet",
	} {
		if r := k.try("", "patch", "hpa", "web", "--type=merge", "-p", manifest); !strings.Contains(r.stderr, want) {
			t.Errorf("%s: %s", manifest, r)
		}
	}
}
