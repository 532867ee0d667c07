// Package shim holds the containers of one sandbox: a process of its own that
// makes them with libcontainer, writes their logs, and keeps their exit codes, for
// longer than the worker that asked for them may live.
//
// The package is imported for its initialisation. The executable runs itself again
// in three roles: as shim (argv[0] says so), as libcontainer's init on the way into
// a container, and as PID 1 inside of it (see pid1.c). All three take over before
// main and before most other packages are initialised, so it must import nothing
// but libcontainer and the standard library: whatever it imports, every container
// pays for. Nothing else may be called from outside.
package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	_ "github.com/opencontainers/cgroups/devices" // device rules in cgroups
	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // joins namespaces before Go starts
	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/container"
	"gitk8s.dev/gitk8s/runtime/container/internal/wire"
)

func init() {
	switch {
	case len(os.Args) > 1 && os.Args[1] == "init" && os.Getenv("_LIBCONTAINER_INITPIPE") != "":
		libcontainer.Init()
	case len(os.Args) > 1 && os.Args[0] == wire.ShimArg0:
		os.Exit(run(os.Args[1]))
	}
}

// shim is the state of one sandbox.
type shim struct {
	dir     string
	cfg     container.SandboxConfig
	log     *slog.Logger
	created time.Time
	facts   facts

	mu         sync.Mutex
	seq        uint64
	containers []*proc
	starting   map[string]chan struct{}
	changed    chan struct{} // closed and replaced with every change
	closing    bool

	users    userNamespace
	holder   holder
	children children
}

// run is the shim's main. Its standard error is its log file.
func run(dir string) int {
	ready := os.NewFile(wire.ReadyFd, "ready")
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	unix.CloseOnExec(wire.LockFd)
	unix.CloseOnExec(wire.ReadyFd)
	s := &shim{dir: dir, log: log, created: time.Now(), changed: make(chan struct{}), starting: map[string]chan struct{}{}}
	listener, err := s.setup()
	if err != nil {
		log.Error("shim does not start", "err", err)
		fmt.Fprint(ready, err)
		return 1
	}
	fmt.Fprint(ready, "ok")
	_ = ready.Close()
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			if s.isClosing() {
				// The handler of the shutdown answers, then ends the process.
				select {}
			}
			log.Error("accept", "err", err)
			return 1
		}
		go s.handle(conn, listener)
	}
}

func (s *shim) setup() (*net.UnixListener, error) {
	if err := wire.ReadFile(filepath.Join(s.dir, wire.ConfigFile), &s.cfg); err != nil {
		return nil, err
	}
	// The mount table is a copy of the machine's; nothing done to it may travel back.
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return nil, fmt.Errorf("make mounts of the sandbox private: %w", err)
	}
	if s.cfg.Hostname != "" {
		if err := unix.Sethostname([]byte(s.cfg.Hostname)); err != nil {
			return nil, fmt.Errorf("set host name %q: %w", s.cfg.Hostname, err)
		}
	}
	var err error
	if s.users, err = openUsers(s.cfg); err != nil {
		return nil, err
	}
	if err := s.makeShm(); err != nil {
		return nil, err
	}
	if err := setSysctls(s.cfg.NetNS, s.cfg.Sysctls); err != nil {
		return nil, err
	}
	s.facts = readFacts()
	if err := s.makeSandboxCgroup(); err != nil {
		return nil, err
	}
	if err := s.save(); err != nil {
		return nil, err
	}
	dir, err := os.Open(s.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	listener, err := net.ListenUnix("unix", wire.SocketAddr(dir))
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", s.dir, err)
	}
	listener.SetUnlinkOnClose(false)
	return listener, nil
}

// shmDir is the /dev/shm of the containers.
func (s *shim) shmDir() string {
	if s.cfg.HostIPC {
		return "/dev/shm"
	}
	return filepath.Join(s.dir, "shm")
}

