package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/container"
	"gitk8s.dev/gitk8s/runtime/container/internal/wire"
)

// shutdownPatience is how long a shim may take to end its containers before it is
// killed together with them.
const shutdownPatience = 20 * time.Second

// sandbox is this process's view of one shim.
type sandbox struct {
	d       *Driver
	id, dir string

	life sync.Mutex // held while the sandbox is made or removed

	mu       sync.Mutex
	up       bool
	removing bool
	seq      uint64
	status   container.SandboxStatus
	watching *net.UnixConn
	gone     chan struct{} // closed when the watch of this life has ended
}

func (sb *sandbox) isUp() bool {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	return sb.up
}

func (sb *sandbox) state() (container.SandboxStatus, bool) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	st := sb.status
	st.Containers = append([]container.ContainerStatus(nil), st.Containers...)
	return st, sb.up
}

func (sb *sandbox) disconnect() {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.watching != nil {
		_ = sb.watching.Close()
	}
}

// adopt connects to the shim that an earlier driver left, or cleans up after it.
func (sb *sandbox) adopt() {
	sb.life.Lock()
	defer sb.life.Unlock()
	if err := sb.reconnect(); err == nil {
		return
	}
	sb.loseIfDead()
}

// reconnect connects to a shim that may be about to listen: a worker may have died
// in the middle of starting it.
func (sb *sandbox) reconnect() error {
	deadline := time.Now().Add(2 * time.Second)
	for {
		err := sb.connect()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		if sb.waitForLock(context.Background(), 20*time.Millisecond) == nil {
			return err // dead
		}
	}
}

// run starts the shim unless it runs.
func (sb *sandbox) run(ctx context.Context, cfg container.SandboxConfig) error {
	sb.life.Lock()
	defer sb.life.Unlock()
	if sb.isUp() {
		return nil
	}
	// What is left of an earlier life with this name has no shim.
	if err := sb.cleanUp(cfg); err != nil {
		return err
	}
	if err := os.MkdirAll(sb.dir, 0o700); err != nil {
		return err
	}
	if err := wire.WriteFileAtomic(filepath.Join(sb.dir, wire.ConfigFile), cfg); err != nil {
		return err
	}
	err := sb.spawn(ctx, cfg)
	if err == nil {
		err = sb.connect()
	}
	if err != nil {
		_ = sb.killShim()
		return errors.Join(err, sb.cleanUp(cfg))
	}
	return nil
}

// spawn starts the shim in a session of its own, with its own mount, IPC and UTS
// namespaces, and waits until it listens.
func (sb *sandbox) spawn(ctx context.Context, cfg container.SandboxConfig) error {
	lock, err := os.OpenFile(filepath.Join(sb.dir, wire.LockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock %s: %w", sb.dir, err)
	}
	logFile, err := os.OpenFile(filepath.Join(sb.dir, wire.LogFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	ready, readyChild, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd := &exec.Cmd{
		Path:       sb.executable(),
		Args:       []string{wire.ShimArg0, sb.dir, cfg.Namespace + "/" + cfg.Name},
		Env:        []string{"GOMAXPROCS=1", "GOGC=25", "PATH=" + os.Getenv("PATH")},
		Dir:        "/",
		Stdout:     logFile,
		Stderr:     logFile,
		ExtraFiles: []*os.File{lock, readyChild},
		SysProcAttr: &syscall.SysProcAttr{
			Setsid:     true,
			Cloneflags: unix.CLONE_NEWNS,
		},
	}
	if !cfg.HostIPC {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWIPC
	}
	if cfg.Hostname != "" {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUTS
	}
	err = cmd.Start()
	_ = readyChild.Close()
	if err != nil {
		return fmt.Errorf("start shim: %w", err)
	}
	go func() { _ = cmd.Wait() }() // reaps it; its end is seen by the connection
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Now()) })
	defer stop()
	answer, err := io.ReadAll(io.LimitReader(ready, 4096))
	switch {
	case ctx.Err() != nil:
		_ = cmd.Process.Kill()
		return fmt.Errorf("start shim: %w", ctx.Err())
	case string(answer) == "ok":
		return nil
	case len(answer) > 0:
		return fmt.Errorf("start shim: %s", answer)
	default:
		return fmt.Errorf("start shim: it ended without a word (%v), see %s: %s", err, logFile.Name(), tail(logFile.Name()))
	}
}

