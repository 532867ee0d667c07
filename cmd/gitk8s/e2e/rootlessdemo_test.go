package e2e

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// demoUser tells the demo; another user than TestRootless', who may be at work.
const demoUser = 54322

// TestRootlessDemo is `make demo` by an ordinary user: the program of the demo tells
// its story as it does to root, and finds nothing left behind.
func TestRootlessDemo(t *testing.T) {
	t.Parallel()
	home := userHome(t, demoUser)
	for _, name := range []string{"demo", "demo-server"} {
		cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(home, name), "../../"+name)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, out)
		}
	}
	manifests := filepath.Join(home, "manifests")
	if err := os.CopyFS(manifests, os.DirFS("../../../manifests/demo")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	args := asUser(demoUser, []string{filepath.Join(home, "demo"), "-bin", home, "-manifests", manifests})
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = home
	cmd.Env = append(os.Environ(), "HOME="+home, "TMPDIR="+home)
	// Told to end, it cleans up.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the demo as user %d: %v\n%s", demoUser, err, out)
	}
	contains(t, string(out), "as an ordinary user", "held", "0 failed", "left behind: no process")
	noProcesses(t, demoUser, 1)
}

// userHome makes a directory for a user without any rights, with gitk8s in it: the
// tests' own directory, and that of the program, may be closed to others. It skips the
// test where such users may not make namespaces.
func userHome(t *testing.T, user int) string {
	t.Helper()
	try := asUser(user, []string{"unshare", "--user", "--map-root-user", "--net", "true"})
	if out, err := exec.Command(try[0], try[1:]...).CombinedOutput(); err != nil {
		if why := forbidden(); why != "" {
			t.Skip(why)
		}
		t.Fatalf("ordinary users may not make user namespaces here, and no kernel parameter says so: %v %s", err, out)
	}
	home, err := os.MkdirTemp("", "gitk8s-rootless-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	program, err := os.ReadFile(suite.bin)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(home, "gitk8s"), program, 0o755), os.Chown(home, user, user)); err != nil {
		t.Fatal(err)
	}
	return home
}

// noProcesses waits until some users have none; also in a cleanup, when the test's own
// context is over.
func noProcesses(t *testing.T, first, count int) {
	t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for left := processesOf(first, count); len(left) > 0; left = processesOf(first, count) {
		select {
		case <-limit.C:
			t.Fatalf("left behind: %q", left)
		case <-tick.C:
		}
	}
}
