package driver

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/runc/libcontainer/system"
	"golang.org/x/sys/unix"
)

// killRecorded kills the first processes of the containers that a dead shim has
// left: where an ordinary user runs the node there are no cgroups to find them by.
// Where there were, nothing is left to kill.
func killRecorded(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "runc", "*", "state.json"))
	if err != nil {
		return err
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		var state struct {
			PID   int    `json:"init_process_pid"`
			Start uint64 `json:"init_process_start"`
		}
		if json.Unmarshal(b, &state) != nil || state.PID <= 1 {
			continue // cut off by a crash of the machine
		}
		if err := killStarted(state.PID, state.Start); err != nil {
			return fmt.Errorf("kill what %s records: %w", file, err)
		}
	}
	return nil
}

// killStarted kills a process unless its number belongs to a later one by now, and
// waits for its end: with it go all others of its PID namespace.
func killStarted(pid int, start uint64) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // it is gone
	}
	defer unix.Close(fd)
	if stat, err := system.Stat(pid); err != nil || stat.StartTime != start {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	until := time.Now().Add(10 * time.Second)
	for time.Now().Before(until) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 500)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return nil
		}
	}
	return fmt.Errorf("process %d does not end", pid)
}
