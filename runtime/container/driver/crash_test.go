package driver

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gitk8s.dev/gitk8s/runtime/container"
)

func (b *bench) status(sandbox, id string) container.ContainerStatus {
	b.t.Helper()
	list, err := b.List(context.Background())
	if err != nil {
		b.t.Fatal(err)
	}
	for _, s := range list {
		for _, c := range s.Containers {
			if s.Config.ID == sandbox && c.ID == id {
				return c
			}
		}
	}
	b.t.Fatalf("container %s is not listed: %+v", id, list)
	return container.ContainerStatus{}
}

func (b *bench) shimPid(sandbox string) int {
	b.t.Helper()
	pid, err := b.Driver.sandbox(sandbox).shimPid()
	if err != nil || pid == 0 {
		b.t.Fatalf("shim of %s: %d, %v", sandbox, pid, err)
	}
	return pid
}

func TestWorkerComesBack(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	run, end, gone := b.config("run", "trap"), b.config("end", "exit", "4"), b.config("gone", "trap")
	b.start(sb, run)
	b.run(sb, end)
	b.start(sb, gone)
	eventually(t, "ready", func() bool { return b.logs(gone) != "" && b.logs(run) != "" })
	before, goneStatus := b.status(sb, "run"), b.status(sb, "gone")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	// While no worker is there, one container ends.
	if err := syscall.Kill(goneStatus.Pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "exit is on disk", func() bool {
		state, err := os.ReadFile(filepath.Join(b.dir, "run", sb, "state.json"))
		return err == nil && strings.Contains(string(state), `"ExitCode":7`)
	})
	b.open()
	if st := b.status(sb, "run"); st.State != container.Running || st.Pid != before.Pid || !st.StartedAt.Equal(before.StartedAt) {
		t.Errorf("run: %+v, before %+v", st, before)
	}
	if st := b.status(sb, "end"); st.State != container.Exited || st.ExitCode != 4 {
		t.Errorf("end: %+v", st)
	}
	if st := b.status(sb, "gone"); st.State != container.Exited || st.ExitCode != 7 {
		t.Errorf("gone: %+v", st)
	}
	if out, _ := b.exec(sb, "run", "print", "still here"); out != "still here\n" {
		t.Errorf("exec: %q", out)
	}
	if err := b.StopContainer(context.Background(), sb, "run", syscall.SIGTERM, time.Second); err != nil {
		t.Fatal(err)
	}
	if st := b.ended("run"); st.ExitCode != 7 {
		t.Errorf("run: %+v", st)
	}
	if log := b.logs(run); log != "stdout F ready\nstdout F terminated\n" {
		t.Errorf("log across two workers: %q", log)
	}
}

