package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// staticWeb is the file of a static pod that runs the image's program with a greeting.
func staticWeb(name, greeting string) string {
	return `apiVersion: v1
kind: Pod
metadata: {name: ` + name + `, namespace: kube-system, labels: {app: static}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: ` + testImage + `
    env: [{name: GREETING, value: ` + greeting + `}]
    readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
`
}

// TestStaticPods: a worker on a machine of its own runs the pods of a directory, with
// and without the API, which has mirrors of them. It joins a cluster that has a DaemonSet, and
// keeps a part of its machine to itself.
func TestStaticPods(t *testing.T) {
	t.Parallel()
	all := machines(t, 2)
	c, m := all[0].cluster, all[1]
	if err := c.serve("--listen", all[0].ip.String()); err != nil {
		t.Fatal(err)
	}
	if err := c.pushImages(); err != nil {
		t.Fatal(err)
	}
	manifests := t.TempDir()
	m.enroll(t, c, "one", map[string]string{
		"pod-manifest-path": manifests, "system-reserved": "cpu=100m,memory=1Gi", "eviction-hard": "memory.available<1Mi",
	})
	write := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(manifests, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.apply(t, "default", `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: "`+testImage+`"}]}
`)
	const ns, name = "kube-system", "web-one"
	write("web.yaml", staticWeb("web", "hello"))
	ended := time.Now().Add(40 * time.Second) // long enough to start on a busy machine
	m.age(t, c, "one", ended)
	m.startWorker(t, "one")
	first := c.awaitPod(t, ns, name, "it is Ready", ready)
	c.awaitPods(t, "default", "app=everywhere", "the node that has joined has its pod", func(pods []*corev1.Pod) bool {
		return len(pods) == 1 && ready(pods[0]) && pods[0].Spec.NodeName == "one"
	})
	node := await(t, c, nodesGVR, "", "one", "it is Ready", nodeReady)
	for resource, want := range map[corev1.ResourceName]int64{corev1.ResourceCPU: 100, corev1.ResourceMemory: (1<<30 + 1<<20) * 1000} {
		all, free := node.Status.Capacity[resource], node.Status.Allocatable[resource]
		if kept := all.MilliValue() - free.MilliValue(); kept != want {
			t.Errorf("of %s %s are %s allocatable", &all, resource, &free)
		}
	}
	life := func(p *corev1.Pod) string { return containerStatus(p, "web").ContainerID }

	for tool, k := range kubectls(c) {
		t.Run(tool, func(t *testing.T) {
			k := k.in(ns)
			contains(t, k.run(t, "get", "pods", "-o", "wide"), name, "1/1", "Running", "one")
			contains(t, k.run(t, "logs", name), "listening v1")
			contains(t, k.run(t, "exec", name, "--", "/server", "env"), "GREETING=hello")
			contains(t, k.run(t, "describe", "pod", name), "Controlled By:", "Node/one", "Started container web", "op=Exists")
		})
	}
	k := kubectls(c)["own"].in(ns)
	t.Run("its mirror comes back", func(t *testing.T) {
		k.run(t, "delete", "pod", name)
		p := c.awaitPod(t, ns, name, "it is back", func(p *corev1.Pod) bool { return ready(p) && p.UID != first.UID })
		if life(p) != life(first) || containerStatus(p, "web").RestartCount != 0 {
			t.Errorf("the container was touched: %+v, before %+v", p.Status, first.Status)
		}
	})
	t.Run("a drain leaves it", func(t *testing.T) {
		k.run(t, "drain", "one", "--ignore-daemonsets", "--timeout=30s")
		k.run(t, "uncordon", "one")
		if p := c.awaitPod(t, ns, name, "it is Ready", ready); life(p) != life(first) {
			t.Errorf("it was drained: %+v", p.Status)
		}
	})
	t.Run("another content is another pod", func(t *testing.T) {
		write("web.yaml", staticWeb("web", "bye"))
		p := c.awaitPod(t, ns, name, "it is new and Ready", func(p *corev1.Pod) bool { return ready(p) && p.Spec.Containers[0].Env[0].Value == "bye" })
		if life(p) == life(first) {
			t.Errorf("the container is the old one: %+v", p.Status)
		}
		contains(t, k.run(t, "exec", name, "--", "/server", "env"), "GREETING=bye")
	})
	t.Run("a bad file is named", func(t *testing.T) {
		write("bad.yaml", strings.Replace(staticWeb("bad", "x"), "spec:", "spec:\n  serviceAccountName: admin", 1))
		eventually(t, "an event names it", func() error {
			if text := c.kubectl(t, "describe", "node", "one"); !strings.Contains(text, "static pod file bad.yaml: static pods may not reference serviceaccounts") {
				return fmt.Errorf("not in:\n%s", text)
			}
			return nil
		})
		contains(t, m.worker.out.String(), "bad.yaml")
	})
	t.Run("its certificates are renewed", func(t *testing.T) { renewedCertificates(t, m, c, ended) })
	t.Run("without the API", func(t *testing.T) {
		before := life(c.awaitPod(t, ns, name, "it is Ready", ready))
		if err := c.interrupt(); err != nil {
			t.Fatal(err)
		}
		write("late.yml", staticWeb("late", "late"))
		eventually(t, "the container runs", func() error {
			logs, _ := filepath.Glob(filepath.Join(m.nodeDir("one"), "logs", "pods", "kube-system_late-one_*", "web", "0.log"))
			if len(logs) != 1 {
				return fmt.Errorf("its logs are %q", logs)
			}
			if b, err := os.ReadFile(logs[0]); err != nil || !strings.Contains(string(b), "listening v1") {
				return fmt.Errorf("it says %q, %v", b, err)
			}
			return nil
		})
		if err := c.serve("--listen", all[0].ip.String()); err != nil {
			t.Fatal(err)
		}
		c.awaitPod(t, ns, "late-one", "its mirror is there", ready)
		if p := c.awaitPod(t, ns, name, "it is Ready", ready); life(p) != before {
			t.Errorf("the container changed while the API was away: %+v, before %s", p.Status, before)
		}
	})
	t.Run("a worker that starts again finds it", func(t *testing.T) {
		before := c.awaitPod(t, ns, name, "it is Ready", ready)
		kill9(t, m.worker.cmd.Process.Pid)
		<-m.worker.done
		if err := os.Remove(filepath.Join(manifests, "late.yml")); err != nil {
			t.Fatal(err)
		}
		m.startWorker(t, "one")
		c.awaitPods(t, ns, "app=static", "what has no file is gone", func(pods []*corev1.Pod) bool { return len(pods) == 1 && ready(pods[0]) })
		if p := c.awaitPod(t, ns, name, "it is Ready", ready); p.UID != before.UID || life(p) != life(before) {
			t.Errorf("it is %s %s, before %s %s", p.UID, life(p), before.UID, life(before))
		}
	})
	if err := os.Remove(filepath.Join(manifests, "web.yaml")); err != nil {
		t.Fatal(err)
	}
	c.awaitPods(t, ns, "app=static", "none is left", func(pods []*corev1.Pod) bool { return len(pods) == 0 })
	if list, err := c.k.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) > 0 {
		t.Errorf("pods are left: %v %v", list, err)
	}
}
