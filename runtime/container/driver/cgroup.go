package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/container"
)

const cgroupRoot = "/sys/fs/cgroup"

func cgroupPath(cfg container.SandboxConfig, elem ...string) string {
	return path.Join(append([]string{"/", cfg.CgroupParent, "pod" + cfg.ID}, elem...)...)
}

func unified() bool {
	var st unix.Statfs_t
	return unix.Statfs(cgroupRoot, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// hierarchies are the mounts in which the cgroup may have a directory.
func hierarchies() ([]string, error) {
	if unified() {
		return []string{cgroupRoot}, nil
	}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return nil, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() { // links are other names of the same
			out = append(out, filepath.Join(cgroupRoot, e.Name()))
		}
	}
	return out, nil
}

// removeCgroup kills what runs below the cgroup and removes it everywhere.
func removeCgroup(name string) error {
	mounts, err := hierarchies()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(10 * time.Second)
	for _, m := range mounts {
		dir := filepath.Join(m, name)
		for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
			err := removeCgroupDir(dir)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("remove cgroup %s: %w", dir, err)
			}
			time.Sleep(wait)
		}
	}
	return nil
}

func removeCgroupDir(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if e.IsDir() {
			dirs = append(dirs, p)
			killAll(p)
		}
		return nil
	})
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
		if err = os.Remove(dirs[i]); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return err
}

func killAll(dir string) {
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return
	}
	for _, line := range bytes.Fields(procs) {
		if pid, err := strconv.Atoi(string(line)); err == nil && pid > 1 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// Stats implements container.Runtime. It reads the cgroup without waking the shim.
func (d *Driver) Stats(_ context.Context, sandboxID, id string) (container.Stats, error) {
	sb, err := d.running(sandboxID)
	if err != nil {
		return container.Stats{}, err
	}
	st, _ := sb.state()
	out, err := readStats(cgroupPath(st.Config, id))
	if errors.Is(err, fs.ErrNotExist) {
		return out, fmt.Errorf("stats of container %s: it does not run: %w", id, container.ErrNotFound)
	}
	if err != nil {
		return out, fmt.Errorf("stats of container %s: %w", id, err)
	}
	return out, nil
}

func readStats(name string) (container.Stats, error) {
	out := container.Stats{Time: time.Now()}
	var usage, inactive uint64
	var err error
	if unified() {
		dir := filepath.Join(cgroupRoot, name)
		var micros uint64
		if micros, err = readKey(filepath.Join(dir, "cpu.stat"), "usage_usec"); err == nil {
			out.CPU = time.Duration(micros) * time.Microsecond
			if usage, err = readNumber(filepath.Join(dir, "memory.current")); err == nil {
				inactive, err = readKey(filepath.Join(dir, "memory.stat"), "inactive_file")
			}
		}
	} else {
		var nanos uint64
		if nanos, err = readNumber(filepath.Join(cgroupRoot, "cpuacct", name, "cpuacct.usage")); err == nil {
			out.CPU = time.Duration(nanos)
			dir := filepath.Join(cgroupRoot, "memory", name)
			if usage, err = readNumber(filepath.Join(dir, "memory.usage_in_bytes")); err == nil {
				inactive, err = readKey(filepath.Join(dir, "memory.stat"), "total_inactive_file")
			}
		}
	}
	if err != nil {
		return out, err
	}
	out.MemoryWorkingSet = usage - min(usage, inactive)
	return out, nil
}

func readNumber(file string) (uint64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
}

func readKey(file, key string) (uint64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, key+" "); ok {
			return strconv.ParseUint(strings.TrimSpace(value), 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, key)
}

// killShim ends a shim that does not answer.
func (sb *sandbox) killShim() error {
	pid, err := sb.shimPid()
	if err != nil || pid == 0 {
		return err
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill shim %d of sandbox %s: %w", pid, sb.id, err)
	}
	return sb.waitForLock(context.Background(), 5*time.Second)
}
