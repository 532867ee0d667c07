package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/container/driver"
	"gitk8s.dev/gitk8s/runtime/network"
)

// An ordinary user's nodes live in a user namespace, where the user is root over
// network and mount namespaces made in it. A process of its own keeps the user and
// the mount namespace, with all that is pinned there: as with root, containers and
// their networks outlive `up`. Whoever works on them enters first. The network namespace
// stays the machine's, from where nodes get their way out. The server does not enter.
const (
	// keeperFile names the process; it holds a lock on it while it lives. There is one in
	// the data directory, and one for each worker in the worker's.
	keeperFile = "keeper"
	// pinsDir is where the network namespaces are pinned, in the data directory.
	pinsDir = "netns"
	// keeperArg0 makes the executable do nothing but live (runtime/container/shim);
	// the data directory before it says whose it is.
	keeperArg0 = "/.gitk8s-init"
	// keeperPatience is how long a keeper may be about to start or to end.
	keeperPatience = 2 * time.Second
	// entryVar is set for who has entered, and says what there is.
	entryVar = "GITK8S_ENTERED"
)

// entry is what an ordinary user has in the namespaces.
type entry struct {
	IDs      string // about users and groups, for people
	Cgroup   string // below which pods have their cgroups, if they can have any
	NoCgroup string // why they cannot
}

// entered says whether this process has entered the namespaces of an ordinary user.
func entered() (in entry, ok bool) {
	s, ok := os.LookupEnv(entryVar)
	return in, ok && json.Unmarshal([]byte(s), &in) == nil
}

func isEntered() bool { _, ok := entered(); return ok }

// defaultDataDir is the machine's, or for ordinary users their own (the XDG Base
// Directory Specification).
func defaultDataDir() string {
	if os.Geteuid() == 0 && !isEntered() {
		return "/var/lib/gitk8s"
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "gitk8s")
	}
	return filepath.Join(os.Getenv("HOME"), ".local", "share", "gitk8s")
}

// rootOnly refuses root the cluster of an ordinary user.
func rootOnly(dataDir string) error {
	if begun, err := readIDs(dataDir); err != nil || begun != nil {
		return errors.Join(err, fmt.Errorf("%s is the cluster of an ordinary user: run gitk8s as that user, or choose another --data-dir", dataDir))
	}
	return nil
}

// enterAsUser returns at once for root, and for who has entered. For an ordinary user
// it replaces this process by the same command inside of the namespaces that belong
// to the data directory, which are made if they are not there.
func enterAsUser(dataDir string) error {
	if isEntered() {
		network.PinIn(filepath.Join(dataDir, pinsDir))
		return nil
	}
	if os.Geteuid() == 0 {
		return rootOnly(dataDir)
	}
	in, keeper, err := enterable(dataDir, false)
	if err != nil {
		return err
	}
	args, env, err := enterCommand(keeper, in, os.Args[1:])
	if err != nil {
		return err
	}
	return os.NewSyscallError("exec nsenter", syscall.Exec(args[0], args, env))
}

// enterable returns the process that keeps the namespaces of a data directory, and what
// there is in them. With limits this process first takes the cgroup that was delegated to
// the user, if one was.
func enterable(dataDir string, limits bool) (in entry, keeper int, err error) {
	if dataDir, err = filepath.Abs(dataDir); err != nil {
		return in, 0, err
	}
	if limits {
		var why error
		if in.Cgroup, why = driver.Delegate(); why != nil {
			in.NoCgroup = why.Error()
		}
	}
	if keeper, err = ensureKeeper(dataDir, &in); err != nil {
		return in, 0, fmt.Errorf("namespaces of an ordinary user: %w; `gitk8s check` tells more", err)
	}
	return in, keeper, nil
}

// enterCommand is a command line of this program, run inside of the namespaces that a
// process keeps.
func enterCommand(keeper int, in entry, command []string) (args, env []string, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	wd, err := os.Getwd()
	if err != nil {
		return nil, nil, err
	}
	// Go's many threads cannot enter a user namespace; nsenter has one.
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return nil, nil, errors.New("nsenter is missing, with which an ordinary user's namespaces are entered; it is in the package util-linux")
	}
	b, err := json.Marshal(in)
	args = []string{nsenter, "--preserve-credentials", "--user", "--mount", "--target", strconv.Itoa(keeper), "--", "env", "--chdir", wd, self}
	return append(args, command...), append(os.Environ(), entryVar+"="+string(b)), err
}

// ensureKeeper returns the process that keeps the namespaces, and notes what there is
// to tell about its ids.
func ensureKeeper(dataDir string, in *entry) (int, error) {
	if err := os.MkdirAll(dataDir, 0o755); err != nil {
		return 0, err
	}
	lock, running, err := keeperOf(dataDir)
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	begun, err := begunWith(dataDir)
	if err != nil {
		return 0, err
	}
	available, lack := availableIDs()
	if running {
		// It has its ids, whatever is available by now.
		if begun != nil && begun.several() {
			lack = ""
		}
		if _, in.IDs, err = planIDs(begun, available, lack); err != nil {
			return 0, err
		}
		return readKeeper(lock.Name())
	}
	cmd, m, tell, err := startKeeper(dataDir, lock, begun, available, lack)
	if err != nil {
		return 0, err
	}
	in.IDs = tell
	pid := cmd.Process.Pid
	return pid, errors.Join(writeIDs(dataDir, m), writePID(lock, pid))
}

