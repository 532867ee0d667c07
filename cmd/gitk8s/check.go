package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/container/driver"
)

func newCheck(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Say whether this machine can run workers, and what is missing",
		Args:  exactArgs(0),
		RunE: func(*cobra.Command, []string) error {
			if os.Geteuid() != 0 {
				return e.checkAsUser()
			}
			f := lookAround(e.v.GetString("data-dir"))
			lacks := missing(f)
			for _, m := range lacks {
				fmt.Fprintln(e.io.out, "missing:", m)
			}
			if len(lacks) > 0 {
				return &exitError{1, nil}
			}
			fmt.Fprintln(e.io.out, "this machine can run workers")
			for _, l := range limits(f) {
				fmt.Fprintln(e.io.out, "but:", l)
			}
			if in, ok := entered(); ok {
				e.sayLimits(in)
			}
			return nil
		},
	}
}

// facts are what `gitk8s check` looks at on a machine.
type facts struct {
	root        bool
	asUser      bool     // root over the namespaces of an ordinary user alone
	filesystems []string // names that the kernel knows
	// controllers are those of cgroup v2 where that is all there is; hierarchies are
	// the mounts of v1.
	unified                  bool
	controllers, hierarchies []string
	nftables                 error
	namespaces               []string
	disk                     disk
	sysctls                  map[string]string // those of userSysctls that the kernel has
}

// disk is where the data directory is or would be.
type disk struct {
	dir      string // the nearest folder that exists
	err      error
	free     uint64
	readOnly error
	overlay  bool
}

// limits names what goes less well on a machine that can run workers.
func limits(f facts) (out []string) {
	if f.nftables != nil {
		out = append(out, fmt.Sprintf("nftables: %v: services are carried in user space, which is slower and hides clients' addresses, and pods that a NetworkPolicy selects do not start; `modprobe nf_tables`, or a kernel with CONFIG_NF_TABLES", f.nftables))
	}
	return out
}

// missing names what is missing, each in words that say what to do.
func missing(f facts) (out []string) {
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if !f.root {
		add("root: containers, network namespaces and cgroups need it; run with sudo")
		return out
	}
	if !slices.Contains(f.filesystems, "overlay") {
		add("overlayfs: the kernel has no overlay file system; `modprobe overlay`, or a kernel with CONFIG_OVERLAY_FS")
	}
	if why := missingController(f); why != "" && !f.asUser {
		add("%s", why)
	}
	switch {
	case f.asUser && errors.Is(f.nftables, unix.EPERM):
		add("user namespaces: %s", userNamespaces(f.sysctls))
	case errors.Is(f.nftables, unix.EPERM):
		add("nftables: not permitted; in a container, give it the capability NET_ADMIN")
	}
	for _, ns := range []string{"net", "pid", "mnt", "uts", "ipc"} {
		if !slices.Contains(f.namespaces, ns) {
			add("%s namespaces: the kernel has none; use one that was built with CONFIG_NAMESPACES", ns)
		}
	}
	if why := missingDisk(f.disk); why != "" {
		add("%s", why)
	}
	return out
}

// userSysctls are the kernel parameters that keep ordinary users from making user
// namespaces, with the value that does.
var userSysctls = map[string]string{
	"user.max_user_namespaces":                     "0",
	"kernel.unprivileged_userns_clone":             "0", // Debian
	"kernel.apparmor_restrict_unprivileged_userns": "1", // Ubuntu
}

// userNamespaces says why an ordinary user may not make user namespaces.
func userNamespaces(sysctls map[string]string) string {
	for _, name := range slices.Sorted(maps.Keys(userSysctls)) {
		if sysctls[name] == userSysctls[name] {
			return fmt.Sprintf("not for ordinary users, the kernel parameter %s is %s; change it (sysctl), or run as root", name, sysctls[name])
		}
	}
	return "not permitted to ordinary users here; a container or a security module forbids it: allow it there, or run as root"
}

func readUserSysctls() map[string]string {
	out := map[string]string{}
	for name := range userSysctls {
		if b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/")); err == nil {
			out[name] = strings.TrimSpace(string(b))
		}
	}
	return out
}

