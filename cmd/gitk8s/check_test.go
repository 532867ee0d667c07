package main

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMissing: on each kind of machine that lacks something, that is named, with what
// to do about it, and nothing else.
func TestMissing(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*facts)
		want []string // parts of the one line; nil for none
	}{
		{"cgroup v2", func(*facts) {}, nil},
		{"cgroup v1", func(f *facts) {
			f.unified, f.controllers = false, nil
			f.hierarchies = []string{"cpu", "memory", "pids", "devices", "freezer"}
		}, nil},
		{"hybrid", func(f *facts) {
			f.unified, f.controllers = false, nil
			f.hierarchies = []string{"cpu", "memory", "pids", "devices", "freezer", "systemd", "unified"}
		}, nil},
		{"not root, whatever else", func(f *facts) { *f = facts{} }, []string{"root", "sudo"}},
		{"no overlayfs", func(f *facts) { f.filesystems = []string{"ext4"} }, []string{"overlayfs", "modprobe overlay", "CONFIG_OVERLAY_FS"}},
		{"memory controller off, as on a Raspberry Pi", func(f *facts) { f.controllers = []string{"cpu", "pids"} }, []string{`"memory"`, "cgroup_enable=memory"}},
		{"a container without delegation", func(f *facts) { f.controllers = nil }, []string{`"cpu"`, "delegate"}},
		{"no cgroups", func(f *facts) { f.unified, f.controllers = false, nil }, []string{`"cpu"`, "mount cgroup2 at /sys/fs/cgroup"}},
		{"v1 without freezer", func(f *facts) {
			f.unified, f.hierarchies = false, []string{"cpu", "memory", "pids", "devices"}
		}, []string{`"freezer"`, "/sys/fs/cgroup/freezer"}},
		{"nftables not in the kernel", func(f *facts) { f.nftables = errors.New("protocol not supported") }, nil},
		{"nftables not permitted", func(f *facts) { f.nftables = unix.EPERM }, []string{"nftables", "NET_ADMIN"}},
		{"no PID namespaces", func(f *facts) { f.namespaces = []string{"net", "mnt", "uts", "ipc"} }, []string{"pid namespaces", "CONFIG_NAMESPACES"}},
		{"ordinary user, without cgroups", func(f *facts) { f.asUser, f.controllers = true, nil }, nil},
		{"ordinary user on Ubuntu", func(f *facts) {
			f.asUser, f.nftables = true, unix.EPERM
			f.sysctls = map[string]string{"user.max_user_namespaces": "100", "kernel.apparmor_restrict_unprivileged_userns": "1"}
		}, []string{"user namespaces", "kernel.apparmor_restrict_unprivileged_userns is 1"}},
		{"ordinary user in a container", func(f *facts) {
			f.asUser, f.nftables, f.sysctls = true, unix.EPERM, map[string]string{"user.max_user_namespaces": "100"}
		}, []string{"user namespaces", "security module"}},
		{"full disk", func(f *facts) { f.disk.free = 3 << 20 }, []string{"disk space", "3 MiB", "256"}},
		{"read-only disk", func(f *facts) { f.disk.readOnly = unix.EROFS }, []string{"/var/lib", "read-only", "--data-dir"}},
		{"data on overlayfs, as in a container", func(f *facts) { f.disk.overlay = true }, []string{"overlay", "--data-dir"}},
		{"data directory under a file", func(f *facts) { f.disk.err = unix.ENOTDIR }, []string{"/var/lib", "not a directory", "--data-dir"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := facts{
				root: true, filesystems: []string{"ext4", "overlay"}, unified: true, controllers: []string{"cpu", "memory", "pids"},
				namespaces: []string{"net", "pid", "mnt", "uts", "ipc", "user"}, disk: disk{dir: "/var/lib", free: 1 << 30},
			}
			c.edit(&f)
			got := missing(f)
			if len(c.want) == 0 && len(got) == 0 {
				return
			}
			if len(got) != 1 {
				t.Fatalf("got %q", got)
			}
			for _, part := range c.want {
				if !strings.Contains(got[0], part) {
					t.Errorf("%q lacks %q", got[0], part)
				}
			}
		})
	}
}

func TestLimits(t *testing.T) {
	if got := limits(facts{}); len(got) > 0 {
		t.Errorf("%q", got)
	}
	got := strings.Join(limits(facts{nftables: errors.New("protocol not supported")}), "")
	for _, part := range []string{"protocol not supported", "user space", "modprobe nf_tables"} {
		if !strings.Contains(got, part) {
			t.Errorf("%q lacks %q", got, part)
		}
	}
}
