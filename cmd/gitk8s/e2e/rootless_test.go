package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

// ordinary is a user who is nobody on the machine and owns nothing but what the test
// gives them.
const ordinary = 54321

// asUser is a command line of a user without any rights; setpriv replaces itself, so
// that the process is the program's.
func asUser(user int, args []string) []string {
	if user == 0 {
		return args
	}
	id := strconv.Itoa(user)
	return append([]string{"setpriv", "--reuid=" + id, "--regid=" + id, "--clear-groups", "--inh-caps=-all"}, args...)
}

// processesOf are those of some users, as many as are counted, that have not ended.
func processesOf(first, count int) (out []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		b, err := os.ReadFile(d + "/status")
		_, after, _ := strings.Cut(string(b), "\nUid:\t")
		uid, _, _ := strings.Cut(after, "\t")
		if n, e := strconv.Atoi(uid); errors.Join(err, e) == nil && n >= first && n < first+count && !strings.Contains(string(b), "\nState:\tZ") {
			pid, _ := strconv.Atoi(filepath.Base(d))
			out = append(out, fmt.Sprintf("%d: %s", pid, cmdline(pid)))
		}
	}
	return out
}

// forbidden says by which kernel parameter ordinary users are kept from making user
// namespaces: nothing else is a reason not to test.
func forbidden() string {
	for name, value := range map[string]string{
		"user/max_user_namespaces": "0", "kernel/unprivileged_userns_clone": "0", "kernel/apparmor_restrict_unprivileged_userns": "1",
	} {
		if b, err := os.ReadFile("/proc/sys/" + name); err == nil && strings.TrimSpace(string(b)) == value {
			return fmt.Sprintf("/proc/sys/%s is %s", name, value)
		}
	}
	return ""
}

// userCluster is a cluster of an ordinary user who has no processes besides it, with a
// directory of their own; it is not started.
func userCluster(t *testing.T, user int) *cluster {
	t.Helper()
	t.Cleanup(func() { noProcesses(t, user, 1) }) // once it has ended
	return clusterOf(t, user)
}

// clusterOf is a cluster of an ordinary user who may have other processes.
func clusterOf(t *testing.T, user int) *cluster {
	t.Helper()
	home := userHome(t, user)
	c := newCluster("rootless")
	c.user, c.bin, c.dataDir = user, filepath.Join(home, "gitk8s"), filepath.Join(home, "data")
	t.Chdir(home)
	t.Cleanup(func() {
		if t.Failed() {
			c.dump(testWriter{t})
		}
		if err := c.destroy(); err != nil {
			t.Error(err)
		}
	})
	return c
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(string(b))
	return len(b), nil
}

