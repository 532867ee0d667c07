package agent

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	imgv1 "github.com/google/go-containerregistry/pkg/v1"

	"gitk8s.dev/gitk8s/registry"
	"gitk8s.dev/gitk8s/runtime/container"
)

// fakeRuntime is a container.Runtime in memory, for faults that a real one does
// not produce on demand. Containers run until exit is called or they are stopped.
type fakeRuntime struct {
	mu        sync.Mutex
	sandboxes map[string]*fakeSandbox
	events    chan container.Event
	// startErr and sandboxErr, when they return an error, are what a start gives.
	startErr   func(id string) error
	sandboxErr func(id string) error
	// execResult answers Exec; nil means success.
	execResult func(id string, args []string) (int, string, error)
	// stopped records the signals and graces of stops, started the configurations.
	stopped []fakeStop
	started []container.ContainerConfig
	removed []string
	// listed, if set, is called when List has looked and before it returns.
	listed func()
	// stubborn containers end only by kill.
	stubborn bool
}

type fakeSandbox struct {
	cfg  container.SandboxConfig
	ctrs map[string]*container.ContainerStatus
}

type fakeStop struct {
	id     string
	signal syscall.Signal
	grace  time.Duration
}

func newFakeRuntime() *fakeRuntime {
	return &fakeRuntime{sandboxes: map[string]*fakeSandbox{}, events: make(chan container.Event, 1000)}
}

func (f *fakeRuntime) RunSandbox(_ context.Context, cfg container.SandboxConfig) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sandboxErr != nil {
		if err := f.sandboxErr(cfg.ID); err != nil {
			return err
		}
	}
	if f.sandboxes[cfg.ID] == nil {
		f.sandboxes[cfg.ID] = &fakeSandbox{cfg: cfg, ctrs: map[string]*container.ContainerStatus{}}
	}
	return nil
}

func (f *fakeRuntime) RemoveSandbox(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.sandboxes[id]; ok {
		f.removed = append(f.removed, id)
	}
	delete(f.sandboxes, id)
	return nil
}

func (f *fakeRuntime) List(context.Context) ([]container.SandboxStatus, error) {
	if f.listed != nil {
		defer f.listed()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []container.SandboxStatus
	for _, s := range f.sandboxes {
		st := container.SandboxStatus{Config: s.cfg}
		for _, c := range s.ctrs {
			st.Containers = append(st.Containers, *c)
		}
		out = append(out, st)
	}
	return out, nil
}

func (f *fakeRuntime) StartContainer(_ context.Context, sandbox string, cfg container.ContainerConfig) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.sandboxes[sandbox]
	if s == nil {
		return fmt.Errorf("sandbox %s: %w", sandbox, container.ErrNotFound)
	}
	f.started = append(f.started, cfg)
	st := &container.ContainerStatus{ID: cfg.ID, State: container.Running, StartedAt: time.Now(), Pid: 1}
	s.ctrs[cfg.ID] = st
	if f.startErr != nil {
		if err := f.startErr(cfg.ID); err != nil {
			st.State, st.ExitCode, st.Error = container.Exited, 128, err.Error()
			return err
		}
	}
	return nil
}

func (f *fakeRuntime) Status(_ context.Context, sandbox, id string) (container.ContainerStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.sandboxes[sandbox]; s != nil && s.ctrs[id] != nil {
		return *s.ctrs[id], nil
	}
	return container.ContainerStatus{}, container.ErrNotFound
}

// exit ends a container with a code.
func (f *fakeRuntime) exit(sandbox, id string, code int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.end(sandbox, id, code)
}

func (f *fakeRuntime) end(sandbox, id string, code int) {
	s := f.sandboxes[sandbox]
	if s == nil || s.ctrs[id] == nil || s.ctrs[id].State == container.Exited {
		return
	}
	c := s.ctrs[id]
	c.State, c.ExitCode, c.FinishedAt = container.Exited, code, time.Now()
	ended := *c
	f.events <- container.Event{SandboxID: sandbox, Container: &ended}
}

