package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

const systemdPods = `apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers: [{name: c, image: "gitk8s.local/test/web:v1", args: [alloc, "200"], resources: {limits: {memory: 64Mi}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: busy}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "gitk8s.local/test/web:v1", args: [busy, /server], resources: {requests: {cpu: 100m}, limits: {cpu: 250m, memory: 96Mi}}}]
`

// TestSystemd is `gitk8s up` as the README tells ordinary users to start it for limits,
// with the systemd of a user who has no session but lingers.
func TestSystemd(t *testing.T) {
	name := os.Getenv("GITK8S_TEST_SYSTEMD")
	if name == "" {
		t.Skip("it takes a machine that systemd has started; `make test-systemd` runs it on a virtual one")
	}
	who, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.Atoi(who.Uid)
	if err != nil {
		t.Fatal(err)
	}
	patience = 5 * time.Minute // the machine is emulated
	runtimeDir := "/run/user/" + who.Uid
	t.Setenv("XDG_RUNTIME_DIR", runtimeDir)
	eventually(t, "the user's systemd runs", func() error {
		if r := suite.shared.exec("", "", asUser(uid, []string{"systemctl", "--user", "is-system-running"})...); r.stdout != "running\n" {
			return errors.New(r.String())
		}
		return nil
	})
	scopes := filepath.Join("/sys/fs/cgroup/user.slice", "user-"+who.Uid+".slice", "user@"+who.Uid+".service", "app.slice", "run-*.scope")

	c := clusterOf(t, uid)
	scope := []string{"systemd-run", "--user", "--scope", "--property=Delegate=yes"}
	contains(t, c.run("check").String(), "this machine can run workers", "is not delegated to you; `"+strings.Join(scope, " ")+"` before the command gives it one")
	check := c.exec("", "", asUser(uid, append(slices.Clone(scope), c.bin, "check"))...)
	contains(t, check.String(), "exit code 0", "this machine can run workers")
	lacks(t, check.String(), "not enforced")
	c.under = scope
	if err := errors.Join(c.start(), c.pushImages()); err != nil {
		t.Fatal(err)
	}
	lacks(t, c.up.out.String(), "limits on CPU and memory are not enforced")
	const ns = "systemd" // it goes with the cluster
	c.kubectl(t, "create", "namespace", ns)
	c.apply(t, ns, systemdPods)
	greedy := c.awaitPod(t, ns, "greedy", "it has ended", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if s := containerStatus(greedy, "c").State.Terminated; s == nil || s.Reason != "OOMKilled" || s.ExitCode != 137 {
		t.Errorf("it ended with %+v, not OOMKilled", s)
	}
	busy := c.awaitPod(t, ns, "busy", "it is ready", ready)

	// What the kernel has been told, and where: below the scope, whose pods it ends with.
	has := func(file, want string) {
		t.Helper()
		eventually(t, file, func() error {
			var seen []string
			for _, f := range find(t, scopes, file) {
				b, err := os.ReadFile(f)
				if err == nil && strings.TrimSpace(string(b)) == want {
					return nil
				}
				seen = append(seen, f+": "+string(b))
			}
			return fmt.Errorf("none has %q: %q", want, seen)
		})
	}
	has("cpu.max", "25000 100000")
	has("memory.max", strconv.Itoa(96<<20))
	has("cpu.weight", "17") // of 100m, as the container library reckons
	eventually(t, "`kubectl top` has what the limit lets it have", func() error {
		r := c.run("kubectl", "top", "pod", "busy", "-n", ns, "--no-headers")
		f := strings.Fields(r.stdout)
		if r.code != 0 || len(f) != 3 {
			return errors.New(r.String())
		}
		cpu, err := resource.ParseQuantity(f[1])
		memory, e := resource.ParseQuantity(f[2])
		if err := errors.Join(err, e); err != nil {
			return err
		}
		if m := cpu.MilliValue(); m < 150 || m > 300 || memory.Sign() <= 0 {
			return errors.New(r.stdout)
		}
		return nil
	})

	// `up` is killed and started again, in another scope: the pods run on.
	c.kill()
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	c.awaitPod(t, ns, "busy", "it is ready", ready)
	c.kubectl(t, "delete", "pod", "-n", ns, "greedy")
	c.apply(t, ns, systemdPods)
	greedy = c.awaitPod(t, ns, "greedy", "it has ended again", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if s := containerStatus(greedy, "c").State.Terminated; s == nil || s.Reason != "OOMKilled" {
		t.Errorf("it ended with %+v, not OOMKilled, after a restart", s)
	}
	if p := c.awaitPod(t, ns, "busy", "it is ready", ready); p.UID != busy.UID || containerStatus(p, "c").RestartCount != 0 {
		t.Errorf("the pod that ran was started anew: %+v", p.Status)
	}
	if err := c.interrupt(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "no scope is left", func() error {
		if left, _ := filepath.Glob(scopes); len(left) > 0 {
			return fmt.Errorf("%q", left)
		}
		return nil
	})
}

// find are the files of a name below some directories.
func find(t *testing.T, dirs, name string) (out []string) {
	t.Helper()
	all, err := filepath.Glob(dirs)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range all {
		_ = filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
			if err == nil && e.Name() == name {
				out = append(out, p)
			}
			return nil // cgroups come and go
		})
	}
	return out
}
