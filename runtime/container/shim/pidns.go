package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/container"
)

// pidNamespace is the PID namespace that a container joins; the zero value is one
// of its own.
type pidNamespace struct {
	host bool
	file *os.File
}

// path leads to the namespace also in a child of the shim.
func (n pidNamespace) path() string {
	if n.file == nil {
		return ""
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd())
}

func (n pidNamespace) close() {
	if n.file != nil {
		_ = n.file.Close()
	}
}

// pidNamespace finds the one for a new container: its target's, the pod's or its
// own.
func (s *shim) pidNamespace(c container.ContainerConfig) (pidNamespace, error) {
	if c.PIDTarget != "" {
		target := s.find(c.PIDTarget)
		if target == nil || target.ended() {
			return pidNamespace{}, fmt.Errorf("the target container %s does not run", c.PIDTarget)
		}
		pid, err := target.process.Pid()
		if err != nil {
			return pidNamespace{}, fmt.Errorf("the target container %s: %w", c.PIDTarget, err)
		}
		file, err := openPIDNamespace(pid)
		if err == nil && target.ended() {
			// The number may belong to another process by now.
			_ = file.Close()
			err = fmt.Errorf("the target container %s has ended", c.PIDTarget)
		}
		return pidNamespace{file: file}, err
	}
	switch s.cfg.PIDNamespace {
	case container.PIDHost:
		return pidNamespace{host: true}, nil
	case container.PIDPod:
		file, err := s.holder.namespace(s)
		return pidNamespace{file: file}, err
	}
	return pidNamespace{}, nil
}

func openPIDNamespace(pid int) (*os.File, error) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		return nil, fmt.Errorf("open PID namespace: %w", err)
	}
	return file, nil
}

// holder is the process that holds the PID namespace of a pod whose containers
// share it: PID 1 that reaps orphans, without rights and without files.
type holder struct {
	mu        sync.Mutex
	container *libcontainer.Container
	process   *libcontainer.Process
	ended     chan struct{}
}

const holderID = "_pid"

// namespace opens the namespace, and makes the process if it is not there or was
// killed, which killed all that was in its namespace.
func (h *holder) namespace(s *shim) (*os.File, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended != nil {
		select {
		case <-h.ended:
			h.ended = nil
		default:
		}
	}
	if h.ended == nil {
		if err := h.start(s); err != nil {
			return nil, fmt.Errorf("make the PID namespace of the pod: %w", err)
		}
	}
	pid, err := h.process.Pid()
	if err != nil {
		return nil, err
	}
	return openPIDNamespace(pid)
}

func (h *holder) start(s *shim) error {
	rootfs := filepath.Join(s.dir, "holder")
	for _, d := range []string{"dev", "proc"} {
		if err := os.MkdirAll(filepath.Join(rootfs, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chown(rootfs, s.users.base, s.users.base); err != nil {
		return err
	}
	reachable, release, err := s.users.reach(holderID, rootfs)
	if err != nil {
		return err
	}
	defer release()
	cfg := container.ContainerConfig{ID: holderID, Security: container.Security{
		DropCapabilities: []string{"ALL"}, NoNewPrivileges: true, ReadOnlyRootFilesystem: true,
	}}
	config, err := buildConfig(s.cfg, cfg, s.paths(paths{rootfs: reachable}), s.facts)
	if err != nil {
		return err
	}
	if h.container, err = libcontainer.Create(filepath.Join(s.dir, "runc"), holderID, config); err != nil {
		return err
	}
	report, reportChild, err := os.Pipe()
	if err != nil {
		return err
	}
	defer report.Close()
	user := holderUser
	if !has(s.facts.ids.uids, user) || !has(s.facts.ids.gids, user) {
		user = 0
	}
	h.process = &libcontainer.Process{
		Args: []string{initPath(nil)}, Cwd: "/", UID: user, GID: user,
		Init: true, ExtraFiles: []*os.File{reportChild},
	}
	err = s.children.start(h.process, h.container.Run)
	_ = reportChild.Close()
	if err != nil {
		_ = h.container.Destroy()
		return err
	}
	// Closed by the holder when it is ready to reap.
	_, _ = report.Read(make([]byte, 1))
	ended := make(chan struct{})
	h.ended = ended
	go func(c *libcontainer.Container, p *libcontainer.Process) {
		_, _ = s.children.wait(p)
		_ = c.Destroy()
		close(ended)
	}(h.container, h.process)
	return nil
}

// holderUser is nobody's.
const holderUser = 65535

// stop ends the process.
func (h *holder) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended == nil {
		return
	}
	_ = h.process.Signal(unix.SIGKILL)
	<-h.ended
	h.ended = nil
}