func TestContainerIsKilled(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	b.start(sb, b.config("victim", "sleep"))
	b.start(sb, b.config("other", "sleep"))
	if err := syscall.Kill(b.status(sb, "victim").Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if st := b.ended("victim"); st.ExitCode != 137 || st.OOMKilled {
		t.Errorf("victim: %+v", st)
	}
	if st := b.status(sb, "other"); st.State != container.Running {
		t.Errorf("other: %+v", st)
	}
}

func TestShimIsKilled(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	b.start(sb, b.config("app", "sleep"))
	pid := b.status(sb, "app").Pid
	if err := syscall.Kill(b.shimPid(sb), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.lost(sb)
	checkNothingLeft(t, b, sb, pid)
	if err := b.StartContainer(context.Background(), sb, b.config("late", "print")); !container.IsNotFound(err) {
		t.Errorf("start in a lost sandbox: %v", err)
	}
	if err := b.StopContainer(context.Background(), sb, "app", syscall.SIGTERM, time.Second); err != nil {
		t.Errorf("stop in a lost sandbox: %v", err)
	}
	// The same sandbox can be made again.
	if err := b.RunSandbox(context.Background(), container.SandboxConfig{ID: sb, CgroupParent: b.parent}); err != nil {
		t.Fatal(err)
	}
	if log, _ := b.run(sb, b.config("again", "print", "again")); log != "stdout F again\n" {
		t.Errorf("log %q", log)
	}
}

func TestShimIsKilledWhileNoWorkerIsThere(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	b.start(sb, b.config("app", "sleep"))
	pid, shim := b.status(sb, "app").Pid, b.shimPid(sb)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(shim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.open()
	b.lost(sb)
	checkNothingLeft(t, b, sb, pid)
}

func (b *bench) lost(sandbox string) {
	b.t.Helper()
	select {
	case e := <-b.Events():
		if e.SandboxID != sandbox || e.Container != nil {
			b.t.Fatalf("event %+v", e)
		}
	case <-time.After(20 * time.Second):
		b.t.Fatal("no event")
	}
}

// checkNothingLeft looks for processes, files and cgroups of a sandbox.
func checkNothingLeft(t *testing.T, b *bench, sandbox string, pids ...int) {
	t.Helper()
	list, err := b.List(context.Background())
	if err != nil {
		t.Error(err)
	}
	for _, s := range list {
		if s.Config.ID == sandbox {
			t.Errorf("still listed: %+v", s)
		}
	}
	for _, pid := range pids {
		eventually(t, fmt.Sprintf("process %d gone", pid), func() bool { return !alive(pid) })
	}
	for _, pattern := range []string{
		filepath.Join(b.dir, "run", sandbox),
		"/sys/fs/cgroup/*" + b.parent + "/pod" + sandbox,
		"/sys/fs/cgroup" + b.parent + "/pod" + sandbox,
	} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			t.Errorf("left behind: %v", found)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), sandbox) {
		t.Errorf("mounts left behind (%v): %s", err, mounts)
	}
}

func TestRemoveSandbox(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	b.start(sb, b.config("one", "deaf"))
	b.start(sb, b.config("two", "sleep"))
	b.run(sb, b.config("three", "exit", "0"))
	one, two, shim := b.status(sb, "one").Pid, b.status(sb, "two").Pid, b.shimPid(sb)
	began := time.Now()
	for range 2 {
		if err := b.RemoveSandbox(context.Background(), sb); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("removed in %v", time.Since(began))
	checkNothingLeft(t, b, sb, one, two, shim)
}

func TestRepeatedCalls(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	shim := b.shimPid(sb)
	if err := b.RunSandbox(context.Background(), container.SandboxConfig{ID: sb, CgroupParent: b.parent}); err != nil {
		t.Fatal(err)
	}
	if b.shimPid(sb) != shim {
		t.Error("a second shim")
	}
	cfg := b.config("app", "sleep")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := b.StartContainer(context.Background(), sb, cfg); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	list, err := b.List(context.Background())
	if err != nil || len(list) != 1 || len(list[0].Containers) != 1 {
		t.Errorf("list %+v %v", list, err)
	}
	if err := b.RemoveContainer(context.Background(), sb, "app"); err == nil {
		t.Error("removed a running container")
	}
	for _, err := range []error{
		b.StopContainer(context.Background(), sb, "never", syscall.SIGTERM, time.Second),
		b.RemoveContainer(context.Background(), sb, "never"),
		b.StopContainer(context.Background(), "never", "never", syscall.SIGTERM, time.Second),
		b.RemoveContainer(context.Background(), "never", "never"),
		b.RemoveSandbox(context.Background(), "never"),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	for _, id := range []string{"", "../x", "a/b", strings.Repeat("x", 200)} {
		if err := b.RunSandbox(context.Background(), container.SandboxConfig{ID: id}); err == nil {
			t.Errorf("sandbox %q was made", id)
		}
		if err := b.StartContainer(context.Background(), sb, b.config(id, "print")); err == nil {
			t.Errorf("container %q was made", id)
		}
	}
}

func TestLongStateDirectory(t *testing.T) {
	b := newBench(t)
	long := filepath.Join(b.dir, strings.Repeat("long-name/", 20))
	d, err := New(Config{StateDir: long, Executable: testbin})
	if err != nil {
		t.Fatal(err)
	}
	b.dir, b.Driver = filepath.Dir(long), d
	sb := b.sandbox()
	if log, _ := b.run(sb, b.config("app", "print", "x")); log != "stdout F x\n" {
		t.Errorf("log %q", log)
	}
	if err := b.RemoveSandbox(context.Background(), sb); err != nil {
		t.Error(err)
	}
}

func TestManyLayers(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	cfg := b.config("app", "files", "/f", "/top")
	dir := t.TempDir()
	for i := range 120 {
		l := filepath.Join(dir, strings.Repeat("n", 60)+fmt.Sprint(i))
		if err := os.Mkdir(l, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(l, "f"), fmt.Appendf(nil, "layer %d\n", i), 0o644); err != nil {
			t.Fatal(err)
		}
		cfg.Layers = append(cfg.Layers, l)
	}
	if err := os.WriteFile(filepath.Join(dir, strings.Repeat("n", 60)+"0", "top"), []byte("lowest\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if log, _ := b.run(sb, cfg); log != "stdout F layer 119\nstdout F lowest\n" {
		t.Errorf("log %q", log)
	}
}

// TestWorkerIsKilled kills a worker process of its own kind: its container, the log
// and the exit code belong to the shim.
func TestWorkerIsKilled(t *testing.T) {
	b := newBench(t)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "GITK8S_TEST_WORKER="+b.dir, "GITK8S_TEST_BIN="+testbin, "GITK8S_TEST_LAYER="+layer, "GITK8S_TEST_CGROUP="+b.parent)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "started\n" {
		t.Errorf("worker says %q, %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	b.open()
	if st := b.status("orphan", "app"); st.State != container.Running || !alive(st.Pid) {
		t.Fatalf("after the worker's death: %+v", st)
	}
	cfg := b.config("app")
	eventually(t, "ready", func() bool { return b.logs(cfg) != "" })
	if err := b.StopContainer(context.Background(), "orphan", "app", syscall.SIGTERM, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if st := b.ended("app"); st.ExitCode != 7 {
		t.Errorf("%+v", st)
	}
}

func TestNetworkNamespace(t *testing.T) {
	b := newBench(t)
	pin := filepath.Join(b.dir, "netns")
	if err := os.WriteFile(pin, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	made := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		err := syscall.Unshare(syscall.CLONE_NEWNET)
		if err == nil {
			err = syscall.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", syscall.Gettid()), pin, "", syscall.MS_BIND, "")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(pin, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := b.RunSandbox(context.Background(), container.SandboxConfig{ID: "own-net", NetNS: pin, CgroupParent: b.parent}); err != nil {
		t.Fatal(err)
	}
	log, _ := b.run("own-net", b.config("app", "files", "/proc/net/dev"))
	if !strings.Contains(log, " lo:") || strings.Contains(log, "eth") {
		t.Errorf("links: %s", log)
	}
}

// TestExecWhileItEnds: a command that is on its way into a container when that is
// killed does not keep it from ending, and leaves nothing behind. What takes it there
// is stopped half-way: its last process is in the container's PID namespace, and its
// first one has not told the shim of it.
func TestExecWhileItEnds(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	b.start(sb, b.config("main", "sleep"))
	b.start(sb, b.config("other", "sleep"))
	shim := b.shimPid(sb)
	var first int
	failed := make(chan error, 1)
	for first == 0 { // it may get there before it is stopped
		done, newest := make(chan struct{}), newestProcess(t)
		go func() {
			_, err := b.Exec(context.Background(), sb, "main", container.ExecConfig{Args: []string{"app", "exit", "0"}})
			close(done)
			failed <- err
		}()
		first = stopHalfWay(t, shim, newest, done)
		if first == 0 {
			if err := <-failed; err != nil {
				t.Fatal(err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- b.StopContainer(ctx, sb, "main", 9, 0) }()
	eventually(t, "the last process is killed", func() bool { return len(children(shim, "runc:[2:INIT]", "Z")) == 1 })
	if err := syscall.Kill(first, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err == nil {
		t.Error("the command says that it ran")
	}
	if left := children(shim, "", "Z"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, code := b.exec(sb, "other", "exit", "3"); code != 3 {
		t.Errorf("another container's command ended with %d", code)
	}
}

// stopHalfWay stops the first process of a command when its last one is in the
// container, and returns its number; 0 if the command is done instead.
func stopHalfWay(t *testing.T, shim, newest int, done <-chan struct{}) int {
	over := func() bool {
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
	for !over() {
		first := newChild(shim, newest)
		if first == 0 {
			continue
		}
		t.Cleanup(func() { _ = syscall.Kill(first, syscall.SIGCONT) }) // however the test ends
		middle := func(state string) bool { return len(children(shim, "runc:[1:CHILD]", state)) > 0 }
		// It goes on in small steps until it has made the middle one, and rests then.
		for syscall.Kill(first, syscall.SIGSTOP) == nil && !middle("") && !over() {
			_ = syscall.Kill(first, syscall.SIGCONT)
		}
		var last []int
		eventually(t, "the last process, or none", func() bool {
			last = children(shim, "runc:[2:INIT]", "S")
			return len(last) > 0 || !middle("")
		})
		// The middle one waits for the first to note the last.
		if len(last) > 0 && middle("S") {
			return first
		}
		_ = syscall.Kill(first, syscall.SIGCONT)
		<-done
	}
	return 0
}

// newChild is a child of a process that is newer than another process, if there is one;
// it is faster than looking through all.
func newChild(parent, than int) int {
	for pid := than + 1; pid < than+30; pid++ {
		if _, _, of := readStat(fmt.Sprintf("/proc/%d/stat", pid)); of == parent {
			return pid
		}
	}
	return 0
}

// newestProcess is the process number that was given last: proc_loadavg(5).
func newestProcess(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(b))
	n, err := strconv.Atoi(fields[len(fields)-1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// children are those of a process with the name and in the state, of which each may be
// any.
func children(parent int, name, state string) (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range files {
		is, in, of := readStat(file)
		if of == parent && (name == "" || is == name) && (state == "" || in == state) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// readStat reads the name, the state and the parent of a process (proc_pid_stat(5));
// nothing if it has gone.
func readStat(file string) (name, state string, parent int) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", "", 0
	}
	head, rest, _ := strings.Cut(string(b), ") ")
	_, name, _ = strings.Cut(head, " (")
	_, _ = fmt.Sscan(rest, &state, &parent)
	return name, state, parent
}
