package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"gitk8s.dev/gitk8s/runtime/container"
)

func TestRunContainer(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	began := time.Now()
	log, st := b.run(sb, b.config("hello", "print", "one", "two"))
	t.Logf("took %v", time.Since(began))
	if log != "stdout F one\nstdout F two\n" {
		t.Errorf("log %q", log)
	}
	if st.ExitCode != 0 || st.StartedAt.IsZero() || st.FinishedAt.Before(st.StartedAt) {
		t.Errorf("status %+v", st)
	}
	if err := b.RemoveContainer(context.Background(), sb, "hello"); err != nil {
		t.Error(err)
	}
}

func TestExitCodes(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	_, st := b.run(sb, b.config("three", "exit", "3"))
	if st.ExitCode != 3 {
		t.Errorf("exit 3: %+v", st)
	}
	cfg := b.config("killed", "sleep")
	b.start(sb, cfg)
	if err := b.StopContainer(context.Background(), sb, "killed", syscall.SIGKILL, 0); err != nil {
		t.Fatal(err)
	}
	if st := b.ended("killed"); st.ExitCode != 137 || st.OOMKilled {
		t.Errorf("killed: %+v", st)
	}
}

func TestStartErrors(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	for _, c := range []struct {
		name, reason, want string
		edit               func(*container.ContainerConfig)
		code               int
	}{
		{"not in path", "ContainerCannotRun", "executable file not found in $PATH", func(c *container.ContainerConfig) { c.Args = []string{"nope"} }, 127},
		{"no such file", "ContainerCannotRun", "no such file or directory", func(c *container.ContainerConfig) { c.Args = []string{"/bin/nope"} }, 127},
		{"not executable", "ContainerCannotRun", "permission denied", func(c *container.ContainerConfig) { c.Args = []string{"/etc/plain"} }, 126},
		{"a directory", "ContainerCannotRun", "permission denied", func(c *container.ContainerConfig) { c.Args = []string{"/etc"} }, 126},
		{"no such user", "CreateContainerError", "nobody-here", func(c *container.ContainerConfig) { c.User = "nobody-here" }, 128},
		{"no such layer", "CreateContainerError", "no such file", func(c *container.ContainerConfig) { c.Layers = []string{"/nope"} }, 128},
		{"no layers", "CreateContainerError", "no layers", func(c *container.ContainerConfig) { c.Layers = nil }, 128},
		{"no such mount", "CreateContainerError", "no such file", func(c *container.ContainerConfig) {
			c.Mounts = []container.Mount{{Source: "/nope", Target: "/x"}}
		}, 128},
		{"not a directory to work in", "StartError", "/etc/passwd", func(c *container.ContainerConfig) { c.WorkingDir = "/etc/passwd" }, 128},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := b.config(strings.ReplaceAll(c.name, " ", "-"), "print")
			c.edit(&cfg)
			err := b.StartContainer(context.Background(), sb, cfg)
			var start *container.StartError
			if !errors.As(err, &start) {
				t.Fatalf("error %v (%T)", err, err)
			}
			if start.Reason != c.reason || start.ExitCode != c.code || !strings.Contains(err.Error(), c.want) {
				t.Errorf("reason %s, code %d, %q; want %s, %d, %q", start.Reason, start.ExitCode, err, c.reason, c.code, c.want)
			}
		})
	}
	if err := b.StartContainer(context.Background(), "no-such-sandbox", b.config("x", "print")); !container.IsNotFound(err) {
		t.Errorf("start in no sandbox: %v", err)
	}
}

func TestFailedStartStaysListed(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	cfg := b.config("bad", "print")
	cfg.Args = []string{"nope"}
	for range 2 { // the second is a repetition of the first
		if err := b.StartContainer(context.Background(), sb, cfg); err == nil {
			t.Fatal("started")
		}
	}
	list, err := b.List(context.Background())
	if err != nil || len(list) != 1 || len(list[0].Containers) != 1 {
		t.Fatalf("list %+v, %v", list, err)
	}
	if st := list[0].Containers[0]; st.State != container.Exited || st.ExitCode != 127 || !strings.Contains(st.Error, "not found") {
		t.Errorf("status %+v", st)
	}
}