// executable gives the sandbox its own name of the executable, so that an upgrade
// which removes the old one leaves this sandbox whole. Where it can't be linked
// (another file system), the original has to do.
func (sb *sandbox) executable() string {
	own := filepath.Join(sb.dir, wire.ExeFile)
	err := unix.Linkat(unix.AT_FDCWD, sb.d.cfg.Executable, unix.AT_FDCWD, own, unix.AT_SYMLINK_FOLLOW)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return sb.d.cfg.Executable
	}
	return own
}

func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-1000):])
}

func (sb *sandbox) dial() (*net.UnixConn, error) {
	dir, err := os.Open(sb.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return net.DialUnix("unix", nil, wire.SocketAddr(dir))
}

// connect opens the watch and takes the first state from it.
func (sb *sandbox) connect() error {
	conn, err := sb.dial()
	if err != nil {
		return fmt.Errorf("connect to shim: %w", err)
	}
	reply, err := firstState(conn)
	if err != nil {
		_ = conn.Close()
		return fmt.Errorf("connect to shim: %w", err)
	}
	sb.mu.Lock()
	known := sb.up // a reconnect: what ended meanwhile is news
	sb.up, sb.watching = true, conn
	if !known {
		sb.gone, sb.removing = make(chan struct{}), false
		sb.seq, sb.status = reply.Seq, *reply.State
	}
	sb.mu.Unlock()
	if known {
		sb.apply(reply)
		return nil
	}
	sb.d.work.Go(sb.watch)
	return nil
}

func firstState(conn *net.UnixConn) (wire.Reply, error) {
	var reply wire.Reply
	if err := wire.Send(conn, wire.Request{Op: wire.OpWatch}); err != nil {
		return reply, err
	}
	if _, err := wire.Receive(conn, &reply); err != nil {
		return reply, err
	}
	if reply.State == nil {
		return reply, errors.New("the shim sent no state")
	}
	return reply, nil
}

// watch follows the shim to its end.
func (sb *sandbox) watch() {
	defer close(sb.gone)
	for {
		sb.mu.Lock()
		conn := sb.watching
		sb.mu.Unlock()
		for {
			var reply wire.Reply
			if _, err := wire.Receive(conn, &reply); err != nil {
				break
			}
			sb.apply(reply)
		}
		_ = conn.Close()
		if sb.d.isClosed() {
			return
		}
		sb.mu.Lock()
		removing := sb.removing
		sb.mu.Unlock()
		if removing {
			return // remove cleans up
		}
		if sb.reconnect() == nil {
			continue
		}
		sb.life.Lock()
		defer sb.life.Unlock()
		sb.loseIfDead()
		return
	}
}

// apply takes a newer state and tells of the containers that ended in it.
func (sb *sandbox) apply(reply wire.Reply) {
	if reply.State == nil {
		return
	}
	sb.mu.Lock()
	if !sb.up || reply.Seq <= sb.seq {
		sb.mu.Unlock()
		return
	}
	ended := endedSince(sb.status, *reply.State)
	sb.seq, sb.status = reply.Seq, *reply.State
	sb.mu.Unlock()
	for _, c := range ended {
		sb.d.emit(container.Event{SandboxID: sb.id, Container: &c})
	}
}

// endedSince returns the containers that ran and have ended between two states.
func endedSince(before, after container.SandboxStatus) []container.ContainerStatus {
	known := map[string]container.State{}
	for _, c := range before.Containers {
		known[c.ID] = c.State
	}
	var out []container.ContainerStatus
	for _, c := range after.Containers {
		if c.State == container.Exited && known[c.ID] != container.Exited && !c.StartedAt.IsZero() {
			out = append(out, c)
		}
	}
	return out
}

// loseIfDead reports a sandbox whose shim has died and removes what is left of it.
// Called with life held.
func (sb *sandbox) loseIfDead() {
	if err := sb.waitForLock(context.Background(), 5*time.Second); err != nil {
		// It lives and does not answer: as good as dead, but it must not come back.
		sb.d.log.Error("the shim does not answer: killing it", "sandbox", sb.id, "err", err)
		if err := sb.killShim(); err != nil {
			sb.d.log.Error("kill shim", "sandbox", sb.id, "err", err)
		}
	}
	var last container.SandboxStatus
	if wire.ReadFile(filepath.Join(sb.dir, wire.StateFile), &last) == nil {
		// Exits that the shim had written down and could not tell any more.
		sb.mu.Lock()
		seq := sb.seq + 1
		sb.mu.Unlock()
		sb.apply(wire.Reply{Seq: seq, State: &last})
	}
	var cfg container.SandboxConfig
	if err := wire.ReadFile(filepath.Join(sb.dir, wire.ConfigFile), &cfg); err != nil {
		sb.d.log.Warn("sandbox without configuration", "sandbox", sb.id, "err", err)
	}
	if err := sb.cleanUp(cfg); err != nil {
		sb.d.log.Error("clean up after a lost sandbox", "sandbox", sb.id, "err", err)
	}
	sb.mu.Lock()
	sb.up = false
	sb.mu.Unlock()
	if cfg.ID != "" {
		sb.d.log.Warn("sandbox lost: its shim died", "sandbox", sb.id, "pod", cfg.Namespace+"/"+cfg.Name)
		sb.d.emit(container.Event{SandboxID: sb.id})
	}
}

// remove ends the shim with everything it holds.
func (sb *sandbox) remove(ctx context.Context) error {
	sb.life.Lock()
	defer sb.life.Unlock()
	if !sb.isUp() {
		return nil
	}
	sb.mu.Lock()
	sb.removing = true
	cfg, gone := sb.status.Config, sb.gone
	sb.mu.Unlock()
	short, cancel := context.WithTimeout(ctx, shutdownPatience)
	defer cancel()
	err := sb.call(short, wire.Request{Op: wire.OpShutdown})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if waitErr := sb.waitForLock(short, shutdownPatience); waitErr != nil {
		sb.d.log.Warn("the shim does not end: killing it", "sandbox", sb.id, "err", errors.Join(err, waitErr))
		if err := sb.killShim(); err != nil {
			return err
		}
	}
	if err := sb.cleanUp(cfg); err != nil {
		return err
	}
	sb.mu.Lock()
	sb.up = false
	sb.mu.Unlock()
	<-gone
	return nil
}

// cleanUp removes what a sandbox without a shim leaves: processes, cgroups, files.
// Its mounts went with the shim's mount namespace.
func (sb *sandbox) cleanUp(cfg container.SandboxConfig) error {
	if cfg.ID != "" && cfg.CgroupParent != "" {
		if err := removeCgroup(cgroupPath(cfg)); err != nil {
			return err
		}
	}
	if err := killRecorded(sb.dir); err != nil {
		return err
	}
	return os.RemoveAll(sb.dir)
}

// waitForLock waits until the shim is dead: it holds the lock while it lives.
func (sb *sandbox) waitForLock(ctx context.Context, patience time.Duration) error {
	lock, err := os.Open(filepath.Join(sb.dir, wire.LockFile))
	if err != nil {
		return nil // never started
	}
	defer lock.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("the shim of %s still runs: %w", sb.id, ctx.Err())
		}
	}
}

// call makes one request and takes the state that comes with the answer.
func (sb *sandbox) call(ctx context.Context, req wire.Request, files ...*os.File) error {
	conn, err := sb.dial()
	if err != nil {
		return fmt.Errorf("sandbox %s is lost: %w: %w", sb.id, container.ErrNotFound, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var reply wire.Reply
	if err = wire.Send(conn, req, files...); err == nil {
		_, err = wire.Receive(conn, &reply)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s container %s: %w", req.Op, req.Container, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("%s container %s: the shim of sandbox %s went away: %w: %w", req.Op, req.Container, sb.id, container.ErrNotFound, err)
	}
	sb.apply(reply)
	return reply.Error.Err()
}

// callIfThere is for calls that have nothing to do in a lost sandbox.
func (sb *sandbox) callIfThere(ctx context.Context, req wire.Request) error {
	if err := sb.call(ctx, req); err != nil && !container.IsNotFound(err) {
		return err
	}
	return nil
}
