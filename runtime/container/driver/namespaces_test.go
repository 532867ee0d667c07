package driver

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"gitk8s.dev/gitk8s/runtime/container"
)

// sandboxWith makes a sandbox that adjust changes.
func (b *bench) sandboxWith(adjust func(*container.SandboxConfig)) string {
	b.t.Helper()
	cfg := container.SandboxConfig{ID: fmt.Sprintf("%08d-test", sandboxCount.Add(1)), Hostname: "pod-host", CgroupParent: b.parent}
	adjust(&cfg)
	if err := b.RunSandbox(context.Background(), cfg); err != nil {
		b.t.Fatal(err)
	}
	return cfg.ID
}

// A container with a target sees the target's processes, also after it has ended
// its own; its end takes along what it left behind and nothing of the target.
func TestPIDTarget(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	b.start(sb, b.config("main-0", "trap"))
	look := b.config("look-0", "processes")
	look.PIDTarget = "main-0"
	if got, _ := b.run(sb, look); !strings.Contains(got, "/dev/.gitk8s-init app trap") || !strings.Contains(got, "app processes") {
		t.Errorf("it sees %s", got)
	}
	leave := b.config("leave-0", "spawn")
	leave.PIDTarget = "main-0"
	b.run(sb, leave)
	if got, _ := b.exec(sb, "main-0", "processes"); strings.Contains(got, "deaf") {
		t.Errorf("left behind: %s", got)
	}
	kill := b.config("kill-0", "deaf")
	kill.PIDTarget = "main-0"
	b.start(sb, kill)
	if err := b.StopContainer(context.Background(), sb, "kill-0", 15, 1); err != nil {
		t.Fatal(err)
	}
	if st := b.ended("kill-0"); st.ExitCode != 137 {
		t.Errorf("killed with %d", st.ExitCode)
	}
	if got, _ := b.exec(sb, "main-0", "processes"); strings.Contains(got, "deaf") || !strings.Contains(got, "app trap") {
		t.Errorf("after the kill: %s", got)
	}
	if err := b.StopContainer(context.Background(), sb, "main-0", 15, patience); err != nil {
		t.Fatal(err)
	}
	late := b.config("late-0", "processes")
	late.PIDTarget = "main-0"
	if err := b.StartContainer(context.Background(), sb, late); err == nil || !strings.Contains(err.Error(), "the target container main-0 does not run") {
		t.Errorf("start with a target that has ended: %v", err)
	}
}

// The containers of a pod that shares its processes see each other, and the end of
// one is not that of the others.
func TestSharedProcesses(t *testing.T) {
	b := newBench(t)
	sb := b.sandboxWith(func(c *container.SandboxConfig) { c.PIDNamespace = container.PIDPod })
	b.start(sb, b.config("one-0", "trap"))
	b.start(sb, b.config("two-0", "sleep"))
	got, _ := b.exec(sb, "two-0", "processes")
	if !strings.Contains(got, "app trap") || !strings.Contains(got, "app sleep") || !strings.HasPrefix(got, "1 /dev/.gitk8s-init\n") {
		t.Fatalf("seen: %s", got)
	}
	if err := b.StopContainer(context.Background(), sb, "one-0", 15, patience); err != nil {
		t.Fatal(err)
	}
	if st := b.ended("one-0"); st.ExitCode != 7 {
		t.Errorf("ended with %d", st.ExitCode)
	}
	// Orphans of an exec end up with PID 1, which reaps them.
	b.exec(sb, "two-0", "orphan")
	eventually(t, "no zombies", func() bool {
		got, _ := b.exec(sb, "two-0", "zombies")
		return got == "0\n"
	})
	b.start(sb, b.config("one-1", "sleep"))
	if got, _ = b.exec(sb, "one-1", "processes"); strings.Count(got, "app sleep") != 4 {
		t.Errorf("after a restart: %s", got)
	}
	if root, _ := b.exec(sb, "two-0", "files", "/proc/1/root/bin/app"); strings.Contains(root, "ELF") {
		t.Error("the files of the machine can be reached through PID 1")
	}
}

func TestHostNamespaces(t *testing.T) {
	b := newBench(t)
	sb := b.sandboxWith(func(c *container.SandboxConfig) { c.PIDNamespace, c.HostIPC = container.PIDHost, true })
	b.start(sb, b.config("main-0", "trap"))
	own, err := os.ReadFile("/proc/self/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	got, _ := b.exec(sb, "main-0", "processes")
	if want := fmt.Sprintf("%d %s", os.Getpid(), strings.Split(string(own), "\x00")[0]); !strings.Contains(got, want) {
		t.Errorf("%q is not among %s", want, got)
	}
	shm, err := os.CreateTemp("/dev/shm", "gitk8s-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(shm.Name())
	shm.WriteString("shared")
	shm.Close()
	if got, _ := b.exec(sb, "main-0", "files", shm.Name()); got != "shared" {
		t.Errorf("%s: %q", shm.Name(), got)
	}
	if err := b.StopContainer(context.Background(), sb, "main-0", 15, patience); err != nil {
		t.Fatal(err)
	}
	if st := b.ended("main-0"); st.ExitCode != 7 {
		t.Errorf("ended with %d", st.ExitCode)
	}
}

func TestSysctls(t *testing.T) {
	b := newBench(t)
	before, err := os.ReadFile("/proc/sys/kernel/shm_rmid_forced")
	if err != nil {
		t.Fatal(err)
	}
	sb := b.sandboxWith(func(c *container.SandboxConfig) { c.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1"} })
	if got, _ := b.run(sb, b.config("one-0", "files", "/proc/sys/kernel/shm_rmid_forced")); got != "stdout F 1\n" {
		t.Errorf("in the container: %q", got)
	}
	if after, _ := os.ReadFile("/proc/sys/kernel/shm_rmid_forced"); string(after) != string(before) {
		t.Errorf("the machine's own became %s", after)
	}
	err = b.RunSandbox(context.Background(), container.SandboxConfig{ID: "bad", CgroupParent: b.parent, Sysctls: map[string]string{"kernel.nothing": "1"}})
	if err == nil || !strings.Contains(err.Error(), `sysctl "kernel.nothing"`) {
		t.Errorf("an unknown one: %v", err)
	}
}