// checkAsUser looks at the machine from inside of namespaces like those of a cluster.
func (e *env) checkAsUser() error {
	lack := func(err error) error {
		fmt.Fprintf(e.io.out, "missing: user namespaces: %s (%v)\n", userNamespaces(readUserSysctls()), err)
		return &exitError{1, nil}
	}
	dir, err := os.MkdirTemp("", "gitk8s-check-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	lock, err := os.Create(filepath.Join(dir, keeperFile))
	if err != nil {
		return err
	}
	defer lock.Close()
	begun, err := begunWith(e.v.GetString("data-dir"))
	if err != nil {
		return err
	}
	var in entry
	// Before there is another process in the cgroup.
	if in.Cgroup, err = driver.Delegable(); err != nil {
		in.NoCgroup = err.Error()
	}
	available, why := availableIDs()
	keeper, _, tell, err := startKeeper(dir, lock, begun, available, why)
	if start := (*os.PathError)(nil); errors.As(err, &start) {
		return lack(err)
	}
	if err != nil {
		fmt.Fprintln(e.io.out, "missing:", err)
		return &exitError{1, nil}
	}
	defer func() { _, _ = keeper.Process.Kill(), keeper.Wait() }()
	in.IDs = tell
	args, env, err := enterCommand(keeper.Process.Pid, in, os.Args[1:])
	if err != nil {
		fmt.Fprintln(e.io.out, "missing:", err)
		return &exitError{1, nil}
	}
	var out, errs bytes.Buffer
	cmd := &exec.Cmd{Path: args[0], Args: args, Env: env, Stdout: &out, Stderr: &errs}
	err = cmd.Run()
	if err != nil && out.Len() == 0 {
		return lack(fmt.Errorf("%w: %s", err, strings.TrimSpace(errs.String())))
	}
	_, _ = out.WriteTo(e.io.out)
	_, _ = errs.WriteTo(e.io.err)
	if err != nil {
		return &exitError{1, nil}
	}
	return nil
}

// tryNftables asks for the tables of a network namespace: for an ordinary user one of
// their own, since the machine's is not theirs to look at.
func tryNftables(own bool) error {
	result := make(chan error, 1)
	go func() {
		if own {
			runtime.LockOSThread() // never unlocked: the thread ends here
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				result <- err
				return
			}
		}
		c, err := nftables.New()
		if err == nil {
			_, err = c.ListTables()
		}
		result <- err
	}()
	return <-result
}

// missingController wants the controllers that limits need, of either version.
func missingController(f facts) string {
	if f.unified {
		for _, want := range []string{"cpu", "memory", "pids"} {
			if !slices.Contains(f.controllers, want) {
				return fmt.Sprintf("cgroup controller %q: enable it, e.g. with the kernel parameter cgroup_enable=%s; in a container, delegate it", want, want)
			}
		}
		return ""
	}
	for _, want := range []string{"cpu", "memory", "pids", "devices", "freezer"} {
		if !slices.Contains(f.hierarchies, want) {
			return fmt.Sprintf("cgroup controller %q: nothing is mounted at /sys/fs/cgroup/%s; mount cgroup2 at /sys/fs/cgroup or the v1 controllers below it", want, want)
		}
	}
	return ""
}

// minDisk is what a start needs.
const minDisk = 256 << 20

// missingDisk wants a data directory that can be written, on a file system that
// overlayfs takes as upper layer.
func missingDisk(d disk) string {
	switch {
	case d.err != nil:
		return fmt.Sprintf("data directory: %s: %v; choose another with --data-dir", d.dir, d.err)
	case d.free < minDisk:
		return fmt.Sprintf("disk space: %s has %d MiB free; 256 are needed to start, more for images", d.dir, d.free>>20)
	case d.readOnly != nil:
		return fmt.Sprintf("data directory: %s cannot be written: %v; choose another with --data-dir", d.dir, d.readOnly)
	case d.overlay:
		return fmt.Sprintf("data directory: %s is on an overlay file system, on which containers' root file systems can't be; choose a --data-dir on a disk or tmpfs", d.dir)
	}
	return ""
}

// lookAround collects the facts of this machine.
func lookAround(dataDir string) facts {
	f := facts{root: os.Geteuid() == 0, asUser: isEntered(), sysctls: readUserSysctls(), disk: lookAtDisk(dataDir)}
	if b, err := os.ReadFile("/proc/filesystems"); err == nil {
		for line := range strings.Lines(string(b)) {
			if words := strings.Fields(line); len(words) > 0 {
				f.filesystems = append(f.filesystems, words[len(words)-1])
			}
		}
	}
	if b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		f.unified, f.controllers = true, strings.Fields(string(b))
	}
	f.hierarchies = names("/sys/fs/cgroup")
	f.namespaces = names("/proc/self/ns")
	f.nftables = tryNftables(f.asUser)
	return f
}

// names are those in a folder; none if it cannot be read.
func names(dir string) (out []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func lookAtDisk(dir string) disk {
	for {
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
		return disk{dir: dir, err: err}
	}
	return disk{
		dir: dir, free: st.Bavail * uint64(st.Bsize), readOnly: unix.Access(dir, unix.W_OK),
		overlay: st.Type == unix.OVERLAYFS_SUPER_MAGIC,
	}
}