// TestRootless is the story told by an ordinary user.
func TestRootless(t *testing.T) {
	c := userCluster(t, ordinary)
	c.flags = []string{"--dns-upstream", namesElsewhere(t, "shop.example.", "192.0.2.7")}
	if err := errors.Join(c.start(), c.pushImages()); err != nil {
		t.Fatal(err)
	}
	contains(t, c.up.out.String(), "as an ordinary user")
	contains(t, c.ok(t, "check"), "this machine can run workers")
	ns := c.namespace(t, "rootless")
	r := newRepo(t, c)
	r.add(ns, "shop")
	first := r.commit("v1", fleet("v1"))
	r.deploy()
	c.deployed(t, ns, first)
	c.answers(t, ns, "web", "v1 from")
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: worker-1, containers: [{name: client, image: "gitk8s.local/test/web:v1"}]}
`)
	client := c.awaitPod(t, ns, "client", "it is Ready", ready)
	k := tool{c, []string{suite.bin, "kubectl"}}.in(ns)

	t.Run("exec, logs, names and services", func(t *testing.T) {
		if got := k.run(t, "exec", "client", "--", "/server", "args", "one", "two"); got != "one|two\n" {
			t.Errorf("exec printed %q", got)
		}
		eventually(t, "a pod reaches a service by its name", func() error {
			if r := k.try("", "exec", "client", "--", "/server", "fetch", "http://web."+ns+"/"); !strings.Contains(r.stdout, "v1 from") {
				return errors.New(r.String())
			}
			return nil
		})
		k.run(t, "logs", "client")
		portForward(t, k, "pod/client", "8080", "v1 from client")
	})
	t.Run("registries and names elsewhere", func(t *testing.T) {
		pullsFromElsewhere(t, c, ns)
		looksUp(t, k, "client", "shop.example", "192.0.2.7")
	})
	t.Run("a user that does not exist", func(t *testing.T) {
		c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: other}
spec: {securityContext: {runAsUser: 1000}, containers: [{name: c, image: "gitk8s.local/test/web:v1"}]}
`)
		c.awaitPod(t, ns, "other", "it says why it does not run", func(p *corev1.Pod) bool {
			return slices.ContainsFunc(p.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool {
				w, last := s.State.Waiting, s.State.Terminated
				return w != nil && strings.Contains(w.Message, "runAsUser 1000") || last != nil && strings.Contains(last.Message, "runAsUser 1000")
			})
		})
	})
	t.Run("users of its own", func(t *testing.T) {
		c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: own}
spec: {hostUsers: false, containers: [{name: c, image: "gitk8s.local/test/web:v1"}]}
`)
		c.awaitPod(t, ns, "own", "it says why it does not run", func(p *corev1.Pod) bool {
			return slices.ContainsFunc(p.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool {
				return s.State.Waiting != nil && strings.Contains(s.State.Waiting.Message, "hostUsers: false needs users to give to the pod")
			})
		})
	})
	t.Run("update and rollback", func(t *testing.T) {
		second := r.commit("v2", fleet("v2"))
		r.deploy()
		c.deployed(t, ns, second)
		c.answers(t, ns, "web", "v2 from")
		c.ok(t, "rollback", "shop", "-n", ns)
		c.deployed(t, ns, first)
		c.answers(t, ns, "web", "v1 from")
	})
	t.Run("up is killed, containers run on", func(t *testing.T) {
		c.kill()
		if err := c.start(); err != nil {
			t.Fatal(err)
		}
		now := c.awaitPod(t, ns, "client", "it is Ready", ready)
		if lifeOf(now) != lifeOf(client) {
			t.Errorf("the container was restarted: %+v before, %+v now", lifeOf(client), lifeOf(now))
		}
		c.answers(t, ns, "web", "v1 from")
	})
	t.Run("a shim is killed, its container starts anew", func(t *testing.T) {
		shim := c.processOf(t, "gitk8s-shim", ns+"/client")
		first := child(t, shim)
		kill9(t, shim)
		c.awaitPod(t, ns, "client", "its container runs again", func(p *corev1.Pod) bool {
			l := lifeOf(p)
			return ready(p) && l.id != lifeOf(client).id && l.restarts == 1
		})
		eventually(t, "the old container has ended", func() error {
			if err := syscall.Kill(first, 0); err == nil {
				return fmt.Errorf("process %d is still there", first)
			}
			return nil
		})
	})
	t.Run("all is lost, and comes back", func(t *testing.T) {
		c.kill()
		// The process that keeps the namespaces goes, too, as at a logout.
		kill9(t, c.processOf(t, c.dataDir+"/.gitk8s-init"))
		if err := c.start(); err != nil {
			t.Fatal(err)
		}
		c.awaitApp(t, ns, "shop", "it is Ready", func(a *v1alpha1.Application) bool { return a.Status.Phase == v1alpha1.PhaseReady })
		c.answers(t, ns, "web", "v1 from")
	})
	t.Run("interrupt, and up again", func(t *testing.T) {
		if err := errors.Join(c.interrupt(), c.leftovers()); err != nil {
			t.Fatal(err)
		}
		if err := c.start(); err != nil {
			t.Fatal(err)
		}
		c.answers(t, ns, "web", "v1 from")
	})
}
