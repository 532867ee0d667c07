package shim

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"
)

// children are the shim's child processes, and who waits for which. libcontainer takes
// a process into a container by way of two others, and tells of them only when it has
// arrived. When it fails on the way, as it does in a container that is just ending,
// nobody waits for the process itself and the second of the two. That is more than a
// zombie: PID 1 of a PID namespace does not end before every process in it has been waited
// for (zap_pid_ns_processes in the kernel), and so the container would never end.
type children struct {
	mu sync.Mutex
	// starting are the starts under way, whose processes nobody knows yet.
	starting int
	// failed says that one of them failed since strays were last looked for.
	failed bool
	// waited counts who waits for a process: for a moment that may be two, when a
	// number is used again.
	waited map[int]int
}

// start runs start, which starts p. What it leaves behind if it fails has ended and is
// gone when start returns, or when the last of the starts beside it does.
func (c *children) start(p *libcontainer.Process, start func(*libcontainer.Process) error) error {
	c.mu.Lock()
	c.starting++
	c.mu.Unlock()
	err := start(p)
	c.mu.Lock()
	c.starting--
	if err != nil {
		c.failed = true
	} else if pid, err := p.Pid(); err == nil {
		c.count(pid, 1)
	}
	strays := c.strays()
	c.mu.Unlock()
	for _, pid := range strays {
		_ = unix.Kill(pid, unix.SIGKILL) // it is ours until it is waited for
		for {
			if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
				break
			}
		}
		c.done(pid)
	}
	return err
}

// wait waits for a process that start has started.
func (c *children) wait(p *libcontainer.Process) (*os.ProcessState, error) {
	pid, err := p.Pid()
	if err != nil {
		return nil, err
	}
	defer c.done(pid)
	return p.Wait()
}

func (c *children) done(pid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count(pid, -1)
}

// count adds to who waits for a process. It is called with mu held.
func (c *children) count(pid, by int) {
	if c.waited == nil {
		c.waited = map[int]int{}
	}
	if c.waited[pid] += by; c.waited[pid] <= 0 {
		delete(c.waited, pid)
	}
}

// strays are the children that nobody waits for, after a start has failed. It is called
// with mu held; the caller waits for them.
func (c *children) strays() (pids []int) {
	if !c.failed || c.starting > 0 {
		return nil
	}
	c.failed = false
	for _, pid := range childrenOf(os.Getpid()) {
		if c.waited[pid] == 0 {
			c.count(pid, 1)
			pids = append(pids, pid)
		}
	}
	return pids
}

// childrenOf are the child processes, ended ones included. The file children in /proc
// would name them, but kernels have it only with CONFIG_PROC_CHILDREN.
func childrenOf(parent int) (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue // ended meanwhile
		}
		// pid (name) state ppid …, and the name may hold anything: proc_pid_stat(5).
		rest := stat[bytes.LastIndexByte(stat, ')')+1:]
		var state string
		var ppid int
		if _, err := fmt.Fscan(bytes.NewReader(rest), &state, &ppid); err == nil && ppid == parent {
			pids = append(pids, pid)
		}
	}
	return pids
}
