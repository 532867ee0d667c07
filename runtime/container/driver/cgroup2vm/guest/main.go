// Command guest is the first process of the machine that cgroup2vm runs: it mounts
// what a machine has, cgroup v2 with every controller among it, runs the test
// programs, says how they ended and switches the machine off. Where there is a root
// file system it leaves the first half to the systemd in it.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func main() {
	var err error
	if os.Getpid() == 1 {
		err = boot()
	}
	if err == nil {
		err = runTests()
	}
	code := 0
	if err != nil {
		fmt.Println("guest:", err)
		code = 1
	}
	fmt.Println("cgroup2vm: exit code", code)
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// boot makes a machine of what the kernel has unpacked. Where there is a root file system
// it returns only with an error: systemd has the machine then, and starts this program
// once more.
func boot() error {
	if err := leaveInitramfs(); err != nil {
		return err
	}
	modules, err := filepath.Glob("/modules/*")
	if err != nil {
		return err
	}
	for _, m := range modules {
		if err := load(m); err != nil {
			return fmt.Errorf("load %s: %w", m, err)
		}
	}
	if _, err := os.Stat(systemd); err == nil {
		return startSystemd()
	}
	if err := mountAll(); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("the loopback interface: %w", err)
	}
	return nil
}

func runTests() error {
	controllers, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		return err
	}
	fmt.Printf("guest: cgroup v2 with %s", controllers)
	args, err := os.ReadFile("/args")
	if err != nil {
		return err
	}
	tests, err := filepath.Glob("/programs/*.test")
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range tests {
		for _, who := range users(t) {
			if err := runTest(t, who, strings.Fields(string(args))); err != nil {
				errs = append(errs, fmt.Errorf("%s as %s: %w", filepath.Base(t), who, err))
			}
		}
	}
	return errors.Join(errs...)
}

func runTest(program, who string, args []string) error {
	cmd := exec.Command(program, args...)
	cmd.Dir = "/tmp"
	cmd.Env = []string{"PATH=/programs:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "TMPDIR=/tmp", "GITK8S_TEST_BIN=/programs/testbin",
		"GITK8S_BIN=/programs/gitk8s", "GITK8S_E2E_SERVER=/programs/server", "GITK8S_E2E_CLOCK=1", "GITK8S_TEST_WIREGUARD=1", "GITK8S_TEST_SCTP=1", "GITK8S_DNS_UPSTREAM=none"}
	if os.Getpid() != 1 {
		cmd.Env = append(cmd.Env, "GITK8S_TEST_SYSTEMD="+systemdUser)
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	if who != "root" {
		group, err := delegate("/sys/fs/cgroup/user")
		if err != nil {
			return fmt.Errorf("delegate a cgroup: %w", err)
		}
		defer group.Close()
		asUser(cmd, group)
	}
	fmt.Printf("guest: %s as %s\n", filepath.Base(program), who)
	if err := cmd.Start(); err != nil {
		return err
	}
	if status := reapUntil(cmd.Process.Pid); status != 0 {
		return fmt.Errorf("wait status %#x", int(status))
	}
	return nil
}

// userTests are those that have to do with cgroups and ids: what else there is goes the
// same way for every user, and takes long in an emulated machine.
const userTests = "Delegable|Limit|Resources|UserHost|RunContainer|Killed"

// The ordinary user, and the first of 65536 subordinate ids.
const (
	user     = 1000
	firstSub = 100000
)

// delegate makes a cgroup of the user, as systemd does for a unit with Delegate=yes.
func delegate(dir string) (*os.File, error) {
	err := errors.Join(
		os.WriteFile(filepath.Join(filepath.Dir(dir), "cgroup.subtree_control"), []byte("+cpu +memory +pids"), 0),
		os.Mkdir(dir, 0o755))
	for _, name := range []string{".", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} {
		err = errors.Join(err, os.Chown(filepath.Join(dir, name), user, user))
	}
	if err != nil {
		return nil, err
	}
	return os.Open(dir)
}

// asUser runs a program as a worker of an ordinary user runs: in a user namespace with
// their ids, a network of its own, and the cgroup.
func asUser(cmd *exec.Cmd, group *os.File) {
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: user, Size: 1}, {ContainerID: 1, HostID: firstSub, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential:  &syscall.Credential{Uid: 0, Gid: 0},
		UseCgroupFD: true, CgroupFD: int(group.Fd()),
	}
	cmd.Env = append(cmd.Env, "GITK8S_TEST_DELEGATED=yes")
	cmd.Args = append(cmd.Args, "-test.run="+userTests)
}

// users are who runs a test program: the driver works for ordinary users, too.
func users(program string) []string {
	if filepath.Base(program) == "driver.test" {
		return []string{"root", "a user"}
	}
	return []string{"root"}
}

// reapUntil waits for a child, and meanwhile for the orphans that the first process
// of a machine inherits: a process is gone only once it has been waited for.
func reapUntil(pid int) unix.WaitStatus {
	for {
		var status unix.WaitStatus
		if p, err := unix.Wait4(-1, &status, 0, nil); err == nil && p == pid {
			return status
		}
	}
}

// leaveInitramfs moves to a file system of its own: from the first one no container
// could pivot away (pivot_root(2)).
func leaveInitramfs() error {
	const root = "/root"
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "mode=755,size=75%"); err != nil {
		return fmt.Errorf("mount the root: %w", err)
	}
	if err := unpackRoot("/root.tar", root); err != nil {
		return fmt.Errorf("unpack the root file system: %w", err)
	}
	for _, m := range [][2]string{{"modules", "modules"}, {"programs", "programs"}, {"args", "args"}, {"init", "programs/guest"}} {
		if err := move("/"+m[0], root+"/"+m[1]); err != nil {
			return err
		}
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	return os.Chdir("/")
}

// move copies a tree to another file system and frees the first.
func move(from, to string) error {
	err := filepath.WalkDir(from, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		dest := to + strings.TrimPrefix(p, from)
		if e.IsDir() {
			return os.MkdirAll(dest, 0o755)
		}
		content, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return os.WriteFile(dest, content, 0o755)
	})
	return errors.Join(err, os.RemoveAll(from))
}

func mountAll() error {
	for _, m := range []struct{ source, target, kind, options string }{
		{"proc", "/proc", "proc", ""},
		{"sysfs", "/sys", "sysfs", ""},
		{"devtmpfs", "/dev", "devtmpfs", ""},
		{"devpts", "/dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=620"},
		{"shm", "/dev/shm", "tmpfs", ""},
		{"tmpfs", "/tmp", "tmpfs", "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", ""},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

func load(module string) error {
	f, err := os.Open(module)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
