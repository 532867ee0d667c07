package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// nodeIs says whether a condition of a node has a status.
func nodeIs(n *corev1.Node, t corev1.NodeConditionType, status corev1.ConditionStatus) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == t && c.Status == status })
}

// available is the memory that the machine has left, in bytes.
func available(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(b), "MemAvailable:")
	var kib int64
	if _, err := fmt.Sscan(after, &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// has says whether a node tells of an image.
func has(n *corev1.Node, digest string) bool {
	return slices.ContainsFunc(n.Status.Images, func(i corev1.ContainerImage) bool {
		return slices.ContainsFunc(i.Names, func(name string) bool { return strings.HasSuffix(name, digest) })
	})
}

// TestPressure takes the disk and the memory of two workers: images that nobody uses
// go first, then the pod that took most, while the node is tainted. At last it shuts
// a worker's machine down.
func TestPressure(t *testing.T) {
	const mib = 1 << 20
	disk := smallDisk(t, 256)
	all := machines(t, 3)
	server := all[0]
	c := server.cluster
	if err := c.serve("--listen", server.ip.String()); err != nil {
		t.Fatal(err)
	}
	if err := c.pushImages(); err != nil {
		t.Fatal(err)
	}
	large, err := c.pushLarge("test/large:v1", 90*mib)
	if err != nil {
		t.Fatal(err)
	}
	all[1].dataDir = filepath.Join(disk, "data")
	all[1].enroll(t, c, "one", map[string]string{
		"eviction-hard": "nodefs.available<30%", "minimum-image-ttl-duration": "1ms",
		"shutdown-grace-period": "40s", "shutdown-grace-period-critical-pods": "20s",
	})
	// Other processes of the machine take and free memory, too.
	threshold := available(t) - 2<<30
	if threshold < 1<<30 {
		t.Fatalf("too little memory for this test: %d MiB available, 3 GiB needed", available(t)/mib)
	}
	all[2].enroll(t, c, "two", map[string]string{"eviction-hard": fmt.Sprintf("memory.available<%d", threshold)})
	startWorkers(t, c, map[string]*machine{"one": all[1], "two": all[2]})
	ns := c.namespace(t, "pressure")
	run := func(node, name, image, volume string) {
		c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: `+name+`}
spec:
  nodeSelector: {kubernetes.io/hostname: `+node+`}
  terminationGracePeriodSeconds: 600
  containers: [{name: main, image: "`+image+`", volumeMounts: [{name: room, mountPath: /room}]}]
  volumes: [{name: room, emptyDir: {`+volume+`}}]
`)
		c.awaitPod(t, ns, name, "it is Ready", ready)
	}
	// evicted waits for that, and for what the node then says of itself.
	evicted := func(name, node, resource string, condition corev1.NodeConditionType, taint string) {
		t.Helper()
		p := c.awaitPod(t, ns, name, "it has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if p.Status.Reason != "Evicted" || !strings.HasPrefix(p.Status.Message, "The node was low on resource: "+resource+". Threshold quantity: ") {
			t.Errorf("%s: %s", p.Status.Reason, p.Status.Message)
		}
		await(t, c, nodesGVR, "", node, "it has the taint", func(n *corev1.Node) bool {
			return nodeIs(n, condition, corev1.ConditionTrue) && slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool {
				return t.Key == taint && t.Effect == corev1.TaintEffectNoSchedule
			})
		})
	}
	// stays checks that a pod is Ready as it was.
	stays := func(name string) {
		t.Helper()
		if p, err := c.k.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{}); err != nil || !ready(p) {
			t.Errorf("the other pod: %v, %+v", err, p.Status)
		}
	}

	run("two", "small", testImage, "medium: Memory")
	run("two", "big", testImage, "medium: Memory")
	// It may be evicted before it has filled all.
	c.run("kubectl", "exec", "-n", ns, "big", "--", "/server", "fill", "/room/file", fmt.Sprint(3<<30>>10))

	run("one", "once", "gitk8s.local/test/large:v1", "")
	run("one", "modest", testImage, "")
	run("one", "hungry", testImage, "")
	await(t, c, nodesGVR, "", "one", "it has the image", func(n *corev1.Node) bool { return has(n, large) })
	c.kubectl(t, "delete", "pod", "-n", ns, "once", "--grace-period=1")
	c.inPod(t, ns, "modest", "fill", "/room/file", fmt.Sprint(100*mib>>10))
	await(t, c, nodesGVR, "", "one", "the image is gone", func(n *corev1.Node) bool { return !has(n, large) })
	stays("modest")
	c.inPod(t, ns, "hungry", "fill", "/room/file", fmt.Sprint(120*mib>>10))
	evicted("hungry", "one", "ephemeral-storage", corev1.NodeDiskPressure, corev1.TaintNodeDiskPressure)
	stays("modest")
	evicted("big", "two", "memory", corev1.NodeMemoryPressure, corev1.TaintNodeMemoryPressure)
	stays("small")

	m := all[1]
	if err := m.worker.cmd.Process.Signal(syscall.SIGPWR); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	select {
	case <-m.worker.done:
	case <-ctx.Done():
		t.Fatal("the worker does not end")
	}
	p, err := c.k.CoreV1().Pods(ns).Get(t.Context(), "modest", metav1.GetOptions{})
	if err != nil || p.Status.Phase != corev1.PodFailed || p.Status.Reason != "Terminated" || p.Status.Message != "Pod was terminated in response to imminent node shutdown." {
		t.Errorf("a pod of a machine that went down: %v, %+v", err, p.Status)
	}
	await(t, c, nodesGVR, "", "one", "it is not Ready", func(n *corev1.Node) bool { return nodeIs(n, corev1.NodeReady, corev1.ConditionFalse) })
}