func (s *shim) makeShm() error {
	if s.cfg.HostIPC {
		return nil
	}
	if err := os.MkdirAll(s.shmDir(), 0o755); err != nil {
		return err
	}
	if err := unix.Mount("shm", s.shmDir(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, fmt.Sprintf("mode=1777,size=65536k,uid=%d,gid=%d", s.users.base, s.users.base)); err != nil {
		return fmt.Errorf("mount /dev/shm of the sandbox: %w", err)
	}
	if !s.users.private() {
		return nil
	}
	if err := os.MkdirAll(s.mqueueDir(), 0o755); err != nil {
		return err
	}
	if err := unix.Mount("mqueue", s.mqueueDir(), "mqueue", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /dev/mqueue of the sandbox: %w", err)
	}
	return nil
}

// mqueueDir is the /dev/mqueue of containers that cannot mount it, since the IPC
// namespace is not of their user namespace; "" where they can.
func (s *shim) mqueueDir() string {
	if !s.users.private() {
		return ""
	}
	return filepath.Join(s.dir, "mqueue")
}

func (s *shim) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// handle answers one connection. Its context ends when the other side goes away.
func (s *shim) handle(conn *net.UnixConn, listener *net.UnixListener) {
	defer conn.Close()
	var req wire.Request
	files, err := wire.Receive(conn, &req)
	if err != nil {
		if !errors.Is(err, io.EOF) {
			s.log.Warn("request", "err", err)
		}
		return
	}
	defer wire.CloseAll(files)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = conn.Read(make([]byte, 1))
		cancel()
	}()
	switch req.Op {
	case wire.OpWatch:
		s.watch(ctx, conn)
		return
	case wire.OpExec:
		s.exec(ctx, conn, req, files)
		return
	case wire.OpAttach:
		s.attach(ctx, conn, req, files)
		return
	case wire.OpStart:
		err = s.start(req.Config, files)
	case wire.OpStop:
		err = s.stop(ctx, req.Container, unix.Signal(req.Signal), time.Duration(req.GraceMS)*time.Millisecond)
	case wire.OpRemove:
		err = s.remove(req.Container)
	case wire.OpUpdate:
		err = s.update(req.Container, *req.Resources)
	case wire.OpShutdown:
		s.shutdown()
		_ = listener.Close()
		_ = wire.Send(conn, wire.Reply{})
		os.Exit(0)
	default:
		err = fmt.Errorf("the shim of sandbox %s does not know %q: it was started by another version of gitk8s", s.cfg.ID, req.Op)
	}
	reply := s.snapshot()
	reply.Error = wire.FromError(err)
	if err := wire.Send(conn, reply); err != nil && ctx.Err() == nil {
		s.log.Warn("reply", "op", req.Op, "err", err)
	}
}

// watch sends the whole state now and after each change: a worker that comes back
// after a crash needs no history.
func (s *shim) watch(ctx context.Context, conn *net.UnixConn) {
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if err := wire.Send(conn, s.snapshot()); err != nil {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (s *shim) snapshot() wire.Reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	return wire.Reply{Seq: s.seq, State: s.status()}
}

// status is called with mu held.
func (s *shim) status() *container.SandboxStatus {
	st := &container.SandboxStatus{Config: s.cfg, CreatedAt: s.created}
	for _, p := range s.containers {
		st.Containers = append(st.Containers, p.status)
	}
	return st
}

// change applies fn, writes the state to disk and only then tells the watchers.
func (s *shim) change(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
	s.seq++
	if err := wire.WriteFileAtomic(filepath.Join(s.dir, wire.StateFile), s.status()); err != nil {
		s.log.Error("save state", "err", err)
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *shim) save() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return wire.WriteFileAtomic(filepath.Join(s.dir, wire.StateFile), s.status())
}

// find returns nil for a container that is not known.
func (s *shim) find(id string) *proc {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.containers, func(p *proc) bool { return p.cfg.ID == id })
	if i < 0 {
		return nil
	}
	return s.containers[i]
}

// stop returns when the container's process has ended or ctx is done.
func (s *shim) stop(ctx context.Context, id string, sig unix.Signal, grace time.Duration) error {
	p := s.find(id)
	if p == nil || p.ended() {
		return nil
	}
	if grace > 0 && sig != unix.SIGKILL {
		p.signal(sig)
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-p.done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
	}
	p.signal(unix.SIGKILL)
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// remove forgets an ended container and its writable layer.
func (s *shim) remove(id string) error {
	p := s.find(id)
	if p == nil {
		return nil
	}
	if !p.ended() {
		return fmt.Errorf("container %s still runs: stop it first", id)
	}
	if err := removeRootfs(s.containerDir(id)); err != nil {
		return err
	}
	s.users.forget(id)
	s.change(func() {
		s.containers = slices.DeleteFunc(s.containers, func(q *proc) bool { return q == p })
	})
	return nil
}

func (s *shim) update(id string, r container.Resources) error {
	p := s.find(id)
	if !hasCgroups(s.cfg) {
		return nil // there are no limits to update
	}
	if p == nil || p.ended() || p.container == nil {
		return fmt.Errorf("update container %s: %w", id, container.ErrNotFound)
	}
	cfg := p.container.Config()
	cgroup := *cfg.Cgroups
	cgroup.Resources = cgroupResources(r, cgroup.Resources.Devices, s.facts)
	cfg.Cgroups = &cgroup
	if err := p.container.Set(cfg); err != nil {
		return fmt.Errorf("update limits of container %s: %w", id, err)
	}
	return nil
}

// shutdown ends everything. The mounts go with the shim's own mount namespace.
func (s *shim) shutdown() {
	s.mu.Lock()
	s.closing = true
	pending := make([]chan struct{}, 0, len(s.starting))
	for _, c := range s.starting {
		pending = append(pending, c)
	}
	s.mu.Unlock()
	for _, c := range pending {
		<-c
	}
	s.mu.Lock()
	procs := slices.Clone(s.containers)
	s.mu.Unlock()
	for _, p := range procs {
		p.signal(unix.SIGKILL)
	}
	for _, p := range procs {
		<-p.done
	}
	s.holder.stop()
}

func (s *shim) containerDir(id string) string { return filepath.Join(s.dir, wire.ContainersDir, id) }
