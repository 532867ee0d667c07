package shim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/container"
)

// proc is one container, running or ended.
type proc struct {
	cfg       container.ContainerConfig
	status    container.ContainerStatus // under shim.mu
	user      user
	container *libcontainer.Container // nil when it never started
	process   *libcontainer.Process
	stdin     *os.File // held open until the end; the terminal if there is one
	stdout    audience
	stderr    audience
	done      chan struct{} // closed when status says exited
}

func (p *proc) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// signal reaches the command through PID 1, which forwards it; SIGKILL ends PID 1 and
// with it the whole PID namespace, or, if that is shared, what shim.wait finds left. It
// does not go through the container, which is locked while a command is taken there.
func (p *proc) signal(sig unix.Signal) {
	if p.process != nil {
		_ = p.process.Signal(sig) // an error says that it has ended
	}
}

// start makes and starts a container, or finds it started.
func (s *shim) start(cfg *container.ContainerConfig, mounts []*os.File) error {
	if cfg == nil || len(cfg.Args) == 0 || len(mounts) != len(cfg.Mounts) {
		return &container.StartError{Reason: "CreateContainerError", ExitCode: 128, Err: errors.New("container has no command")}
	}
	for {
		s.mu.Lock()
		if s.closing {
			s.mu.Unlock()
			return fmt.Errorf("sandbox %s is being removed: %w", s.cfg.ID, container.ErrNotFound)
		}
		pending, busy := s.starting[cfg.ID]
		if !busy {
			break
		}
		s.mu.Unlock()
		<-pending
	}
	finished := make(chan struct{})
	s.starting[cfg.ID] = finished
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.starting, cfg.ID)
		s.mu.Unlock()
		close(finished)
	}()
	if p := s.find(cfg.ID); p != nil {
		if p.status.Error != "" {
			return &container.StartError{Reason: "StartError", ExitCode: p.status.ExitCode, Err: errors.New(p.status.Error)}
		}
		return nil
	}

	p := &proc{cfg: *cfg, done: make(chan struct{})}
	p.status = container.ContainerStatus{ID: cfg.ID, State: container.Running}
	logs, err := s.launch(p, mounts)
	if err != nil {
		s.fail(p, err)
		return err
	}
	s.change(func() {
		p.status.StartedAt = time.Now()
		p.status.Pid, _ = p.process.Pid()
		p.status.User = p.user.status()
		s.containers = append(s.containers, p)
	})
	go s.wait(p, logs)
	return nil
}

// fail records a container that never ran.
func (s *shim) fail(p *proc, err error) {
	code := 128
	var start *container.StartError
	if errors.As(err, &start) {
		code = start.ExitCode
	}
	s.log.Warn("container does not start", "container", p.cfg.ID, "err", err)
	close(p.done)
	s.change(func() {
		p.status.State = container.Exited
		p.status.FinishedAt = time.Now()
		p.status.ExitCode = code
		p.status.Error = err.Error()
		s.containers = append(s.containers, p)
	})
}

// launch returns when the command has been exec'd. The returned wait group is done
// when all of its output is in the log.
func (s *shim) launch(p *proc, mounts []*os.File) (logs *sync.WaitGroup, err error) {
	dir := s.containerDir(p.cfg.ID)
	failure := func(reason string, err error) error {
		return &container.StartError{Reason: reason, ExitCode: 128, Err: err}
	}
	defer func() {
		if err != nil {
			if p.container != nil {
				_ = p.container.Destroy()
			}
			p.container, p.process = nil, nil
			_ = removeRootfs(dir)
		}
	}()
	rootfs, release, err := s.makeRootfs(p)
	if err != nil {
		return nil, failure("CreateContainerError", err)
	}
	defer release()
	sources, err := attachMounts(dir, mounts, p.cfg.Mounts, s.users)
	if err != nil {
		return nil, failure("CreateContainerError", err)
	}
	defer detachMounts(sources)
	if p.user, err = resolveUser(rootfs, p.cfg); err != nil {
		return nil, failure("CreateContainerError", err)
	}
	if err := s.facts.ids.check(p.user); err != nil {
		return nil, failure("CreateContainerConfigError", err)
	}
	if s.facts.ids.noGroups {
		p.user.groups = nil
	}
	if err := s.users.check(p.user); err != nil {
		return nil, failure("CreateContainerConfigError", err)
	}
	pidNS, err := s.pidNamespace(p.cfg)
	if err != nil {
		return nil, failure("CreateContainerError", err)
	}
	defer pidNS.close()
	config, err := buildConfig(s.cfg, p.cfg, s.paths(paths{rootfs: rootfs, mounts: sources, pidNS: pidNS}), s.facts)
	if err != nil {
		return nil, failure("CreateContainerError", err)
	}
	if p.container, err = libcontainer.Create(filepath.Join(s.dir, "runc"), p.cfg.ID, config); err != nil {
		return nil, failure("CreateContainerError", fmt.Errorf("create container: %w", err))
	}
	p.process = &libcontainer.Process{
		Args:             append([]string{initPath(p.cfg.Mounts)}, p.cfg.Args...),
		Env:              environment(p.cfg.Env, p.cfg.TTY),
		Cwd:              workingDir(p.cfg),
		UID:              p.user.uid,
		GID:              p.user.gid,
		AdditionalGroups: p.user.groups,
		Init:             true,
	}
	logs, err = s.runProcess(p)
	if err != nil {
		return nil, err
	}
	if r := p.cfg.Resources; r.CPUQuota > 0 && hasCgroups(s.cfg) {
		// A quota from the beginning would throttle libcontainer's own start.
		if err := s.applyQuota(p); err != nil {
			p.signal(unix.SIGKILL)
			_, _ = s.children.wait(p.process)
			return nil, failure("CreateContainerError", err)
		}
	}
	return logs, nil
}

