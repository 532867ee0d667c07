package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// tool is one kubectl wired to a cluster and a namespace.
type tool struct {
	c    *cluster
	args []string
}

// kubectls are ours and, where there is one, the machine's own.
func kubectls(c *cluster) map[string]tool {
	out := map[string]tool{"own": {c, []string{suite.bin, "kubectl"}}}
	const system = "/usr/bin/kubectl"
	if _, err := os.Stat(system); err == nil {
		out["system"] = tool{c, []string{system, "--kubeconfig", c.info.Kubeconfig}}
	}
	return out
}

func (k tool) in(ns string) tool {
	return tool{k.c, append(k.args[:len(k.args):len(k.args)], "-n", ns)}
}

func (k tool) try(stdin string, args ...string) result {
	return k.c.exec("", stdin, append(k.args[:len(k.args):len(k.args)], args...)...)
}

func (k tool) run(t *testing.T, args ...string) string {
	t.Helper()
	r := k.try("", args...)
	if r.code != 0 {
		t.Fatal(r)
	}
	return r.stdout
}

// TestKubectl goes through what people do with kubectl all day.
func TestKubectl(t *testing.T) {
	t.Parallel()
	c := suite.shared
	for name, k := range kubectls(c) {
		t.Run(name, func(t *testing.T) {
			ns := c.namespace(t, "kubectl-"+name)
			kubectlDay(t, c, k.in(ns), ns)
		})
	}
}

func kubectlDay(t *testing.T, c *cluster, k tool, ns string) {
	contains(t, k.run(t, "get", "nodes"), "worker-1", "worker-2", "Ready")
	k.run(t, "create", "deployment", "web", "--image=gitk8s.local/test/web:v1", "--replicas=2", "--port=8080")
	k.run(t, "rollout", "status", "deployment/web", "--timeout=45s")
	k.run(t, "expose", "deployment", "web", "--port=80", "--target-port=8080")
	contains(t, k.run(t, "get", "all", "-o", "wide"), "deployment.apps/web", "2/2", "replicaset.apps/web-", "service/web", "Running")
	pod := strings.Fields(k.run(t, "get", "pods", "-l", "app=web", "-o", "name"))[0]
	contains(t, k.run(t, "describe", pod), "Successfully assigned", "Started container web", "gitk8s.local/test/web:v1", "Ready")
	contains(t, k.run(t, "describe", "deployment", "web"), "ScalingReplicaSet", "2 available")
	contains(t, k.run(t, "logs", pod), "listening v1")
	stamped := k.run(t, "logs", pod, "--all-containers", "--timestamps", "--since=1h", "--tail=1")
	if at, _, _ := strings.Cut(stamped, " "); !strings.Contains(stamped, " listening v1") {
		t.Errorf("logs with all flags: %q", stamped)
	} else if _, err := time.Parse(time.RFC3339Nano, at); err != nil {
		t.Error(err)
	}
	if got := k.run(t, "logs", pod, "--since-time=2999-01-01T00:00:00Z"); got != "" {
		t.Errorf("logs of the future: %q", got)
	}
	if got := k.run(t, "exec", pod, "--", "/server", "args", "one", "two words"); got != "one|two words\n" {
		t.Errorf("exec printed %q", got)
	}
	if r := k.try("from stdin", "exec", "-i", pod, "--", "/server", "stdin"); r.stdout != "from stdin" {
		t.Errorf("exec -i: %s", r)
	}
	if r := k.try("", "exec", pod, "--", "/server", "exit", "7"); r.code != 7 {
		t.Errorf("exec should pass exit code 7 on: %s", r)
	}
	portForward(t, k, pod, "8080", "v1 from web-")
	portForward(t, k, "service/web", "80", "v1 from web-")

	k.run(t, "scale", "deployment/web", "--replicas=3")
	k.run(t, "wait", "--for=jsonpath={.status.readyReplicas}=3", "deployment/web", "--timeout=45s")
	k.run(t, "set", "image", "deployment/web", "web=gitk8s.local/test/web:v2")
	k.run(t, "rollout", "status", "deployment/web", "--timeout=45s")
	c.answers(t, ns, "web", "v2 from web-")
	k.run(t, "rollout", "undo", "deployment/web")
	k.run(t, "rollout", "status", "deployment/web", "--timeout=45s")
	c.answers(t, ns, "web", "v1 from web-")
	k.run(t, "rollout", "restart", "deployment/web")
	k.run(t, "rollout", "status", "deployment/web", "--timeout=45s")
	k.run(t, "rollout", "pause", "deployment/web")
	k.run(t, "set", "image", "deployment/web", "web=gitk8s.local/test/web:v2")
	generation := k.run(t, "get", "deployment/web", "-o", "jsonpath={.metadata.generation}")
	k.run(t, "wait", "--for=jsonpath={.status.observedGeneration}="+generation, "deployment/web", "--timeout=45s")
	if got := k.run(t, "get", "deployment/web", "-o", "jsonpath={.status.updatedReplicas}"); got != "" && got != "0" {
		t.Errorf("paused, and %s pods are updated", got)
	}
	c.answers(t, ns, "web", "v1 from web-")
	k.run(t, "rollout", "resume", "deployment/web")
	k.run(t, "rollout", "status", "deployment/web", "--timeout=45s")
	c.answers(t, ns, "web", "v2 from web-")
	// v2 is revision 5, and what was undone and restarted before it the fourth.
	k.run(t, "rollout", "undo", "deployment/web", "--to-revision=4")
	k.run(t, "rollout", "status", "deployment/web", "--timeout=45s")
	c.answers(t, ns, "web", "v1 from web-")

	manifest := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: applied}\ndata: {a: one}\n"
	for _, flags := range [][]string{{"--server-side"}, {"--server-side", "--dry-run=server"}} {
		if r := k.try(manifest, append([]string{"apply", "-f", "-"}, flags...)...); r.code != 0 {
			t.Error(r)
		}
	}
	if r := k.try(strings.Replace(manifest, "one", "two", 1), "diff", "--server-side", "-f", "-"); r.code != 1 {
		t.Errorf("diff of a changed object should exit with 1: %s", r)
	}
	if r := k.try("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndate: {}\n", "apply", "-f", "-"); r.code == 0 || !strings.Contains(r.stderr, `unknown field "date"`) {
		t.Errorf("an unknown field should be refused: %s", r)
	}
	k.run(t, "patch", "configmap", "applied", "--type=json", "-p", `[{"op":"replace","path":"/data/a","value":"three"}]`)
	k.run(t, "label", "configmap", "applied", "tier=back")
	contains(t, k.run(t, "get", "configmaps", "-l", "tier=back", "-o", "yaml"), "a: three")
	contains(t, k.run(t, "explain", "deployment.spec.strategy"), "RollingUpdate")
	contains(t, k.run(t, "api-resources"), "applications", "revisions", "deployments")
	contains(t, k.run(t, "auth", "can-i", "create", "pods"), "yes")

	cascades(t, c, k, ns)
}

