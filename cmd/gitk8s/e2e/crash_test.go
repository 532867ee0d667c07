package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

// fleet is the Deployment whose rolling update goes on while processes are killed.
// Its pods answer for a second after they were asked to end, as pods behind a
// Service do that lose no request.
func fleet(tag string) map[string]string {
	return map[string]string{"fleet.yaml": fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 6
  selector: {matchLabels: {app: web}}
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
      - name: web
        image: gitk8s.local/test/web:%s
        ports: [{containerPort: 8080, name: http}]
        readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 1}
        lifecycle: {preStop: {exec: {command: [/server, sleep, 1s]}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
`, tag)}
}

// lost are the requests that may fail when a pod is killed: the client has one under
// way at a time, so one, and those that are sent to it until the proxies know.
const lost = 30

// life is what must not change in a container that is not restarted.
type life struct {
	id       string
	started  metav1.Time
	restarts int32
}

func lifeOf(p *corev1.Pod) life {
	if len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].State.Running == nil {
		return life{}
	}
	s := p.Status.ContainerStatuses[0]
	return life{s.ContainerID, s.State.Running.StartedAt, s.RestartCount}
}

// isNew says whether a pod is Ready with the image of a tag.
func isNew(p *corev1.Pod, tag string) bool {
	return strings.Contains(p.Spec.Containers[0].Image, ":"+tag) && ready(p)
}

// processOf finds the process of the cluster whose command line has all parts.
func (c *cluster) processOf(t *testing.T, parts ...string) int {
	t.Helper()
	var found []int
	for _, pid := range c.processes() {
		all := true
		for _, p := range parts {
			all = all && strings.Contains(cmdline(pid), p)
		}
		if all {
			found = append(found, pid)
		}
	}
	if len(found) != 1 {
		t.Fatalf("processes with %q: %d", parts, found)
	}
	return found[0]
}

// child is the first child of a process.
func child(t *testing.T, pid int) int {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, _ := os.ReadFile(f)
		if fields := strings.Fields(string(b)); len(fields) > 0 {
			n, err := strconv.Atoi(fields[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("process %d has no child", pid)
	return 0
}

func kill9(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

// TestKill kills every process in turn, without warning, while a client in a pod
// keeps requesting a Service.
func TestKill(t *testing.T) {
	c := ownCluster(t)
	ns := c.namespace(t, "kill")
	r := newRepo(t, c)
	r.add(ns, "shop")
	r.commit("v1", fleet("v1"))
	r.deploy()
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: worker-1, containers: [{name: client, image: "gitk8s.local/test/web:v1"}]}
`)
	client := c.awaitPod(t, ns, "client", "it is Ready", ready)
	svc, err := c.k.CoreV1().Services(ns).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(t *testing.T, path string) string {
		t.Helper()
		var out []byte
		eventually(t, "the client answers "+path, func() (err error) {
			out, err = c.k.CoreV1().Pods(ns).ProxyGet("http", "client", "8080", "/load/"+path, nil).DoRaw(t.Context())
			return err
		})
		return string(out)
	}
	start := func(t *testing.T) {
		t.Helper()
		eventually(t, "the load starts", func() error {
			return c.k.CoreV1().RESTClient().Get().Namespace(ns).Resource("pods").Name("client:8080").SubResource("proxy").
				Suffix("load/start").Param("url", "http://"+svc.Spec.ClusterIP+"/").Do(t.Context()).Error()
		})
	}
	// stop ends the load and fails the test if more than allowed requests failed.
	stop := func(t *testing.T, allowed int) {
		t.Helper()
		var report struct {
			Total, Failed int
			Errors        []string
		}
		if err := json.Unmarshal([]byte(ask(t, "stop")), &report); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d of %d requests failed", report.Failed, report.Total)
		if report.Failed > allowed || report.Total < 5 {
			t.Errorf("%d of %d requests failed, %d may:\n%s", report.Failed, report.Total, allowed, strings.Join(report.Errors, "\n"))
		}
	}
	rolled := func(t *testing.T, tag, sha string) {
		t.Helper()
		c.awaitApp(t, ns, "shop", tag+" is Ready", func(a *v1alpha1.Application) bool {
			return a.Status.DeployedCommit == sha && a.Status.Phase == v1alpha1.PhaseReady
		})
		await(t, c, deploymentsGVR, ns, "web", "all replicas are "+tag, func(d *appsv1.Deployment) bool {
			return d.Status.ObservedGeneration == d.Generation && d.Status.UpdatedReplicas == 6 && d.Status.ReadyReplicas == 6 && d.Status.Replicas == 6
		})
	}
	// update pushes a tag and returns once the first pod of it is Ready.
	update := func(t *testing.T, tag string) (sha string, pushed func()) {
		t.Helper()
		r.add(ns, "shop") // a start with free ports finds others
		sha = r.commit(tag, fleet(tag))
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = r.try("push", "gitk8s", "main") // `up` may be killed under it
		}()
		c.awaitPods(t, ns, "app=web", "one is "+tag, func(pods []*corev1.Pod) bool {
			return slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return isNew(p, tag) })
		})
		return sha, func() { <-done }
	}
	unharmed := func(t *testing.T, was *corev1.Pod) {
		t.Helper()
		now := c.awaitPod(t, ns, was.Name, "it is Ready", ready)
		if lifeOf(now) != lifeOf(was) {
			t.Errorf("the container of %s was restarted: %+v before, %+v now", was.Name, lifeOf(was), lifeOf(now))
		}
	}

	t.Run("up, while a rolling update runs", func(t *testing.T) {
		start(t)
		sha, pushed := update(t, "v2")
		pods := c.awaitPods(t, ns, "app=web", "they are listed", func(p []*corev1.Pod) bool { return len(p) > 0 })
		c.kill()
		pushed()
		if err := c.start(); err != nil {
			t.Fatal(err)
		}
		rolled(t, "v2", sha)
		stop(t, 0)
		unharmed(t, client)
		for _, was := range pods {
			now, err := c.k.CoreV1().Pods(ns).Get(t.Context(), was.Name, metav1.GetOptions{})
			if err == nil && ready(was) && ready(now) && lifeOf(now) != lifeOf(was) {
				t.Errorf("the container of %s was restarted: %+v before, %+v now", was.Name, lifeOf(was), lifeOf(now))
			}
		}
	})
	t.Run("a worker, while a rolling update runs", func(t *testing.T) {
		start(t)
		sha, pushed := update(t, "v1")
		worker := c.processOf(t, " agent ", "--name worker-1")
		kill9(t, worker)
		pushed()
		rolled(t, "v1", sha)
		stop(t, 0)
		unharmed(t, client)
		select {
		case <-c.up.done:
			t.Fatalf("up ended with its worker: %v", c.up.err)
		default:
		}
		if now := c.processOf(t, " agent ", "--name worker-1"); now == worker {
			t.Errorf("process %d is still there", worker)
		}
	})
	// killed ends a process of the first pod of a new tag, right after that became
	// Ready: it comes back, and the update goes on to its end.
	killed := func(t *testing.T, tag string, process func(*corev1.Pod) int) {
		start(t)
		sha, pushed := update(t, tag)
		var pod *corev1.Pod
		c.awaitPods(t, ns, "app=web", "one is "+tag, func(pods []*corev1.Pod) bool {
			i := slices.IndexFunc(pods, func(p *corev1.Pod) bool { return isNew(p, tag) })
			if i >= 0 {
				pod = pods[i]
			}
			return i >= 0
		})
		kill9(t, process(pod))
		c.awaitPod(t, ns, pod.Name, "its container runs again", func(p *corev1.Pod) bool {
			l := lifeOf(p)
			return ready(p) && l.id != "" && l.id != lifeOf(pod).id && l.restarts == lifeOf(pod).restarts+1
		})
		pushed()
		rolled(t, tag, sha)
		stop(t, lost)
	}
	t.Run("a shim, while a rolling update runs", func(t *testing.T) {
		killed(t, "v2", func(p *corev1.Pod) int { return c.processOf(t, "gitk8s-shim", ns+"/"+p.Name) })
	})
	t.Run("a container's init, while a rolling update runs", func(t *testing.T) {
		killed(t, "v1", func(p *corev1.Pod) int { return child(t, c.processOf(t, "gitk8s-shim", ns+"/"+p.Name)) })
	})
	t.Run("up, while clients write", func(t *testing.T) { killWriters(t, c, ns) })
	t.Run("up, and then down", func(t *testing.T) {
		c.kill()
		c.ok(t, "down")
		if err := c.leftovers(); err != nil {
			t.Error(err)
		}
		// What was kept is enough to go on.
		if err := c.start(); err != nil {
			t.Fatal(err)
		}
		c.awaitApp(t, ns, "shop", "it is Ready again", func(a *v1alpha1.Application) bool { return a.Status.Phase == v1alpha1.PhaseReady })
		c.awaitPods(t, ns, "app=web", "six are Ready", func(p []*corev1.Pod) bool {
			n := 0
			for _, pod := range p {
				if ready(pod) {
					n++
				}
			}
			return n == 6
		})
		c.answers(t, ns, "web", "v1 from")
	})
}

