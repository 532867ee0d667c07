package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	mobyuser "github.com/moby/sys/user"

	"gitk8s.dev/gitk8s/runtime/network"
)

// An ordinary user's cluster lives in a user namespace, where the user is root over
// network and mount namespaces made in it. A process of its own keeps the user and
// the mount namespace, with all that is pinned there: as with root, containers and
// their networks outlive `up`. Whoever works on the cluster enters them first. The
// network namespace stays the machine's, so that the cluster is reached as always.
const (
	// keeperFile names the process; it holds a lock on it while it lives.
	keeperFile = "keeper"
	// pinsDir is where the network namespaces are pinned, in the data directory.
	pinsDir = "netns"
	// keeperArg0 makes the executable do nothing but live (runtime/container/shim);
	// the data directory before it says whose it is.
	keeperArg0 = "/.gitk8s-init"
)

// oneUser says whether this process has entered the namespaces of an ordinary user.
func oneUser() bool {
	m, err := mobyuser.CurrentProcessUIDMap()
	return err == nil && len(m) == 1 && m[0].Count == 1
}

// defaultDataDir is the machine's, or for ordinary users their own (the XDG Base
// Directory Specification).
func defaultDataDir() string {
	if os.Geteuid() == 0 && !oneUser() {
		return "/var/lib/gitk8s"
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "gitk8s")
	}
	return filepath.Join(os.Getenv("HOME"), ".local", "share", "gitk8s")
}

// enterAsUser returns at once for root, and for who has entered. For an ordinary user
// it replaces this process by the same command inside of the namespaces that belong
// to the data directory, which are made if they are not there.
func enterAsUser(dataDir string) error {
	if os.Geteuid() == 0 {
		if oneUser() {
			network.PinIn(filepath.Join(dataDir, pinsDir))
		}
		return nil
	}
	dataDir, err := filepath.Abs(dataDir)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// Go's many threads cannot enter a user namespace; nsenter has one.
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return fmt.Errorf("nsenter is missing, with which an ordinary user's namespaces are entered; it is in the package util-linux")
	}
	pid, err := ensureKeeper(self, dataDir)
	if err != nil {
		return fmt.Errorf("namespaces of an ordinary user: %w; `gitk8s check` tells more", err)
	}
	wd, err := os.Getwd()
	if err != nil {
		return err
	}
	args := []string{nsenter, "--preserve-credentials", "--user", "--mount", "--target", strconv.Itoa(pid), "--", "env", "--chdir", wd, self}
	return os.NewSyscallError("exec nsenter", syscall.Exec(nsenter, append(args, os.Args[1:]...), os.Environ()))
}

// ensureKeeper returns the process that keeps the namespaces.
func ensureKeeper(self, dataDir string) (int, error) {
	if err := os.MkdirAll(dataDir, 0o755); err != nil {
		return 0, err
	}
	lock, err := os.OpenFile(filepath.Join(dataDir, keeperFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return readKeeper(lock.Name())
	}
	ready, readyChild, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer ready.Close()
	cmd := inUserNamespace(&exec.Cmd{Path: self, Args: []string{dataDir + keeperArg0}, Dir: "/", ExtraFiles: []*os.File{readyChild, lock}})
	err = cmd.Start()
	_ = readyChild.Close()
	if err != nil {
		return 0, err
	}
	// Closed by the keeper once it ignores signals.
	if _, err := ready.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("wait for the process that keeps them: %w", err)
	}
	pid := cmd.Process.Pid
	return pid, errors.Join(lock.Truncate(0), func() error { _, err := lock.WriteString(strconv.Itoa(pid)); return err }())
}

// inUserNamespace gives a command a user and a mount namespace in which the user is
// root, and a session of its own.
func inUserNamespace(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:      true,
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	return cmd
}

func readKeeper(file string) (int, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("%s is held, but does not say by which process", file)
	}
	return pid, nil
}

// endKeeper lets the namespaces go when nothing is left in them; they end with the
// last process inside, which is the caller.
func endKeeper(dataDir string) error {
	if !oneUser() {
		return nil
	}
	file := filepath.Join(dataDir, keeperFile)
	pid, err := readKeeper(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil // `up`, stopped by `down`, has ended it
	}
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("end process %d, which kept the namespaces: %w", pid, err)
	}
	return errors.Join(os.Remove(file), os.RemoveAll(filepath.Join(dataDir, pinsDir)))
}

// sayLimits says what an ordinary user goes without.
func (e *env) sayLimits() {
	if oneUser() {
		e.say("as an ordinary user: limits on CPU and memory are not enforced nor usage measured, and containers run as user 0 alone, which is you")
	}
}

// dropLost removes what is left of pods whose namespaces are gone.
func dropLost(dataDir string) error {
	if !oneUser() || network.HasHub(topologyID(dataDir)) {
		return nil
	}
	return cleanNodes(dataDir)
}
