package shim

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/container"
)

// setSysctls sets kernel parameters of the sandbox's own namespaces: those of the
// network at netNS, and those of IPC, which are the shim's.
func setSysctls(netNS string, values map[string]string) error {
	if len(values) == 0 {
		return nil
	}
	result := make(chan error, 1)
	go func() {
		// /proc/sys shows a thread its own namespaces. This one is never unlocked: the
		// runtime throws it away.
		runtime.LockOSThread()
		if netNS != "" {
			ns, err := unix.Open(netNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				err = unix.Setns(ns, unix.CLONE_NEWNET)
				_ = unix.Close(ns)
			}
			if err != nil {
				result <- fmt.Errorf("enter network namespace %s: %w", netNS, err)
				return
			}
		}
		for _, name := range slices.Sorted(maps.Keys(values)) {
			if err := writeSysctl(name, values[name]); err != nil {
				result <- fmt.Errorf("sysctl %q: %w", name, err)
				return
			}
		}
		result <- nil
	}()
	return <-result
}

func writeSysctl(name, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", sysctlPath(name)), []byte(value), 0)
}

// sysctlPath turns the dots of a name into slashes; where the first separator is a
// slash they are exchanged, as sysctl(8) has it.
func sysctlPath(name string) string {
	i := strings.IndexAny(name, "./")
	if i < 0 || name[i] == '/' {
		return name
	}
	return container.SwapSysctlSeparators(name)
}