// makeRootfs makes the container's root filesystem, and returns the way to it until
// release.
func (s *shim) makeRootfs(p *proc) (rootfs string, release func(), err error) {
	layers, letGo, err := s.users.mapLayers(p.cfg.ID, p.cfg.Layers)
	defer letGo()
	if err != nil {
		return "", nil, err
	}
	if rootfs, err = makeRootfs(s.containerDir(p.cfg.ID), layers, s.users.base); err != nil {
		return "", nil, err
	}
	return s.users.reach(p.cfg.ID, rootfs)
}

// runProcess starts the process with its standard files and reads from PID 1
// whether the exec of the command succeeded.
func (s *shim) runProcess(p *proc) (*sync.WaitGroup, error) {
	log, err := newLogFile(p.cfg)
	if err != nil {
		return nil, &container.StartError{Reason: "CreateContainerError", ExitCode: 128, Err: err}
	}
	report, reportChild, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer report.Close()
	p.process.ExtraFiles = []*os.File{reportChild}
	streams, err := openStreams(p)
	if err != nil {
		_ = reportChild.Close()
		log.close()
		return nil, err
	}
	if err = s.users.own(streams.child...); err == nil {
		err = s.children.start(p.process, p.container.Run)
	}
	_ = reportChild.Close()
	if err != nil {
		err = startFailure(p.cfg.Args[0], err)
	} else {
		if err = streams.started(); err == nil {
			err = readReport(report, p.cfg.Args[0])
		}
		if err != nil {
			p.signal(unix.SIGKILL) // it may have begun, but nobody would see what it writes
			_, _ = s.children.wait(p.process)
		}
	}
	if err != nil {
		streams.close()
		log.close()
		return nil, err
	}
	p.stdin = streams.stdin
	var logs sync.WaitGroup
	for name, r := range streams.outputs {
		to := &p.stdout
		if name == "stderr" {
			to = &p.stderr
		}
		logs.Go(func() { log.copy(name, shown{r, to}) })
	}
	done := &sync.WaitGroup{}
	done.Go(func() {
		logs.Wait()
		log.close()
	})
	return done, nil
}

// readReport waits for the exec: end of file means success, four bytes are the
// errno of the failure.
func readReport(r io.Reader, command string) error {
	var buf [4]byte
	if _, err := io.ReadFull(r, buf[:]); err != nil {
		return nil
	}
	return execError(command, syscall.Errno(binary.NativeEndian.Uint32(buf[:])))
}

// execError words the failure as runc does, since people search for that.
func execError(command string, errno syscall.Errno) error {
	switch {
	case errno == syscall.ENOENT && !strings.Contains(command, "/"):
		return &container.StartError{Reason: "ContainerCannotRun", ExitCode: 127, Err: fmt.Errorf("exec: %q: executable file not found in $PATH", command)}
	case errno == syscall.ENOENT || errno == syscall.ENOTDIR:
		return &container.StartError{Reason: "ContainerCannotRun", ExitCode: 127, Err: fmt.Errorf("exec: %q: stat %s: %w", command, command, errno)}
	default:
		return &container.StartError{Reason: "ContainerCannotRun", ExitCode: 126, Err: fmt.Errorf("exec: %q: %w", command, errno)}
	}
}

// startFailure classifies an error of libcontainer, which arrives from its init as
// text only.
func startFailure(command string, err error) error {
	text := err.Error()
	switch {
	case strings.Contains(text, "executable file not found in $PATH"),
		strings.Contains(text, "exec: \""+command+"\": stat "):
		return &container.StartError{Reason: "ContainerCannotRun", ExitCode: 127, Err: err}
	case strings.Contains(text, "exec: \""+command+"\": "):
		return &container.StartError{Reason: "ContainerCannotRun", ExitCode: 126, Err: err}
	default:
		return &container.StartError{Reason: "StartError", ExitCode: 128, Err: err}
	}
}

// wait records the end of the container: first all of its output, then the cause,
// then the exit, on disk before anybody is told.
func (s *shim) wait(p *proc, logs *sync.WaitGroup) {
	state, err := s.children.wait(p.process)
	finished := time.Now()
	code := 255
	if state != nil {
		if ws, ok := state.Sys().(syscall.WaitStatus); ok {
			code = ws.ExitStatus()
			if ws.Signaled() {
				code = 128 + int(ws.Signal())
			}
		}
	} else {
		s.log.Error("wait for container", "container", p.cfg.ID, "err", err)
	}
	if pids := p.container.Config().Namespaces; !pids.IsPrivate(configs.NEWPID) {
		// Its other processes live on, and may hold the output.
		_ = p.container.Signal(unix.SIGKILL)
	}
	drained := make(chan struct{})
	go func() {
		logs.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(2 * time.Second):
		// Another process got hold of the output, over a unix socket; it may keep it.
		s.log.Warn("output is held by a process outside of the container", "container", p.cfg.ID)
	}
	oom := s.oomKilled(p)
	if p.stdin != nil {
		_ = p.stdin.Close()
	}
	if err := p.container.Destroy(); err != nil {
		s.log.Error("destroy container", "container", p.cfg.ID, "err", err)
	}
	s.change(func() {
		p.status.State = container.Exited
		p.status.FinishedAt = finished
		p.status.ExitCode = code
		p.status.OOMKilled = oom
		p.status.Pid = 0
		close(p.done)
	})
}
