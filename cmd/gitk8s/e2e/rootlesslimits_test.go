package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// limitsUser is the user of TestRootlessLimits.
const limitsUser = 54325

// TestRootlessLimits: where a cgroup was delegated to an ordinary user, their pods have
// limits; and it is given back as it was.
func TestRootlessLimits(t *testing.T) {
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err != nil {
		t.Skip("only cgroup v2 can be delegated")
	}
	// As systemd does for a unit with Delegate=yes.
	group := filepath.Join(root, "gitk8s-e2e-user")
	err := errors.Join(os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+cpu +memory +pids"), 0), os.Mkdir(group, 0o755))
	for _, name := range []string{".", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} {
		err = errors.Join(err, os.Chown(filepath.Join(group, name), limitsUser, limitsUser))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(group); err != nil {
			t.Error(err)
		}
	})
	c := userCluster(t, limitsUser)
	// A unit that has crashed and is started again finds its cgroup divided.
	c.under = []string{"sh", "-c", `for d in "$0/gitk8s-manager" "$0"; do [ -d "$d" ] && break; done; echo 0 >"$d/cgroup.procs" && exec "$@"`, group}
	if err := errors.Join(c.start(), c.pushImages()); err != nil {
		t.Fatal(err)
	}
	if s := c.up.out.String(); strings.Contains(s, "not enforced") {
		t.Fatalf("it does not find the cgroup:\n%s", s)
	}
	ns := c.namespace(t, "limits")
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: limited}
spec: {nodeName: worker-1, containers: [{name: c, image: "gitk8s.local/test/web:v1", resources: {limits: {memory: 77Mi}}}]}
`)
	c.awaitPod(t, ns, "limited", "it is Ready", ready)
	enforced := 0
	err = filepath.WalkDir(filepath.Join(group, "gitk8s", c.id(), "worker-1"), func(path string, _ os.DirEntry, err error) error {
		if b, e := os.ReadFile(path); e == nil && filepath.Base(path) == "memory.max" && strings.TrimSpace(string(b)) == "80740352" {
			enforced++
		}
		return err
	})
	if err != nil || enforced == 0 {
		t.Errorf("no cgroup has the limit of the pod: %v", err)
	}
	// A start after a crash has what the one before had.
	c.kill()
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	c.awaitPod(t, ns, "limited", "it is Ready", ready)
	if err := errors.Join(c.interrupt(), c.leftovers()); err != nil {
		t.Fatal(err)
	}
	noProcesses(t, limitsUser, 1)
	left, err := filepath.Glob(filepath.Join(group, "*", "cgroup.procs"))
	control, e := os.ReadFile(filepath.Join(group, "cgroup.subtree_control"))
	if errors.Join(err, e) != nil || len(left) > 0 || strings.TrimSpace(string(control)) != "" {
		t.Errorf("the cgroup has %q and the controllers %q; %v", left, control, errors.Join(err, e))
	}
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
}
