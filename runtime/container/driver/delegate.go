package driver

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A cgroup is delegated when its directory and the files with which processes are
// moved belong to a user (cgroups(7), "Delegation of a hierarchy to a less privileged
// user"): systemd does so for a unit with Delegate=yes. Cgroups with limits may have no
// processes beside them ("no internal processes"), so who makes use of it moves down
// first.
const (
	managerCgroup  = "gitk8s-manager" // where who manages the others is
	subtreeControl = "cgroup.subtree_control"
	delegateHint   = "`systemd-run --user --scope --property=Delegate=yes` before the command gives it one where systemd runs your session"
)

// needed are the controllers that limits and their measuring need.
var needed = []string{"cpu", "memory", "pids"}

// Delegable returns the cgroup, relative to the root of all, below which this process
// may make others with limits; the error says why there is none.
func Delegable() (string, error) {
	if !unified() {
		return "", errors.New("only cgroup v2 can be delegated to a user, and this machine has v1")
	}
	own, err := ownCgroup()
	if err != nil {
		return "", err
	}
	// Already moved: by an earlier start of the same unit.
	if path.Base(own) == managerCgroup {
		return path.Dir(own), nil
	}
	dir := filepath.Join(cgroupRoot, own)
	for _, name := range []string{".", "cgroup.procs", subtreeControl} {
		if own == "/" || unix.Access(filepath.Join(dir, name), unix.W_OK) != nil {
			return "", fmt.Errorf("the cgroup %s is not delegated to you; %s", own, delegateHint)
		}
	}
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return "", err
	}
	for _, c := range needed {
		if !slices.Contains(strings.Fields(string(have)), c) {
			return "", fmt.Errorf("the cgroup %s was delegated without the controller %q; have root set Delegate=%s for the unit user@.service", own, c, strings.Join(needed, " "))
		}
	}
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return "", err
	}
	for _, pid := range bytes.Fields(procs) {
		if string(pid) != strconv.Itoa(os.Getpid()) {
			return "", fmt.Errorf("other processes are in the cgroup %s, too; %s", own, delegateHint)
		}
	}
	return own, nil
}

// Delegate makes ready the cgroup that Delegable finds: this process moves to one below
// it, and others there can have limits.
func Delegate() (string, error) {
	parent, err := Delegable()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cgroupRoot, parent)
	manager := filepath.Join(dir, managerCgroup)
	if err := os.Mkdir(manager, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	err = os.WriteFile(filepath.Join(manager, "cgroup.procs"), []byte("0"), 0)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, subtreeControl), []byte("+"+strings.Join(needed, " +")), 0)
	}
	if err != nil {
		Undelegate(parent)
		return "", fmt.Errorf("the cgroup %s cannot be divided: %w", parent, err)
	}
	return parent, nil
}

// Undelegate undoes Delegate when the cgroups below parent are gone. Where others are
// still about, or the unit ends with this process, there is nothing to undo.
func Undelegate(parent string) {
	dir := filepath.Join(cgroupRoot, parent)
	// All that are enabled: libcontainer does so with whatever there is.
	if b, err := os.ReadFile(filepath.Join(dir, subtreeControl)); err == nil && len(bytes.TrimSpace(b)) > 0 {
		_ = os.WriteFile(filepath.Join(dir, subtreeControl), []byte("-"+strings.Join(strings.Fields(string(b)), " -")), 0)
	}
	_ = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0)
	_ = os.Remove(filepath.Join(dir, managerCgroup))
}

// ownCgroup is that of this process in cgroup v2.
func ownCgroup() (string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return name, nil
		}
	}
	return "", errors.New("this process is in no cgroup of v2")
}