func TestStop(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	for _, c := range []struct {
		command string
		grace   time.Duration
		code    int
		log     string
	}{
		{"trap", 10 * time.Second, 7, "stdout F ready\nstdout F terminated\n"},
		{"deaf", 50 * time.Millisecond, 137, "stdout F ready\n"},
		{"sleep", 10 * time.Second, 143, "stdout F ready\n"}, // SIGTERM's default, though the kernel spares PID 1 from it
	} {
		cfg := b.config(c.command, c.command)
		b.start(sb, cfg)
		eventually(t, "ready", func() bool { return b.logs(cfg) != "" })
		if err := b.StopContainer(context.Background(), sb, c.command, syscall.SIGTERM, c.grace); err != nil {
			t.Fatal(err)
		}
		if st := b.ended(c.command); st.ExitCode != c.code {
			t.Errorf("%s: %+v, want exit code %d", c.command, st, c.code)
		}
		if log := b.logs(cfg); log != c.log {
			t.Errorf("%s: log %q", c.command, log)
		}
		if err := b.StopContainer(context.Background(), sb, c.command, syscall.SIGTERM, c.grace); err != nil {
			t.Errorf("stop again: %v", err)
		}
	}
}

func TestOrphansAreReaped(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	cfg := b.config("orphans", "orphans", "5")
	b.start(sb, cfg)
	eventually(t, "ready", func() bool { return strings.Contains(b.logs(cfg), "ready") })
	eventually(t, "no zombies", func() bool {
		out, _ := b.exec(sb, "orphans", "zombies")
		return out == "0\n"
	})
}

func TestUserHostAndDirectory(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	for i, c := range []struct {
		user, dir string
		groups    []int64
		want      string
	}{
		{"", "", nil, "0 0 [] / pod-host"},
		{"web", "/made/here", nil, "1001 1002 [1003] /made/here pod-host"},
		{"1001", "", []int64{2000}, "1001 1002 [1003 2000] / pod-host"},
		{"4242:0", "", nil, "4242 0 [] / pod-host"},
		{"web:extra", "/etc", []int64{7}, "1001 1003 [7] /etc pod-host"},
	} {
		cfg := b.config(fmt.Sprintf("id-%d", i), "id")
		cfg.User, cfg.WorkingDir, cfg.SupplementalGroups = c.user, c.dir, c.groups
		log, _ := b.run(sb, cfg)
		got := strings.TrimSpace(strings.TrimPrefix(log, "stdout F "))
		if got != c.want {
			t.Errorf("user %q: %q, want %q", c.user, got, c.want)
		}
	}
}

