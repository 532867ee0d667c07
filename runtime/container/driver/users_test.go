package driver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/container"
)

const userBase = 0x2a010000

// userNetNS pins a network namespace that belongs to a user namespace, as package
// network makes it.
func userNetNS(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "net")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		ids := []syscall.SysProcIDMap{{HostID: userBase, Size: container.UserCount}}
		child, err := os.StartProcess("/proc/self/exe", []string{"users"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNET, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
			Ptrace: true, Pdeathsig: syscall.SIGKILL,
		}})
		if err == nil {
			err = unix.Mount(fmt.Sprintf("/proc/%d/ns/net", child.Pid), path, "", unix.MS_BIND, "")
			_ = child.Kill()
			_, _ = child.Wait()
		}
		result <- err
	}()
	if err := <-result; err != nil {
		t.Skipf("no user namespaces here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := mapsUsers(path, t.TempDir()); err != nil {
		t.Skipf("no ID-mapped mounts of the file system here: %v", err)
	}
	return path
}

// mapsUsers tries whether a directory can be mounted with the ids of the user namespace
// that a network namespace belongs to: tmpfs can from Linux 6.3 on.
func mapsUsers(netns, dir string) error {
	ns, err := os.Open(netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	users, err := unix.IoctlRetInt(int(ns.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return os.NewSyscallError("ioctl NS_GET_USERNS", err)
	}
	defer unix.Close(users)
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(tree)
	return os.NewSyscallError("mount_setattr", unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users)}))
}

// hostIDs are the real user and group of a process, as the machine has them.
func hostIDs(t *testing.T, pid int) (uid, gid string) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		switch f := strings.Fields(line); f[0] {
		case "Uid:":
			uid = f[1]
		case "Gid:":
			gid = f[1]
		}
	}
	return uid, gid
}

// TestUserNamespace: root of the pod is nobody on the machine, and its files are its own.
func TestUserNamespace(t *testing.T) {
	b := newBench(t)
	netns := userNetNS(t)
	for name, pids := range map[string]container.PIDNamespace{"own processes": container.PIDContainer, "shared processes": container.PIDPod} {
		t.Run(name, func(t *testing.T) {
			b := &bench{Driver: b.Driver, t: t, dir: b.dir, parent: b.parent}
			sb := b.sandboxWith(func(c *container.SandboxConfig) { c.NetNS, c.UserBase, c.PIDNamespace = netns, userBase, pids })
			defer func() {
				if err := b.RemoveSandbox(context.Background(), sb); err != nil {
					t.Error(err)
				}
			}()
			volume := t.TempDir()
			if err := os.WriteFile(filepath.Join(volume, "given"), []byte("by the machine\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			main := b.config("main-0", "trap")
			main.Mounts = []container.Mount{{Source: volume, Target: "/data"}, {Source: filepath.Join(volume, "given"), Target: "/etc/given", ReadOnly: true}}
			b.start(sb, main)
			list, err := b.List(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range list {
				for _, c := range s.Containers {
					if s.Config.ID == sb {
						if uid, gid := hostIDs(t, c.Pid); uid != strconv.Itoa(userBase) || gid != uid {
							t.Errorf("on the machine it is %s:%s", uid, gid)
						}
					}
				}
			}
			if out, _ := b.exec(sb, "main-0", "id"); !strings.HasPrefix(out, "0 0") {
				t.Errorf("inside it is %s", out)
			}
			for _, file := range []string{"/data/given", "/etc/given"} {
				if out, code := b.exec(sb, "main-0", "files", file); out != "by the machine\n" {
					t.Errorf("%s: %d, %s", file, code, out)
				}
			}
			for _, file := range []string{"/data/made", "/made", "/tmp-made", "/dev/shm/made"} {
				if out, code := b.exec(sb, "main-0", "write", file, "x"); out != "<nil>\n" {
					t.Errorf("write %s: %d, %s", file, code, out)
				}
			}
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(volume, "made"), &st); err != nil || st.Uid != 0 {
				t.Errorf("in the volume it is %d's: %v", st.Uid, err)
			}
			web := b.config("web-0", "id")
			web.User, web.SupplementalGroups = "web", []int64{2000}
			out, ended := b.run(sb, web)
			if !strings.Contains(out, "1001 1002") || ended.User == nil || fmt.Sprint(*ended.User) != "{1001 1002 [1002 1003 2000]}" {
				t.Errorf("another user: %s, %+v", out, ended.User)
			}
			far := b.config("far-0", "id")
			far.User = "70000"
			if err := b.StartContainer(context.Background(), sb, far); err == nil || !strings.Contains(err.Error(), "with hostUsers: false there are those from 0 to 65535") {
				t.Errorf("a user that is not there: %v", err)
			}
		})
	}
}

// TestUnmaskedProc: /proc is all there, and of the pod's namespaces alone.
func TestUnmaskedProc(t *testing.T) {
	b := newBench(t)
	sb := b.sandboxWith(func(c *container.SandboxConfig) { c.NetNS, c.UserBase = userNetNS(t), userBase })
	b.start(sb, b.config("masked-0", "trap"))
	if out, _ := b.exec(sb, "masked-0", "write", "/proc/sys/net/ipv4/ip_forward", "1"); !strings.Contains(out, "read-only") {
		t.Errorf("a masked /proc is written to: %s", out)
	}
	cfg := b.config("open-0", "trap")
	cfg.Security.UnmaskedProc, cfg.Security.AddCapabilities = true, []string{"NET_ADMIN"}
	b.start(sb, cfg)
	if out, _ := b.exec(sb, "open-0", "write", "/proc/sys/net/ipv4/ip_forward", "1"); out != "<nil>\n" {
		t.Errorf("the pod's own network: %s", out)
	}
	if out, _ := b.exec(sb, "open-0", "write", "/proc/sys/vm/swappiness", "1"); !strings.Contains(out, "permission denied") {
		t.Errorf("the machine's kernel: %s", out)
	}
}
