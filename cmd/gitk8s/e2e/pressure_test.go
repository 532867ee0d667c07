package e2e

import (
	"context"
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

// TestPressure fills the disk of a worker by one of its pods, which is evicted while
// the node is tainted, and then shuts the worker's machine down.
func TestPressure(t *testing.T) {
	disk := smallDisk(t, 256)
	all := machines(t, 2)
	server, m := all[0], all[1]
	m.dataDir = filepath.Join(disk, "data")
	c := server.cluster
	if err := c.serve("--listen", server.ip.String()); err != nil {
		t.Fatal(err)
	}
	if err := c.pushImages(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(m.dataDir, "nodes", "one")
	c.ok(t, "server", "enroll", "one", m.ip.String(), "--out", dir)
	config, err := os.OpenFile(filepath.Join(dir, "config.yaml"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := config.WriteString("eviction-hard: nodefs.available<30%\nshutdown-grace-period: 40s\nshutdown-grace-period-critical-pods: 20s\n"); err != nil {
		t.Fatal(err)
	}
	if err := config.Close(); err != nil {
		t.Fatal(err)
	}
	m.startWorker(t, "one")
	await(t, c, nodesGVR, "", "one", "the node is Ready", nodeReady)

	ns := c.namespace(t, "pressure")
	for _, name := range []string{"modest", "hungry"} {
		c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: `+name+`}
spec:
  terminationGracePeriodSeconds: 600
  containers: [{name: main, image: "`+testImage+`", volumeMounts: [{name: room, mountPath: /room}]}]
  volumes: [{name: room, emptyDir: {}}]
`)
		c.awaitPod(t, ns, name, "it is Ready", ready)
	}
	c.inPod(t, ns, "hungry", "fill", "/room/file", "163840") // KiB of 256 Mi
	p := c.awaitPod(t, ns, "hungry", "it has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if p.Status.Reason != "Evicted" || !strings.HasPrefix(p.Status.Message, "The node was low on resource: ephemeral-storage. Threshold quantity: ") {
		t.Errorf("%s: %s", p.Status.Reason, p.Status.Message)
	}
	await(t, c, nodesGVR, "", "one", "it has the taint", func(n *corev1.Node) bool {
		return nodeIs(n, corev1.NodeDiskPressure, corev1.ConditionTrue) && slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool {
			return t.Key == corev1.TaintNodeDiskPressure && t.Effect == corev1.TaintEffectNoSchedule
		})
	})
	p, err = c.k.CoreV1().Pods(ns).Get(t.Context(), "modest", metav1.GetOptions{})
	if err != nil || !ready(p) {
		t.Errorf("the other pod: %v, %+v", err, p.Status)
	}

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
	p, err = c.k.CoreV1().Pods(ns).Get(t.Context(), "modest", metav1.GetOptions{})
	if err != nil || p.Status.Phase != corev1.PodFailed || p.Status.Reason != "Terminated" || p.Status.Message != "Pod was terminated in response to imminent node shutdown." {
		t.Errorf("a pod of a machine that went down: %v, %+v", err, p.Status)
	}
	await(t, c, nodesGVR, "", "one", "it is not Ready", func(n *corev1.Node) bool { return nodeIs(n, corev1.NodeReady, corev1.ConditionFalse) })
}
