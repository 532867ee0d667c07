package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// processesUser is the user of TestRootlessProcesses, and servicesAt where their services
// are on the machine.
const (
	processesUser = 54324
	servicesAt    = "127.0.0.54"
)

// namespaceOf is a namespace that a process is in.
func namespaceOf(t *testing.T, pid int, kind string) string {
	t.Helper()
	return namespaceAt(t, fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
}

// ownNamespace is one of the machine's: this goroutine's. The process's first thread may
// have been left in another one by a test.
func ownNamespace(t *testing.T, kind string) string {
	t.Helper()
	return namespaceAt(t, "/proc/thread-self/ns/"+kind)
}

func namespaceAt(t *testing.T, path string) string {
	t.Helper()
	ns, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// holder is the process that runs the workers of an ordinary user's `up`: it has the same
// command line.
func (c *cluster) holder(t *testing.T) int {
	t.Helper()
	var found []int
	for _, pid := range c.processes() {
		if pid != c.up.cmd.Process.Pid && strings.Contains(cmdline(pid), c.bin+" up ") {
			found = append(found, pid)
		}
	}
	if len(found) != 1 {
		t.Fatalf("processes beside `up` that run the workers: %d", found)
	}
	return found[0]
}

// worker is the process of a worker.
func (c *cluster) worker(t *testing.T, n int) int {
	t.Helper()
	return c.processOf(t, " agent ", fmt.Sprintf("--name worker-%d ", n))
}

// TestRootlessProcesses: the server of an ordinary user is an ordinary process, each
// worker has namespaces of its own, and each process may be killed at any time, and what runs in containers goes on.
func TestRootlessProcesses(t *testing.T) {
	c := userCluster(t, processesUser)
	c.flags = []string{"--service-address", servicesAt}
	if err := errors.Join(c.start(), c.pushImages()); err != nil {
		t.Fatal(err)
	}
	ns := c.namespace(t, "processes")
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: pods}}
spec: {nodeName: worker-1, containers: [{name: c, image: "gitk8s.local/test/web:v1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: two}
spec: {nodeName: worker-2, containers: [{name: c, image: "gitk8s.local/test/web:v1"}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: NodePort, selector: {app: pods}, ports: [{port: 8080}]}
`)
	pods := map[string]*corev1.Pod{}
	for _, name := range []string{"one", "two"} {
		pods[name] = c.awaitPod(t, ns, name, "it is Ready", ready)
	}
	// unharmed also asks the one pod by way of a port of the machine's loopback, and both
	// by way of the API.
	unharmed := func(t *testing.T) {
		t.Helper()
		for name, was := range pods {
			now := c.awaitPod(t, ns, name, "it is Ready", ready)
			if lifeOf(now) != lifeOf(was) {
				t.Errorf("the container of %s was restarted: %+v before, %+v now", name, lifeOf(was), lifeOf(now))
			}
			eventually(t, "the API leads to "+name, func() error {
				return c.k.CoreV1().RESTClient().Get().Namespace(ns).Resource("pods").Name(name + ":8080").SubResource("proxy").Do(t.Context()).Error()
			})
		}
		svc, err := c.k.CoreV1().Services(ns).Get(t.Context(), "outside", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		at := net.JoinHostPort(servicesAt, strconv.Itoa(int(svc.Spec.Ports[0].NodePort)))
		eventually(t, "the port on the machine answers", func() error {
			r, err := http.Get("http://" + at)
			if err != nil {
				return err
			}
			defer r.Body.Close()
			if b, err := io.ReadAll(r.Body); err != nil || !strings.Contains(string(b), "v1 from one") {
				return fmt.Errorf("%q, %w", b, err)
			}
			return nil
		})
	}
	unharmed(t)
	again := func(t *testing.T) {
		t.Helper()
		if err := c.start(); err != nil {
			t.Fatal(err)
		}
		unharmed(t)
	}

	t.Run("whose namespaces", func(t *testing.T) {
		up, holder := c.up.cmd.Process.Pid, c.holder(t)
		for _, kind := range []string{"user", "mnt", "net"} {
			if its, ours := namespaceOf(t, up, kind), ownNamespace(t, kind); its != ours {
				t.Errorf("the server's %s namespace is %s, the machine's %s", kind, its, ours)
			}
		}
		seen := map[string]string{}
		for what, pid := range map[string]int{"server": up, "holder": holder, "worker-1": c.worker(t, 1), "worker-2": c.worker(t, 2)} {
			for _, kind := range []string{"user", "mnt", "net"} {
				its := namespaceOf(t, pid, kind)
				if kind == "net" && what == "holder" {
					continue // the machine's, too
				}
				if other := seen[its]; other != "" {
					t.Errorf("%s and %s are both in %s", what, other, its)
				}
				seen[its] = what
			}
		}
	})
	t.Run("a worker has no rights over another one", func(t *testing.T) {
		in := strconv.Itoa(c.worker(t, 1))
		enter := func(its int) result {
			return c.exec("", "", asUser(processesUser, []string{
				"nsenter", "--preserve-credentials", "--user", "--target", in, "--",
				"nsenter", "--net", "--target", strconv.Itoa(its), "true",
			})...)
		}
		if r := enter(c.worker(t, 1)); r.code != 0 {
			t.Errorf("a worker may not enter its own network: %s", r)
		}
		if r := enter(c.worker(t, 2)); r.code == 0 || !strings.Contains(r.stderr, "denied") && !strings.Contains(r.stderr, "not permitted") {
			t.Errorf("a worker may enter another one's: %s", r)
		}
	})
	t.Run("a worker is killed", func(t *testing.T) {
		worker := c.worker(t, 1)
		kill9(t, worker)
		eventually(t, "another one runs", func() error {
			for _, pid := range c.processes() {
				if pid != worker && strings.Contains(cmdline(pid), "--name worker-1") {
					return nil
				}
			}
			return errors.New("there is none")
		})
		unharmed(t)
		contains(t, c.up.out.String(), "worker-1 ended by itself")
	})
	t.Run("the server is killed", func(t *testing.T) {
		c.kill()
		again(t)
	})
	t.Run("the process that runs the workers is killed", func(t *testing.T) {
		kill9(t, c.holder(t))
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		select {
		case <-c.up.done:
		case <-ctx.Done():
			t.Fatal("`up` does not end")
		}
		if code := c.up.cmd.ProcessState.ExitCode(); code != 1 || strings.Count(c.up.out.String(), "error: ") != 1 {
			t.Errorf("it ended with %d:\n%s", code, tail(c.up.out.String(), 20))
		}
		contains(t, c.up.out.String(), "ended by itself (signal: killed); containers run on")
		again(t)
	})
	t.Run("a second start is refused, and harms nobody", func(t *testing.T) {
		r := c.run("up", "--api-port", "0", "--git-port", "0", "--registry-port", "0", "--http-port", "0", "--https-port", "0")
		if r.code != 1 || !strings.Contains(r.stderr, "is in use by another gitk8s (process "+strconv.Itoa(c.up.cmd.Process.Pid)+")") {
			t.Error(r)
		}
		unharmed(t)
	})
	t.Run("the namespaces of a worker are lost", func(t *testing.T) {
		worker := c.worker(t, 2)
		kill9(t, c.processOf(t, "nodes/worker-2/.gitk8s-init"))
		kill9(t, worker)
		was := pods["two"]
		pods["two"] = c.awaitPod(t, ns, "two", "it runs anew", func(p *corev1.Pod) bool { return ready(p) && lifeOf(p).id != "" && lifeOf(p) != lifeOf(was) })
		unharmed(t)
	})
	t.Run("interrupt", func(t *testing.T) {
		if err := errors.Join(c.interrupt(), c.leftovers()); err != nil {
			t.Fatal(err)
		}
		noProcesses(t, processesUser, 1)
	})
	t.Run("killed, and then down", func(t *testing.T) {
		if err := c.start(); err != nil {
			t.Fatal(err)
		}
		c.awaitPod(t, ns, "one", "it is Ready", ready)
		c.kill()
		c.ok(t, "down")
		if err := c.leftovers(); err != nil {
			t.Error(err)
		}
		noProcesses(t, processesUser, 1)
	})
	t.Run("a start that fails", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		r := c.run("up", "--api-port", port)
		if r.code != 1 || !strings.Contains(r.stderr, "is taken; choose another") {
			t.Error(r)
		}
		noProcesses(t, processesUser, 1)
	})
	t.Run("and up again", func(t *testing.T) {
		if err := c.start(); err != nil {
			t.Fatal(err)
		}
		c.awaitPod(t, ns, "one", "it is Ready", ready)
	})
}