// killWriters kills `up` while clients write; what was acknowledged must be there
// afterwards.
func killWriters(t *testing.T, c *cluster, ns string) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	var acknowledged []string
	enough := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("w%d-%d", w, i)}}
				if _, err := c.k.CoreV1().ConfigMaps(ns).Create(ctx, m, metav1.CreateOptions{}); err != nil {
					return
				}
				mu.Lock()
				acknowledged = append(acknowledged, m.Name)
				if len(acknowledged) == 200 {
					close(enough)
				}
				mu.Unlock()
			}
		})
	}
	<-enough
	c.kill()
	cancel()
	wg.Wait()
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	list, err := c.k.CoreV1().ConfigMaps(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, m := range list.Items {
		there[m.Name] = true
	}
	var lost []error
	for _, name := range acknowledged {
		if !there[name] {
			lost = append(lost, errors.New(name))
		}
	}
	if len(lost) > 0 {
		t.Errorf("%d of %d acknowledged writes are lost: %v", len(lost), len(acknowledged), errors.Join(lost...))
	}
}

// TestSecondUp starts `up` twice on one data directory.
func TestSecondUp(t *testing.T) {
	t.Parallel()
	c := suite.shared
	r := c.run("up", "--api-port", "0", "--git-port", "0", "--registry-port", "0", "--http-port", "0", "--https-port", "0")
	if r.code != 1 {
		t.Errorf("a second up should be refused with 1: %s", r)
	}
	contains(t, r.stderr, c.dataDir, strconv.Itoa(c.up.cmd.Process.Pid))
}

// TestStartFails has `up` find each of its ports taken: it ends, says why, and leaves nothing
// behind.
func TestStartFails(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, taken, _ := net.SplitHostPort(l.Addr().String())
	c := newCluster("start-fails")
	t.Cleanup(func() {
		if r := c.run("down", "--purge"); r.code != 0 {
			t.Error(r)
		}
	})
	for _, flag := range []string{"--api-port", "--registry-port", "--git-port", "--metrics-port"} {
		args := []string{"up"}
		for _, f := range []string{"--api-port", "--registry-port", "--git-port", "--metrics-port", "--http-port", "--https-port"} {
			port := "0"
			if f == flag {
				port = taken
			}
			args = append(args, f, port)
		}
		r := c.run(args...)
		if r.code != 1 || !strings.Contains(r.stderr, ":"+taken+", is taken; choose another") {
			t.Errorf("%s: %s", flag, r)
		}
		if err := c.leftovers(); err != nil {
			t.Errorf("%s: %v", flag, err)
		}
	}
}

func allReady(pods []*corev1.Pod) bool {
	return !slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return !ready(p) })
}