// lose ends a sandbox as the death of its shim does.
func (f *fakeRuntime) lose(sandbox string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.sandboxes, sandbox)
	f.events <- container.Event{SandboxID: sandbox}
}

func (f *fakeRuntime) StopContainer(ctx context.Context, sandbox, id string, sig syscall.Signal, grace time.Duration) error {
	f.mu.Lock()
	f.stopped = append(f.stopped, fakeStop{id, sig, grace})
	stubborn := f.stubborn
	f.mu.Unlock()
	code := 128 + int(sig)
	if stubborn {
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-t.C:
			code = 137
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	f.exit(sandbox, id, code)
	return nil
}

func (f *fakeRuntime) RemoveContainer(_ context.Context, sandbox, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.sandboxes[sandbox]; s != nil {
		delete(s.ctrs, id)
	}
	return nil
}

func (f *fakeRuntime) UpdateResources(context.Context, string, string, container.Resources) error {
	return nil
}

func (f *fakeRuntime) Exec(_ context.Context, _, id string, e container.ExecConfig) (int, error) {
	f.mu.Lock()
	result := f.execResult
	f.mu.Unlock()
	if result == nil {
		return 0, nil
	}
	code, out, err := result(id, e.Args)
	if e.Stdout != nil {
		io.WriteString(e.Stdout, out)
	}
	return code, err
}

func (f *fakeRuntime) Attach(context.Context, string, string, container.AttachConfig) error {
	return nil
}

func (f *fakeRuntime) WritableLayer(context.Context, string, string) (string, error) { return "", nil }

func (f *fakeRuntime) Stats(context.Context, string, string) (container.Stats, error) {
	return container.Stats{Time: time.Now()}, nil
}

func (f *fakeRuntime) Events() <-chan container.Event { return f.events }
func (f *fakeRuntime) Close() error                   { return nil }

// configs returns the configurations of the containers started so far.
func (f *fakeRuntime) configs(id string) []container.ContainerConfig {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []container.ContainerConfig
	for _, c := range f.started {
		if c.ID == id {
			out = append(out, c)
		}
	}
	return out
}

func (f *fakeRuntime) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.sandboxes)
}

// fakeNetwork gives addresses without making anything.
type fakeNetwork struct {
	mu   sync.Mutex
	ips  map[string]netip.Addr
	next byte
}

func (n *fakeNetwork) Setup(_ context.Context, uid, _, _ string, _ bool) (string, []netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ips == nil {
		n.ips = map[string]netip.Addr{}
	}
	if _, ok := n.ips[uid]; !ok {
		n.next++
		n.ips[uid] = netip.AddrFrom4([4]byte{127, 42, 0, n.next})
	}
	return "/proc/self/ns/net", []netip.Addr{n.ips[uid]}, nil
}

func (n *fakeNetwork) Teardown(_ context.Context, uid string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.ips, uid)
	return nil
}

func (n *fakeNetwork) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.ips)
}

// fakePuller has every image but those that fail says it has not.
type fakePuller struct {
	mu     sync.Mutex
	config imgv1.Config
	layers []string
	fail   func(ref string) error
	absent map[string]bool
	pulls  []string
}

func (p *fakePuller) Pull(_ context.Context, ref string, policy registry.PullPolicy, _ authn.Keychain) (*registry.Image, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pulls = append(p.pulls, string(policy)+" "+ref)
	if p.absent[ref] && policy == registry.Never {
		return nil, fmt.Errorf("image %s is not on this machine", ref)
	}
	if p.fail != nil {
		if err := p.fail(ref); err != nil {
			return nil, err
		}
	}
	return &registry.Image{
		Reference: ref, Repository: "registry.test/" + ref, Config: p.config, Layers: p.layers,
		Digest: "sha256:1111111111111111111111111111111111111111111111111111111111111111",
	}, nil
}