func TestMounts(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	dir := t.TempDir()
	for name, content := range map[string]string{"a": "from a\n", "sub/b": "from b\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// Mounted after the shim started: it must be seen all the same.
	tmp := filepath.Join(dir, "tmpfs")
	if err := os.Mkdir(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", tmp, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(tmp, syscall.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(tmp, "c"), []byte("from c\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cfg := b.config("mounts", "files", "/data/a", "/one", "/data/deep/c", "/data/sub/b")
	cfg.Mounts = []container.Mount{
		{Source: tmp, Target: "/data/deep", ReadOnly: true},
		{Source: filepath.Join(dir, "a"), Target: "/one"},
		{Source: dir, Target: "/data"},
	}
	log, _ := b.run(sb, cfg)
	if log != "stdout F from a\nstdout F from a\nstdout F from c\nstdout F from b\n" {
		t.Errorf("log %q", log)
	}
	cfg = b.config("readonly", "write", "/data/new", "x")
	cfg.Mounts = []container.Mount{{Source: dir, Target: "/data", ReadOnly: true}}
	if log, _ := b.run(sb, cfg); !strings.Contains(log, "read-only file system") {
		t.Errorf("write to a read-only mount: %q", log)
	}
	cfg = b.config("readonly-sub", "write", "/data/tmpfs/new", "x")
	cfg.Mounts = []container.Mount{{Source: dir, Target: "/data", ReadOnly: true}}
	if log, _ := b.run(sb, cfg); !strings.Contains(log, "read-only file system") {
		t.Errorf("write below a read-only mount: %q", log)
	}
	cfg = b.config("readonly-root", "write", "/new", "x")
	cfg.Security.ReadOnlyRootFilesystem = true
	if log, _ := b.run(sb, cfg); !strings.Contains(log, "read-only file system") {
		t.Errorf("write to a read-only root: %q", log)
	}
}

func TestSharedMountReachesTheMachine(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	if err := syscall.Mount("", dir, "", syscall.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	inner := filepath.Join(dir, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	cfg := b.config("slave", "sleep")
	cfg.Mounts = []container.Mount{{Source: dir, Target: "/vol", Propagation: "rslave"}}
	b.start(sb, cfg)
	if err := syscall.Mount("tmpfs", inner, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(inner, syscall.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(inner, "f"), []byte("late\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, _ := b.exec(sb, "slave", "files", "/vol/inner/f"); out != "late\n" {
		t.Errorf("mount made after the start is not seen: %q", out)
	}
}

func TestSecurity(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	status := func(id string, sec container.Security) map[string]string {
		cfg := b.config(id, "files", "/proc/self/status")
		cfg.Security = sec
		log, _ := b.run(sb, cfg)
		out := map[string]string{}
		for line := range strings.Lines(log) {
			k, v, _ := strings.Cut(strings.TrimPrefix(line, "stdout F "), ":")
			out[k] = strings.TrimSpace(v)
		}
		return out
	}
	st := status("default", container.Security{})
	if st["CapEff"] != "00000000a80425fb" || st["Seccomp"] != "2" || st["NoNewPrivs"] != "0" {
		t.Errorf("default: CapEff %s Seccomp %s NoNewPrivs %s", st["CapEff"], st["Seccomp"], st["NoNewPrivs"])
	}
	st = status("narrow", container.Security{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}, NoNewPrivileges: true, SeccompUnconfined: true})
	if st["CapEff"] != "0000000000000400" || st["Seccomp"] != "0" || st["NoNewPrivs"] != "1" {
		t.Errorf("narrow: CapEff %s Seccomp %s NoNewPrivs %s", st["CapEff"], st["Seccomp"], st["NoNewPrivs"])
	}
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	st = status("privileged", container.Security{Privileged: true})
	if !strings.Contains(string(own), "CapEff:\t"+st["CapEff"]) || st["Seccomp"] != "0" {
		t.Errorf("privileged: CapEff %s Seccomp %s", st["CapEff"], st["Seccomp"])
	}
	if log, _ := b.run(sb, b.config("unshare", "unshare")); !strings.Contains(log, "operation not permitted") {
		t.Errorf("a new user namespace: %q", log)
	}
	if log, _ := b.run(sb, b.config("kcore", "files", "/proc/keys", "/proc/timer_list")); strings.Contains(log, "stdout F ") && !strings.Contains(log, "ERR") {
		t.Errorf("masked files: %q", log)
	}
	cfg := b.config("overwrite", "write", "/dev/.gitk8s-init", "x")
	if log, _ := b.run(sb, cfg); !strings.Contains(log, "read-only") && !strings.Contains(log, "busy") {
		t.Errorf("PID 1 can be overwritten: %q", log)
	}
}

func TestResources(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	cfg := b.config("oom", "eat")
	cfg.Resources.MemoryLimit = 32 << 20
	if _, st := b.run(sb, cfg); st.ExitCode != 137 || !st.OOMKilled {
		t.Errorf("oom: %+v", st)
	}
	cfg = b.config("small", "print", "x")
	cfg.Resources.MemoryLimit = 16 << 20 // a Go program needs half of it
	if log, st := b.run(sb, cfg); log != "stdout F x\n" {
		t.Errorf("a small limit: %q %+v", log, st)
	}
	cfg = b.config("score", "files", "/proc/self/oom_score_adj")
	cfg.Resources = container.Resources{OOMScoreAdj: -998, CPUShares: 512, CPUQuota: 20000, CPUPeriod: 100000, PidsLimit: 50}
	if log, st := b.run(sb, cfg); st.ExitCode != 0 {
		t.Errorf("score: %q %+v", log, st)
	}
	cfg = b.config("spin", "spin")
	cfg.Resources = container.Resources{CPUQuota: 10000, CPUPeriod: 100000}
	b.start(sb, cfg)
	first, err := b.Stats(context.Background(), sb, "spin")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "CPU time counted", func() bool {
		st, err := b.Stats(context.Background(), sb, "spin")
		return err == nil && st.CPU > first.CPU+10*time.Millisecond && st.MemoryWorkingSet > 0
	})
	r := container.Resources{CPUQuota: 5000, CPUPeriod: 100000, MemoryLimit: 64 << 20, CPUShares: 100}
	if err := b.UpdateResources(context.Background(), sb, "spin", r); err != nil {
		t.Error(err)
	}
	if _, err := b.Stats(context.Background(), sb, "nope"); !container.IsNotFound(err) {
		t.Errorf("stats of nothing: %v", err)
	}
}

func TestPodLimits(t *testing.T) {
	b := newBench(t)
	err := b.RunSandbox(context.Background(), container.SandboxConfig{
		ID: "bounded", CgroupParent: b.parent, Resources: container.Resources{MemoryLimit: 32 << 20, CPUShares: 100},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, st := b.run("bounded", b.config("oom", "eat")); st.ExitCode != 137 {
		t.Errorf("the pod's limit did not hold: %+v", st)
	}
}

func TestLogs(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	if log, _ := b.run(sb, b.config("err", "stderr", "to", "stderr")); log != "stderr F to stderr\n" {
		t.Errorf("stderr: %q", log)
	}
	log, _ := b.run(sb, b.config("long", "long", "40000"))
	x := strings.Repeat("x", 16<<10)
	want := "stdout P " + x + "\nstdout P " + x + "\nstdout F " + strings.Repeat("x", 40000-2*16<<10) + "\n"
	if log != want {
		t.Errorf("long line: %d bytes, want %d", len(log), len(want))
	}
	cfg := b.config("rotate", "lines", "700000")
	b.run(sb, cfg)
	total, last := 0, ""
	files, err := filepath.Glob(cfg.LogPath + "*")
	if err != nil || len(files) < 3 || len(files) > 5 {
		t.Fatalf("rotated into %v (%v)", files, err)
	}
	for _, f := range files {
		body, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if len(body) > 10<<20 {
			t.Errorf("%s has %d bytes", f, len(body))
		}
		total += bytes.Count(body, []byte("\n"))
		if f == cfg.LogPath {
			last = string(body[bytes.LastIndexByte(body[:len(body)-1], '\n')+1:])
		}
	}
	if total != 700000 || !strings.HasSuffix(last, "line 699999\n") {
		t.Errorf("%d lines, the last is %q", total, last)
	}
}

func TestExec(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	cfg := b.config("main", "sleep")
	cfg.Env = append(cfg.Env, "FROM=container")
	cfg.User = "web"
	b.start(sb, cfg)
	ctx := context.Background()
	if out, code := b.exec(sb, "main", "exit", "9"); code != 9 || out != "" {
		t.Errorf("exit: %d %q", code, out)
	}
	if out, _ := b.exec(sb, "main", "id"); out != "1001 1002 [1003] / pod-host\n" {
		t.Errorf("id: %q", out)
	}
	var out, errs bytes.Buffer
	code, err := b.Exec(ctx, sb, "main", container.ExecConfig{
		Args: []string{"app", "cat"}, Stdin: strings.NewReader("a\nb\n"), Stdout: &out, Stderr: &errs,
	})
	if err != nil || code != 0 || out.String() != "a\nb\n" || errs.Len() != 0 {
		t.Errorf("cat: %d %v %q %q", code, err, &out, &errs)
	}
	out.Reset()
	if _, err = b.Exec(ctx, sb, "main", container.ExecConfig{Args: []string{"app", "env"}, Env: []string{"EXTRA=1"}, Stdout: &out}); err != nil {
		t.Error(err)
	}
	env := strings.Fields(out.String())
	if !slices.Contains(env, "FROM=container") || !slices.Contains(env, "EXTRA=1") || !slices.Contains(env, "HOME=/home/web") {
		t.Errorf("env: %q", env)
	}
	out.Reset()
	if _, err = b.Exec(ctx, sb, "main", container.ExecConfig{Args: []string{"app", "lines", "200000"}, Stdout: &out}); err != nil {
		t.Error(err)
	}
	if n := bytes.Count(out.Bytes(), []byte("\n")); n != 200000 {
		t.Errorf("output of %d lines, not 200000", n)
	}
	var start *container.StartError
	_, err = b.Exec(ctx, sb, "main", container.ExecConfig{Args: []string{"nope"}})
	if !errors.As(err, &start) || start.ExitCode != 127 {
		t.Errorf("exec of nothing: %v", err)
	}
	_, err = b.Exec(ctx, sb, "main", container.ExecConfig{Args: []string{"/etc/plain"}})
	if !errors.As(err, &start) || start.ExitCode != 126 {
		t.Errorf("exec of a text: %v", err)
	}
	if _, err = b.Exec(ctx, sb, "other", container.ExecConfig{Args: []string{"app"}}); !container.IsNotFound(err) {
		t.Errorf("exec in nothing: %v", err)
	}
}

func TestExecTTY(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	b.start(sb, b.config("main", "sleep"))
	var out bytes.Buffer
	in, typing := io.Pipe()
	defer typing.Close()
	sizes := make(chan container.WindowSize, 1)
	sizes <- container.WindowSize{Width: 100, Height: 40}
	code, err := b.Exec(context.Background(), sb, "main", container.ExecConfig{Args: []string{"app", "tty"}, TTY: true, Stdin: in, Stdout: &out, Resize: sizes})
	if err != nil || code != 0 || out.String() != "chardev true\r\n" {
		t.Errorf("tty: %d %v %q", code, err, &out)
	}
}

func TestExecEndsWithItsCaller(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	b.start(sb, b.config("main", "orphans", "0"))
	ctx, cancel := context.WithCancel(context.Background())
	ready, out := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := b.Exec(ctx, sb, "main", container.ExecConfig{Args: []string{"app", "deaf"}, Stdout: out})
		done <- err
	}()
	if _, err := ready.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	eventually(t, "command gone", func() bool {
		out, _ := b.exec(sb, "main", "files", "/proc/2/cmdline", "/proc/3/cmdline", "/proc/9/cmdline", "/proc/10/cmdline")
		return !strings.Contains(out, "deaf")
	})
}

func TestContainerTTYAndStdin(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	cfg := b.config("tty", "tty")
	cfg.TTY, cfg.Stdin = true, true
	if log, _ := b.run(sb, cfg); !strings.HasPrefix(log, "stdout F chardev true") {
		t.Errorf("log %q", log)
	}
	cfg = b.config("stdin", "cat") // stays, since stdin is held open
	cfg.Stdin = true
	b.start(sb, cfg)
	if err := b.StopContainer(context.Background(), sb, "stdin", syscall.SIGTERM, time.Second); err != nil {
		t.Fatal(err)
	}
	if st := b.ended("stdin"); st.ExitCode != 143 {
		t.Errorf("stdin: %+v", st)
	}
}

func TestEmbeddedShim(t *testing.T) {
	dir := t.TempDir()
	if got, err := shimExecutable(fstest.MapFS{}, dir); err != nil || got != "/proc/self/exe" {
		t.Errorf("nothing embedded: %q %v", got, err)
	}
	shim := func(version string) fstest.MapFS {
		return fstest.MapFS{"embedded/gitk8s-shim": {Data: []byte(version)}}
	}
	first, err := shimExecutable(shim("one"), dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := shimExecutable(shim("one"), dir)
	if err != nil || again != first {
		t.Errorf("%q %q %v", first, again, err)
	}
	second, err := shimExecutable(shim("two"), dir)
	if err != nil || second == first {
		t.Errorf("%q %v", second, err)
	}
	if b, err := os.ReadFile(second); err != nil || string(b) != "two" {
		t.Errorf("%q %v", b, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left: %v %v", entries, err)
	}
	// A broken one, of the right name, is replaced.
	if err := os.WriteFile(second, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := shimExecutable(shim("two"), dir); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(second); err != nil || string(b) != "two" {
		t.Errorf("%q %v", b, err)
	}
}
