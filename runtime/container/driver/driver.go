// Package driver implements container.Runtime with one shim process for each
// sandbox. It runs in the worker and owns nothing but the connections to the
// shims: opened again on the same state directory it finds everything as it was.
package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/container"
	"gitk8s.dev/gitk8s/runtime/container/internal/wire"
)

// Config of a Driver.
type Config struct {
	// StateDir holds one directory a sandbox: the shim's socket and state, and the
	// writable layers. It must lie on a file system that overlayfs takes as upper
	// layer.
	StateDir string
	// Executable that imports the shim package, linked statically; empty means the
	// embedded gitk8s-shim, or the running one where the build embedded none.
	Executable string
	// Log is for what has no caller to go to; nil means slog.Default().
	Log *slog.Logger
}

// Driver runs sandboxes. It implements container.Runtime.
type Driver struct {
	cfg    Config
	log    *slog.Logger
	events chan container.Event
	queue  chan container.Event
	closed chan struct{}
	work   sync.WaitGroup

	mu        sync.Mutex
	sandboxes map[string]*sandbox
}

var _ container.Runtime = (*Driver)(nil)

var validID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// New opens the state directory and connects to the shims that run there.
// Sandboxes whose shim died meanwhile are cleaned up and reported as lost.
func New(cfg Config) (*Driver, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("container state: %w", err)
	}
	dir, err := filepath.EvalSymlinks(cfg.StateDir)
	if err == nil {
		dir, err = filepath.Abs(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("container state: %w", err)
	}
	cfg.StateDir = dir
	if cfg.Executable == "" {
		if cfg.Executable, err = shimExecutable(embedded, dir); err != nil {
			return nil, fmt.Errorf("container state: %w", err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("container state: %w", err)
	}
	d := &Driver{
		cfg:       cfg,
		log:       cfg.Log,
		events:    make(chan container.Event),
		queue:     make(chan container.Event),
		closed:    make(chan struct{}),
		sandboxes: map[string]*sandbox{},
	}
	d.work.Go(d.pump)
	var opening sync.WaitGroup
	for _, e := range entries {
		if !e.IsDir() || !validID.MatchString(e.Name()) {
			continue
		}
		sb := d.sandbox(e.Name())
		opening.Go(func() { sb.adopt() })
	}
	opening.Wait()
	return d, nil
}

// pump is an unbounded queue between the connections and the reader of events.
func (d *Driver) pump() {
	var waiting []container.Event
	for {
		var out chan container.Event
		var next container.Event
		if len(waiting) > 0 {
			out, next = d.events, waiting[0]
		}
		select {
		case e := <-d.queue:
			waiting = append(waiting, e)
		case out <- next:
			waiting = waiting[1:]
		case <-d.closed:
			return
		}
	}
}

func (d *Driver) emit(e container.Event) {
	select {
	case d.queue <- e:
	case <-d.closed:
	}
}

// Events implements container.Runtime.
func (d *Driver) Events() <-chan container.Event { return d.events }

// Close implements container.Runtime.
func (d *Driver) Close() error {
	d.mu.Lock()
	select {
	case <-d.closed:
		d.mu.Unlock()
		return nil
	default:
	}
	close(d.closed)
	sandboxes := make([]*sandbox, 0, len(d.sandboxes))
	for _, sb := range d.sandboxes {
		sandboxes = append(sandboxes, sb)
	}
	d.mu.Unlock()
	for _, sb := range sandboxes {
		sb.disconnect()
	}
	d.work.Wait()
	return nil
}

func (d *Driver) isClosed() bool {
	select {
	case <-d.closed:
		return true
	default:
		return false
	}
}

func (d *Driver) sandbox(id string) *sandbox {
	d.mu.Lock()
	defer d.mu.Unlock()
	sb := d.sandboxes[id]
	if sb == nil {
		sb = &sandbox{d: d, id: id, dir: filepath.Join(d.cfg.StateDir, id)}
		d.sandboxes[id] = sb
	}
	return sb
}

// running returns a sandbox that has a shim.
func (d *Driver) running(id string) (*sandbox, error) {
	d.mu.Lock()
	sb := d.sandboxes[id]
	d.mu.Unlock()
	if sb == nil || !sb.isUp() {
		return nil, fmt.Errorf("sandbox %s: %w", id, container.ErrNotFound)
	}
	return sb, nil
}

// List implements container.Runtime.
func (d *Driver) List(context.Context) ([]container.SandboxStatus, error) {
	d.mu.Lock()
	sandboxes := make([]*sandbox, 0, len(d.sandboxes))
	for _, sb := range d.sandboxes {
		sandboxes = append(sandboxes, sb)
	}
	d.mu.Unlock()
	var out []container.SandboxStatus
	for _, sb := range sandboxes {
		if st, ok := sb.state(); ok {
			out = append(out, st)
		}
	}
	slices.SortFunc(out, func(a, b container.SandboxStatus) int { return strings.Compare(a.Config.ID, b.Config.ID) })
	return out, nil
}

// Status implements container.Runtime.
func (d *Driver) Status(_ context.Context, sandboxID, id string) (container.ContainerStatus, error) {
	sb, err := d.running(sandboxID)
	if err != nil {
		return container.ContainerStatus{}, err
	}
	st, _ := sb.state()
	i := slices.IndexFunc(st.Containers, func(c container.ContainerStatus) bool { return c.ID == id })
	if i < 0 {
		return container.ContainerStatus{}, fmt.Errorf("container %s: %w", id, container.ErrNotFound)
	}
	return st.Containers[i], nil
}

// RunSandbox implements container.Runtime.
func (d *Driver) RunSandbox(ctx context.Context, cfg container.SandboxConfig) error {
	if !validID.MatchString(cfg.ID) {
		return fmt.Errorf("run sandbox: id %q is not of letters, digits, '-', '_', '.'", cfg.ID)
	}
	if d.isClosed() {
		return errors.New("run sandbox: the runtime is closed")
	}
	if err := d.sandbox(cfg.ID).run(ctx, cfg); err != nil {
		return fmt.Errorf("run sandbox %s of pod %s/%s: %w", cfg.ID, cfg.Namespace, cfg.Name, err)
	}
	return nil
}

// RemoveSandbox implements container.Runtime.
func (d *Driver) RemoveSandbox(ctx context.Context, id string) error {
	d.mu.Lock()
	sb := d.sandboxes[id]
	d.mu.Unlock()
	if sb == nil {
		return nil
	}
	if err := sb.remove(ctx); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", id, err)
	}
	d.mu.Lock()
	delete(d.sandboxes, id)
	d.mu.Unlock()
	return nil
}

// StartContainer implements container.Runtime.
func (d *Driver) StartContainer(ctx context.Context, sandboxID string, cfg container.ContainerConfig) error {
	if !validID.MatchString(cfg.ID) {
		return fmt.Errorf("start container: id %q is not of letters, digits, '-', '_', '.'", cfg.ID)
	}
	sb, err := d.running(sandboxID)
	if err != nil {
		return fmt.Errorf("start container %s: %w", cfg.ID, err)
	}
	mounts, err := openMounts(cfg.Mounts)
	defer wire.CloseAll(mounts)
	if err != nil {
		return &container.StartError{Reason: "CreateContainerError", ExitCode: 128, Err: err}
	}
	return sb.call(ctx, wire.Request{Op: wire.OpStart, Container: cfg.ID, Config: &cfg}, mounts...)
}

// openMounts clones the mounts here, in the machine's mount namespace.
func openMounts(mounts []container.Mount) ([]*os.File, error) {
	var files []*os.File
	for _, m := range mounts {
		source, err := filepath.EvalSymlinks(m.Source)
		if err != nil {
			return files, fmt.Errorf("mount for %s: %w", m.Target, err)
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return files, fmt.Errorf("mount %s for %s: %w", m.Source, m.Target, err)
		}
		files = append(files, os.NewFile(uintptr(fd), source))
	}
	return files, nil
}

// StopContainer implements container.Runtime.
func (d *Driver) StopContainer(ctx context.Context, sandboxID, id string, sig syscall.Signal, grace time.Duration) error {
	sb, err := d.running(sandboxID)
	if err != nil {
		return nil // lost with everything in it
	}
	return sb.callIfThere(ctx, wire.Request{Op: wire.OpStop, Container: id, Signal: int(sig), GraceMS: grace.Milliseconds()})
}

// RemoveContainer implements container.Runtime.
func (d *Driver) RemoveContainer(ctx context.Context, sandboxID, id string) error {
	sb, err := d.running(sandboxID)
	if err != nil {
		return nil
	}
	return sb.callIfThere(ctx, wire.Request{Op: wire.OpRemove, Container: id})
}

// WritableLayer implements container.Runtime.
func (d *Driver) WritableLayer(_ context.Context, sandboxID, id string) (string, error) {
	if !validID.MatchString(sandboxID) || !validID.MatchString(id) {
		return "", fmt.Errorf("writable layer of container %q in sandbox %q: not such names", id, sandboxID)
	}
	dir := filepath.Join(d.cfg.StateDir, sandboxID, wire.ContainersDir, id, wire.UpperDir)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return dir, nil
}

// UpdateResources implements container.Runtime.
func (d *Driver) UpdateResources(ctx context.Context, sandboxID, id string, r container.Resources) error {
	sb, err := d.running(sandboxID)
	if err != nil {
		return err
	}
	return sb.call(ctx, wire.Request{Op: wire.OpUpdate, Container: id, Resources: &r})
}