// cascades deletes in the three ways there are.
func cascades(t *testing.T, c *cluster, k tool, ns string) {
	none := func(pods []*corev1.Pod) bool { return len(pods) == 0 }
	k.run(t, "delete", "deployment", "web")
	c.awaitPods(t, ns, "app=web", "all are gone", none)
	if rs, err := c.k.AppsV1().ReplicaSets(ns).List(t.Context(), metav1.ListOptions{}); err != nil || len(rs.Items) > 0 {
		t.Errorf("replica sets left after a cascading delete: %v %v", rs.Items, err)
	}
	k.run(t, "create", "deployment", "two", "--image=gitk8s.local/test/web:v1")
	k.run(t, "rollout", "status", "deployment/two", "--timeout=45s")
	k.run(t, "delete", "deployment", "two", "--cascade=orphan")
	rs, err := c.k.AppsV1().ReplicaSets(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=two"})
	if err != nil || len(rs.Items) != 1 {
		t.Fatalf("orphaned replica sets: %v %v", rs, err)
	}
	await(t, c, appsv1.SchemeGroupVersion.WithResource("replicasets"), ns, rs.Items[0].Name, "it is ownerless", func(r *appsv1.ReplicaSet) bool {
		return len(r.OwnerReferences) == 0 && r.Status.ReadyReplicas == 1
	})
	// A deployment of the same selector adopts them instead of starting others.
	k.run(t, "create", "deployment", "two", "--image=gitk8s.local/test/web:v1")
	await(t, c, appsv1.SchemeGroupVersion.WithResource("replicasets"), ns, rs.Items[0].Name, "it is adopted", func(r *appsv1.ReplicaSet) bool {
		return len(r.OwnerReferences) == 1
	})
	k.run(t, "delete", "deployment", "two", "--cascade=foreground", "--timeout=45s")
	pods, err := c.k.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=two"})
	if err != nil || len(pods.Items) > 0 {
		t.Errorf("a foreground delete returned before its pods were gone: %d %v", len(pods.Items), err)
	}
}

var forwarding = regexp.MustCompile(`Forwarding from (127\.0\.0\.1:\d+)`)

// portForward runs `kubectl port-forward` and sends a request through it.
func portForward(t *testing.T, k tool, target, port, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p, err := k.c.launch(append(k.args[:len(k.args):len(k.args)], "port-forward", target, ":"+port)...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = p.cmd.Process.Kill()
		<-p.done
	}()
	if err := p.out.await(ctx, "Forwarding from [::1]"); err != nil {
		// A machine without IPv6 prints the first line alone.
		if err := p.out.await(t.Context(), "Forwarding from 127.0.0.1"); err != nil {
			t.Fatalf("%v\n%s", err, p.out)
		}
	}
	m := forwarding.FindStringSubmatch(p.out.String())
	if m == nil {
		t.Fatalf("no address in: %s", p.out)
	}
	resp, err := http.Get("http://" + m[1] + "/")
	if err != nil {
		t.Fatalf("request through port-forward to %s: %v\n%s", target, err, p.out)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(b), want) {
		t.Errorf("through port-forward to %s: %q %v", target, b, err)
	}
}

// TestNobodyLetIn knocks without credentials, and with those of a worker.
func TestNobodyLetIn(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "letin")
	insecure := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	for url, want := range map[string]int{
		c.info.API + "/api/v1/namespaces/default/secrets": http.StatusUnauthorized,
		c.info.API + "/apis":                              http.StatusUnauthorized,
		c.info.API + "/readyz":                            http.StatusOK,
		c.info.Git + "/default/shop.git/info/refs":        http.StatusUnauthorized,
		"http://" + c.info.Registry + "/v2/":              http.StatusUnauthorized,
		c.info.Metrics:                                    http.StatusUnauthorized,
	} {
		resp, err := insecure.Get(url)
		if err != nil {
			t.Error(err)
			continue
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s without credentials: %s, want %d", url, resp.Status, want)
		}
	}

	cfg, err := clientcmd.BuildConfigFromFlags("", filepath.Join(c.dataDir, "nodes", "worker-1", "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Host = c.info.API // the address in the file is that of the workers' network
	node, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for _, name := range []string{"used", "unused"} {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: map[string]string{"key": "value"}}
		if _, err := c.k.CoreV1().Secrets(ns).Create(ctx, s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for i, secret := range []string{"used", "unused"} {
		c.apply(t, ns, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: on-%d}
spec:
  nodeName: worker-%d
  containers: [{name: c, image: "gitk8s.local/test/web:v1", envFrom: [{secretRef: {name: %s}}]}]
`, i+1, i+1, secret))
		c.awaitPod(t, ns, fmt.Sprintf("on-%d", i+1), "it is Ready", ready)
	}
	forbidden := func(what string, err error) {
		t.Helper()
		if !apierrors.IsForbidden(err) {
			t.Errorf("worker-1 %s: %v, want Forbidden", what, err)
		}
	}
	if _, err := node.CoreV1().Secrets(ns).Get(ctx, "used", metav1.GetOptions{}); err != nil {
		t.Errorf("worker-1 reads the Secret of its pod: %v", err)
	}
	_, err = node.CoreV1().Secrets(ns).Get(ctx, "unused", metav1.GetOptions{})
	forbidden("reads a Secret of worker-2's pod", err)
	_, err = node.CoreV1().Secrets(ns).List(ctx, metav1.ListOptions{})
	forbidden("lists Secrets", err)
	_, err = node.CoreV1().Secrets(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	forbidden("lists all Secrets", err)
	forbidden("deletes worker-2's pod", node.CoreV1().Pods(ns).Delete(ctx, "on-2", metav1.DeleteOptions{}))
	_, err = node.CoreV1().Nodes().Patch(ctx, "worker-2", "application/merge-patch+json", []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{})
	forbidden("writes worker-2's Node", err)
	_, err = node.AppsV1().Deployments(ns).Create(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, metav1.CreateOptions{})
	forbidden("creates a Deployment", err)
}