// keeperOf opens the file that names a keeper, and says whether that is alive. If it is
// not, the caller has its lock, for the next one.
func keeperOf(dir string) (lock *os.File, running bool, err error) {
	if lock, err = os.OpenFile(filepath.Join(dir, keeperFile), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, false, err
	}
	until := time.Now().Add(keeperPatience)
	for syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		var pid int
		if pid, err = readKeeper(lock.Name()); err == nil && waits(pid) {
			return lock, true, nil
		}
		if time.Now().Before(until) { // it is being started, or ends
			time.Sleep(keeperPatience / 400)
			continue
		}
		if err == nil {
			return lock, true, nil
		}
		// Who did was killed before it could say which process it is.
		if pid = findKeeper(dir); pid != 0 {
			err = killAndWait(pid)
		}
		if err != nil {
			return nil, false, errors.Join(err, lock.Close())
		}
	}
	return lock, false, lock.Truncate(0)
}

// waits says whether a process does what keepers do all the time: it sleeps, and has not
// been killed. One that was is there for a moment, but its namespaces may not be.
func waits(pid int) bool {
	const exiting, killed = 0x4, 1 << (syscall.SIGKILL - 1) // PF_EXITING of the kernel
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// The third field and those after it (proc_pid_stat(5)); the name before may hold anything.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 29 {
		return false
	}
	flags, err := strconv.ParseUint(f[6], 10, 64)
	pending, errPending := strconv.ParseUint(f[28], 10, 64)
	return errors.Join(err, errPending) == nil && f[0] == "S" && flags&exiting == 0 && pending&killed == 0
}

// findKeeper looks for the keeper of a directory by its command line; 0 if there is none.
func findKeeper(dir string) int {
	for _, name := range names("/proc") {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if b, _ := os.ReadFile(filepath.Join("/proc", name, "cmdline")); string(b) == keeperName(dir)+"\x00" {
			return pid
		}
	}
	return 0
}

// keeperName is the name that a keeper goes by.
func keeperName(dir string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	return dir + keeperArg0
}

// startKeeper starts the process with the ids that planIDs gives it, or for a new
// cluster with one where the machine does not give more after all.
func startKeeper(dir string, lock *os.File, begun *idMaps, available idMaps, lack string) (*exec.Cmd, idMaps, string, error) {
	m, tell, err := planIDs(begun, available, lack)
	if err != nil {
		return nil, m, "", err
	}
	cmd, err := startKeeperWith(dir, lock, m)
	switch {
	case !errors.Is(err, errIDs):
		return cmd, m, tell, err
	case begun != nil:
		return nil, m, "", m.gone(err)
	}
	return startKeeper(dir, lock, nil, oneID(os.Geteuid(), os.Getegid()), err.Error())
}

// startKeeperWith starts a process in a user and a mount namespace in which the user is
// root.
func startKeeperWith(dir string, lock *os.File, m idMaps) (*exec.Cmd, error) {
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS}
	if !m.several() {
		attr.UidMappings, attr.GidMappings = m.Users, m.Groups
	}
	cmd, err := keep(dir, lock, attr)
	if err == nil && m.several() {
		if err = giveIDs(cmd.Process.Pid, m); err != nil {
			_, _ = cmd.Process.Kill(), cmd.Wait()
			return nil, err
		}
	}
	return cmd, err
}

// keep starts a process that lives in new namespaces and a session of its own, and returns
// when signals do not harm it any more. It has the lock of the file.
func keep(dir string, lock *os.File, attr *syscall.SysProcAttr) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ready, readyChild, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	attr.Setsid = true
	cmd := &exec.Cmd{Path: self, Args: []string{keeperName(dir)}, Dir: "/", ExtraFiles: []*os.File{readyChild, lock}, SysProcAttr: attr}
	err = cmd.Start()
	_ = readyChild.Close()
	if err != nil {
		return nil, err
	}
	// Closed by the keeper once it ignores signals.
	if _, err = ready.Read(make([]byte, 1)); err != nil && !errors.Is(err, io.EOF) {
		_, _ = cmd.Process.Kill(), cmd.Wait()
		return nil, err
	}
	return cmd, nil
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

// letGo lets the namespaces of a data directory go when nothing is left in them; the
// caller is the last one inside.
func letGo(dataDir string) error {
	if !isEntered() {
		return nil
	}
	return errors.Join(endKeeper(dataDir), os.RemoveAll(filepath.Join(dataDir, pinsDir)))
}

// endKeeper ends the keeper of a directory, if there is one. Its namespaces go with the
// last process inside.
func endKeeper(dir string) error {
	file := filepath.Join(dir, keeperFile)
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	lock, running, err := keeperOf(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if running {
		pid, err := readKeeper(file)
		if err == nil {
			err = killAndWait(pid)
		}
		if err != nil {
			return fmt.Errorf("end what keeps the namespaces of %s: %w", dir, err)
		}
	}
	return os.Remove(file)
}

// killAndWait returns when the process has ended.
func killAndWait(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for {
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); n > 0 {
			return nil
		} else if !errors.Is(err, unix.EINTR) {
			return errors.Join(err, fmt.Errorf("process %d does not end", pid))
		}
	}
}

// sayLimits says what an ordinary user has, and goes without.
func (e *env) sayLimits(in entry) {
	e.say("as an ordinary user: %s", in.IDs)
	if in.NoCgroup != "" {
		e.say("limits on CPU and memory are not enforced, nor usage measured: %s", in.NoCgroup)
	}
}
