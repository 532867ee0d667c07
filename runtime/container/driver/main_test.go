package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gitk8s.dev/gitk8s/runtime/container"
)

// delegated is the cgroup in which all others are: the tests run as an ordinary user to
// whom it was delegated (cgroup2vm). Empty for root, who needs none.
var delegated string

// testbin is the static executable that holds the shim, and the layer's program.
var testbin, layer string

func TestMain(m *testing.M) {
	if dir := os.Getenv("GITK8S_TEST_WORKER"); dir != "" {
		worker(dir)
	}
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// worker is a process that runs one container and is then killed.
func worker(dir string) {
	testbin, layer = os.Getenv("GITK8S_TEST_BIN"), os.Getenv("GITK8S_TEST_LAYER")
	d, err := New(Config{StateDir: filepath.Join(dir, "run"), Executable: testbin})
	if err == nil {
		err = d.RunSandbox(context.Background(), container.SandboxConfig{ID: "orphan", CgroupParent: os.Getenv("GITK8S_TEST_CGROUP")})
	}
	if err == nil {
		b := &bench{dir: dir}
		err = d.StartContainer(context.Background(), "orphan", b.config("app", "trap"))
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("started")
	select {}
}

func runTests(m *testing.M) (code int, err error) {
	if os.Getenv("GITK8S_TEST_DELEGATED") != "" {
		var err error
		if delegated, err = Delegate(); err != nil {
			return 1, err
		}
		defer func() { code, err = undelegate(code, err) }()
	}
	dir, err := os.MkdirTemp("", "gitk8s-driver-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	testbin = filepath.Join(dir, "testbin")
	if err := provideTestbin(); err != nil {
		return 1, err
	}
	layer = filepath.Join(dir, "layer")
	if err := os.MkdirAll(filepath.Join(layer, "bin"), 0o755); err != nil {
		return 1, err
	}
	if err := os.MkdirAll(filepath.Join(layer, "etc"), 0o755); err != nil {
		return 1, err
	}
	if err := os.Link(testbin, filepath.Join(layer, "bin", "app")); err != nil {
		return 1, err
	}
	for name, content := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nweb:x:1001:1002:web:/home/web:/bin/sh\n",
		"etc/group":  "root:x:0:\nweb:x:1002:\nextra:x:1003:web\n",
		"etc/plain":  "not a program\n",
	} {
		if err := os.WriteFile(filepath.Join(layer, name), []byte(content), 0o644); err != nil {
			return 1, err
		}
	}
	return m.Run(), nil
}

// undelegate gives the cgroup back, and fails if anything is left in it.
func undelegate(code int, err error) (int, error) {
	Undelegate(delegated)
	left, globErr := filepath.Glob(filepath.Join(cgroupRoot, delegated, "*gitk8s*"))
	if err = errors.Join(err, globErr); err == nil && code == 0 && len(left) > 0 {
		return 1, fmt.Errorf("left in the delegated cgroup: %q", left)
	}
	return code, err
}

// provideTestbin builds the test program, or takes one that was built before, where
// there is no compiler.
func provideTestbin() error {
	if built := os.Getenv("GITK8S_TEST_BIN"); built != "" {
		content, err := os.ReadFile(built)
		if err != nil {
			return err
		}
		return os.WriteFile(testbin, content, 0o755)
	}
	build := exec.Command("go", "build", "-buildvcs=false", "-tags=seccomp,netgo,osusergo",
		"-ldflags=-linkmode external -extldflags -static -s -w", "-o", testbin, "../internal/testbin")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build testbin: %w\n%s", err, out)
	}
	return nil
}

var sandboxCount atomic.Int64

// bench is a driver with its own cgroup, cleaned up with the test.
type bench struct {
	*Driver
	t      testing.TB
	dir    string
	parent string
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir(), parent: fmt.Sprintf("%s/gitk8s-test-%d-%d", delegated, os.Getpid(), sandboxCount.Add(1))}
	b.open()
	t.Cleanup(func() {
		list, err := b.List(context.Background())
		if err != nil {
			t.Error(err)
		}
		for _, st := range list {
			if t.Failed() {
				log, _ := os.ReadFile(filepath.Join(b.dir, "run", st.Config.ID, "shim.log"))
				t.Logf("shim of %s: %s", st.Config.ID, log)
			}
			if err := b.RemoveSandbox(context.Background(), st.Config.ID); err != nil {
				t.Error(err)
			}
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := removeCgroup(b.parent); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bench) open() {
	b.t.Helper()
	d, err := New(Config{StateDir: filepath.Join(b.dir, "run"), Executable: testbin})
	if err != nil {
		b.t.Fatal(err)
	}
	b.Driver = d
}

func (b *bench) sandbox() string {
	b.t.Helper()
	id := fmt.Sprintf("%08d-test", sandboxCount.Add(1))
	err := b.RunSandbox(context.Background(), container.SandboxConfig{
		ID: id, Namespace: "default", Name: "pod", Hostname: "pod-host", CgroupParent: b.parent,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return id
}

func (b *bench) config(id string, args ...string) container.ContainerConfig {
	return container.ContainerConfig{
		ID: id, Layers: []string{layer}, Args: append([]string{"app"}, args...),
		Env: []string{"PATH=/bin"}, LogPath: filepath.Join(b.dir, "logs", id, "0.log"),
	}
}

func (b *bench) start(sandbox string, cfg container.ContainerConfig) {
	b.t.Helper()
	if err := b.StartContainer(context.Background(), sandbox, cfg); err != nil {
		b.t.Fatal(err)
	}
}

// patience bounds what takes milliseconds, for machines that are slow: emulated ones
// among them.
const patience = 2 * time.Minute

// ended waits for the event of a container's end.
func (b *bench) ended(id string) container.ContainerStatus {
	b.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case e := <-b.Events():
			if e.Container != nil && e.Container.ID == id {
				return *e.Container
			}
		case <-deadline:
			b.t.Fatalf("container %s did not end", id)
		}
	}
}

// logs returns the lines of a container's log without their time stamps.
func (b *bench) logs(cfg container.ContainerConfig) string {
	b.t.Helper()
	raw, err := os.ReadFile(cfg.LogPath)
	if err != nil {
		b.t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(raw)) {
		stamp, rest, _ := strings.Cut(line, " ")
		if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil {
			b.t.Fatalf("log line %q: %v", line, err)
		}
		out.WriteString(rest)
	}
	return out.String()
}

// run starts a container, waits for its end and returns its log.
func (b *bench) run(sandbox string, cfg container.ContainerConfig) (string, container.ContainerStatus) {
	b.t.Helper()
	b.start(sandbox, cfg)
	st := b.ended(cfg.ID)
	return b.logs(cfg), st
}

func (b *bench) exec(sandbox, id string, args ...string) (string, int) {
	b.t.Helper()
	var out bytes.Buffer
	code, err := b.Exec(context.Background(), sandbox, id, container.ExecConfig{Args: append([]string{"app"}, args...), Stdout: &out, Stderr: &out})
	if err != nil {
		b.t.Fatal(err)
	}
	return out.String(), code
}

// eventually polls a condition that has no event.
func eventually(t testing.TB, what string, fn func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !fn() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not reached: %s", what)
		}
	}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }
