package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/nftables"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newCheck(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Say whether this machine can run workers, and what is missing",
		Args:  exactArgs(0),
		RunE: func(*cobra.Command, []string) error {
			missing := checkMachine(e.v.GetString("data-dir"))
			for _, m := range missing {
				fmt.Fprintln(e.io.out, "missing:", m)
			}
			if len(missing) > 0 {
				return &exitError{1, nil}
			}
			fmt.Fprintln(e.io.out, "this machine can run workers")
			return nil
		},
	}
}

// checkMachine names what this machine lacks to run workers, each in words that
// say what to do.
func checkMachine(dataDir string) (missing []string) {
	add := func(format string, args ...any) { missing = append(missing, fmt.Sprintf(format, args...)) }
	if os.Geteuid() != 0 {
		add("root: containers, network namespaces and cgroups need it; run with sudo")
		return missing
	}
	if !filesystem("overlay") {
		add("overlayfs: the kernel has no overlay file system; `modprobe overlay`, or a kernel with CONFIG_OVERLAY_FS")
	}
	if why := checkCgroups(); why != "" {
		add("%s", why)
	}
	if c, err := nftables.New(); err != nil {
		add("nftables: %v; a kernel with CONFIG_NF_TABLES is needed for services", err)
	} else if _, err := c.ListTables(); err != nil {
		add("nftables: %v; `modprobe nf_tables`, or a kernel with CONFIG_NF_TABLES", err)
	}
	for _, ns := range []string{"net", "pid", "mnt", "uts", "ipc"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); err != nil {
			add("%s namespaces: the kernel has none", ns)
		}
	}
	if why := checkDisk(dataDir); why != "" {
		add("%s", why)
	}
	return missing
}

func filesystem(name string) bool {
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == name {
			return true
		}
	}
	return false
}

// checkCgroups wants the controllers that limits need, of either version.
func checkCgroups() string {
	if b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		for _, want := range []string{"cpu", "memory", "pids"} {
			if !strings.Contains(" "+strings.TrimSpace(string(b))+" ", " "+want+" ") {
				return fmt.Sprintf("cgroup controller %q: enable it, e.g. with the kernel parameter cgroup_enable=%s", want, want)
			}
		}
		return ""
	}
	for _, want := range []string{"cpu", "memory", "pids", "devices", "freezer"} {
		if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", want)); err != nil {
			return fmt.Sprintf("cgroup controller %q: nothing is mounted at /sys/fs/cgroup/%s; mount cgroup2 at /sys/fs/cgroup or the v1 controllers below it", want, want)
		}
	}
	return ""
}

// checkDisk wants a data directory that can be written, on a file system that
// overlayfs takes as upper layer.
func checkDisk(dir string) string {
	for { // the nearest folder that exists
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			break
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			break
		}
		dir = parent
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Sprintf("data directory: %s: %v", dir, err)
	}
	if free := st.Bavail * uint64(st.Bsize); free < 256<<20 {
		return fmt.Sprintf("disk space: %s has %d MiB free; 256 are needed to start, more for images", dir, free>>20)
	}
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return fmt.Sprintf("data directory: %s cannot be written: %v; choose another with --data-dir", dir, err)
	}
	if st.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return fmt.Sprintf("data directory: %s is on an overlay file system, on which containers' root file systems can't be; choose a --data-dir on a disk or tmpfs", dir)
	}
	return ""
}
