package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/runtime/container"
	"gitk8s.dev/gitk8s/runtime/probe"
	"gitk8s.dev/gitk8s/runtime/volume"
)

// Agent runs the pods of one node.
type Agent struct {
	cfg Config
	log *slog.Logger

	// Set by Run before any worker exists.
	ctx      context.Context
	recorder record.EventRecorder
	objects  *objectCache
	tokens   *tokenCache
	services *serviceCache
	volumes  *volume.Manager
	keeper   *volumeKeeper
	prober   *probe.Scheduler
	node     *nodeState
	meter    usageMeter
	static   *staticPods

	stopSignals sync.Map // image → signal
	images      imageUse
	pressure    pressureState
	// shuttingDown: the machine goes down.
	shuttingDown atomic.Bool

	mu      sync.Mutex
	workers map[string]*worker
	found   map[string]container.SandboxStatus
	// early are the events of found sandboxes that came before their pods.
	early    map[string][]container.Event
	running  bool
	synced   bool
	draining bool
	// firstList is closed when the pods of the node are known.
	firstList chan struct{}
	// idle is closed when draining and no worker is left.
	idle chan struct{}
}

// New returns an agent that does nothing until Run.
func New(cfg Config) (*Agent, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	capacity, err := detectCapacity(cfg.Capacity, cfg.DataDir, cfg.MaxPods)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		cfg: cfg, log: cfg.Logger.With("node", cfg.NodeName),
		services: newServiceCache(), workers: map[string]*worker{},
		firstList: make(chan struct{}), idle: make(chan struct{}),
	}
	a.node = newNodeState(a, capacity)
	return a, nil
}

func (a *Agent) allocatable() v1.ResourceList { return a.node.allocatable }

// networkReady says whether pods may be given a network.
func (a *Agent) networkReady() bool { return a.node.networkReady() }

// Run runs the node until ctx ends. It leaves containers running: a later agent
// with the same DataDir and Runtime goes on where this one stopped.
func (a *Agent) Run(ctx context.Context) error {
	for _, dir := range []string{a.podsDir(), a.logsDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("agent: make %s: %w", dir, err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.ctx = ctx
	sandboxes, err := a.cfg.Runtime.List(ctx)
	if err != nil {
		return fmt.Errorf("agent: list what runs on this machine: %w", err)
	}
	a.found, a.early = make(map[string]container.SandboxStatus, len(sandboxes)), map[string][]container.Event{}
	for _, s := range sandboxes {
		a.found[s.Config.ID] = s
	}
	recorder, broadcaster := newRecorder(ctx, a.cfg.Client, a.cfg.NodeName)
	defer broadcaster.Shutdown()
	a.recorder = recorder
	a.objects = newObjectCache(ctx, a.cfg.Client)
	a.tokens = newTokenCache(a)
	a.volumes = volume.NewManager(a.podsDir(), a.localDir(), volumeSources{a.objects, a.tokens, a}, a.allocatable)
	a.keeper = newVolumeKeeper(a)
	a.prober = probe.NewScheduler(ctx, probe.Once)
	a.observePressure(readSignals) // before a pod is taken in
	a.mu.Lock()
	a.running = true
	a.mu.Unlock()
	a.static = newStaticPods(a)
	a.static.scan() // before the API is asked, which may be away

	collects, evicts := a.cfg.ImageStore != nil, len(a.cfg.EvictionHard) > 0
	var wg sync.WaitGroup
	serveErr := make(chan error, 1)
	wg.Go(func() {
		if err := a.serve(ctx); err != nil {
			serveErr <- err
			cancel()
		}
	})
	wg.Go(func() { a.followEvents(ctx) })
	wg.Go(func() { a.node.run(ctx) })
	wg.Go(func() { a.renewLease(ctx) })
	wg.Go(func() { a.followServices(ctx) })
	wg.Go(func() { a.followPods(ctx) })
	wg.Go(func() { a.sweep(ctx) })
	wg.Go(func() { a.keeper.run(ctx) })
	wg.Go(func() { a.rotateTokens(ctx) })
	wg.Go(func() { a.watchStorage(ctx) })
	wg.Go(func() { a.static.keepMirrors(ctx) })
	if a.cfg.StaticPods.Dir != "" {
		wg.Go(func() { a.static.dir.watchDir(ctx, a.static.scan) })
	}
	if evicts {
		wg.Go(func() { a.watchPressure(ctx) })
	}
	if collects {
		wg.Go(func() { a.runImageGC(ctx) })
	}
	wg.Wait()

	a.mu.Lock()
	a.running = false
	workers := make([]*worker, 0, len(a.workers))
	for _, w := range a.workers {
		workers = append(workers, w)
	}
	a.mu.Unlock()
	for _, w := range workers {
		<-w.done
		w.ops.Wait()
	}
	select {
	case err := <-serveErr:
		return err
	default:
		return nil
	}
}

// StopAll stops every pod of the node gracefully, each within its own grace period,
// and removes sandboxes, volumes, networks and logs. The pods' objects stay as they
// are, so that a later agent starts them again. It works while Run runs, and
// returns when nothing is left or ctx ends.
func (a *Agent) StopAll(ctx context.Context) error {
	a.mu.Lock()
	if !a.running {
		a.mu.Unlock()
		return fmt.Errorf("agent: StopAll needs Run to be running")
	}
	a.draining = true
	for _, w := range a.workers {
		w.drain()
	}
	a.checkIdle()
	a.mu.Unlock()
	select {
	case <-a.idle:
		return nil
	case <-ctx.Done():
		a.mu.Lock()
		left := len(a.workers)
		a.mu.Unlock()
		return fmt.Errorf("agent: %d pods still stopping: %w", left, ctx.Err())
	}
}

// checkIdle closes idle when draining is complete. The caller holds mu.
func (a *Agent) checkIdle() {
	if !a.draining || len(a.workers) > 0 || !a.synced && len(a.found) > 0 {
		return
	}
	select {
	case <-a.idle:
	default:
		close(a.idle)
	}
}

func (a *Agent) removeWorker(w *worker) {
	a.mu.Lock()
	if a.workers[w.uid] == w {
		delete(a.workers, w.uid)
	}
	a.checkIdle()
	a.mu.Unlock()
	if w.static {
		a.static.ended(w)
	}
}

// worker returns the pod's worker, or nil.
func (a *Agent) worker(uid string) *worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.workers[uid]
}

// workerByName returns the worker of the pod that has this name now.
func (a *Agent) workerByName(namespace, name string) *worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	var found *worker
	for _, w := range a.workers {
		if w.namespace == namespace && w.name == name && (found == nil || w.created.After(found.created)) {
			found = w
		}
	}
	return found
}

func (a *Agent) eachWorker(f func(*worker)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.workers {
		f(w)
	}
}

// followEvents hands the runtime's events to the workers.
func (a *Agent) followEvents(ctx context.Context) {
	events := a.cfg.Runtime.Events()
	for {
		select {
		case <-ctx.Done():
			return
		case ev := <-events:
			a.mu.Lock()
			w := a.workers[ev.SandboxID]
			if _, waits := a.found[ev.SandboxID]; w == nil && waits {
				// It ran when the runtime was asked, and its pod has not been heard of yet.
				a.early[ev.SandboxID] = append(a.early[ev.SandboxID], ev)
			}
			a.mu.Unlock()
			if w != nil {
				w.told(ev)
			}
		}
	}
}

// told passes on what the runtime says of the worker's sandbox.
func (w *worker) told(ev container.Event) {
	if ev.Container == nil {
		w.post(w.sandboxLost)
		return
	}
	st := *ev.Container
	w.post(func() { w.containerEnded(st) })
}

func (a *Agent) followServices(ctx context.Context) {
	api := a.cfg.Client.CoreV1().Services(metav1.NamespaceAll)
	follow(ctx, "services", &v1.Service{}, nil,
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return api.List(ctx, o) },
		func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return api.Watch(ctx, o) },
		a.services.sink(), nil)
}

func (a *Agent) followPods(ctx context.Context) {
	api := a.cfg.Client.CoreV1().Pods(metav1.NamespaceAll)
	selector := fields.OneTermEqualSelector("spec.nodeName", a.cfg.NodeName)
	follow(ctx, "pods", &v1.Pod{}, selector,
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return api.List(ctx, o) },
		func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return api.Watch(ctx, o) },
		sink{replace: a.replacePods, set: a.setPod, remove: a.removePod}, nil)
}

// replacePods takes a complete list: pods that are not in it are gone. The first
// one shows which sandboxes of an earlier agent have no pod any more.
func (a *Agent) replacePods(list []any) {
	seen := make(map[string]bool, len(list))
	var mirrors []*v1.Pod
	for _, obj := range list {
		pod := obj.(*v1.Pod)
		if isMirror(pod) {
			mirrors = append(mirrors, pod)
			continue
		}
		seen[string(pod.UID)] = true
		a.setPod(obj)
	}
	a.eachWorker(func(w *worker) {
		if !seen[w.uid] && !w.static {
			w.setGone()
		}
	})
	a.static.replaceMirrors(mirrors)
	a.mu.Lock()
	orphans := a.found
	first := !a.synced
	a.synced, a.found = true, nil
	a.mu.Unlock()
	if !first {
		return
	}
	for id, s := range orphans {
		a.adoptOrphan(id, s)
	}
	close(a.firstList)
	a.mu.Lock()
	a.checkIdle()
	a.mu.Unlock()
}

// setPod hands a pod to its worker, and makes one if there is none.
func (a *Agent) setPod(obj any) {
	pod := obj.(*v1.Pod)
	if isMirror(pod) {
		a.static.setMirror(pod)
		return
	}
	a.mu.Lock()
	w := a.workers[string(pod.UID)]
	if w != nil || a.draining && a.found[string(pod.UID)].Config.ID == "" {
		a.mu.Unlock()
		if w != nil {
			w.setPod(pod)
		}
		return
	}
	a.addWorker(pod)
	a.mu.Unlock()
}

// addWorker starts a worker for a pod. The caller holds mu.
func (a *Agent) addWorker(pod *v1.Pod) *worker {
	var found *container.SandboxStatus
	if s, ok := a.found[string(pod.UID)]; ok {
		found = &s
		delete(a.found, string(pod.UID))
	}
	w := newWorker(a, pod, found)
	w.s.draining = a.draining
	a.workers[w.uid] = w
	for _, ev := range a.early[w.uid] {
		w.told(ev)
	}
	delete(a.early, w.uid)
	go w.run()
	return w
}

func (a *Agent) removePod(obj any) {
	pod, ok := obj.(*v1.Pod)
	if !ok {
		return
	}
	if isMirror(pod) {
		a.static.removeMirror(pod)
	} else if w := a.worker(string(pod.UID)); w != nil {
		w.setGone()
	}
}

// adoptOrphan stops a sandbox whose pod is gone, by a worker for a pod that is
// already deleted.
func (a *Agent) adoptOrphan(id string, s container.SandboxStatus) {
	a.log.Info("removing the sandbox of a pod that is gone", "pod", s.Config.Namespace+"/"+s.Config.Name, "uid", id)
	pod := &v1.Pod{}
	pod.Namespace, pod.Name, pod.UID = s.Config.Namespace, s.Config.Name, types.UID(id)
	pod.Spec.NodeName = a.cfg.NodeName
	names := map[string]bool{}
	for _, c := range s.Containers {
		if name, _, ok := parseInstanceID(c.ID); ok && !names[name] {
			names[name] = true
			pod.Spec.Containers = append(pod.Spec.Containers, v1.Container{Name: name})
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.found == nil {
		a.found = map[string]container.SandboxStatus{}
	}
	a.found[id] = s
	w := a.addWorker(pod)
	w.setGone()
	a.found = nil
}

// sweep removes directories of pods that are neither in the API nor in the runtime,
// with their networks and what is mounted in them, once both pods and network are
// known.
func (a *Agent) sweep(ctx context.Context) {
	for _, known := range []<-chan struct{}{a.firstList, a.node.networkUp} {
		select {
		case <-known:
		case <-ctx.Done():
			return
		}
	}
	// Directories are listed before workers: a worker exists before its directory.
	logs, err := os.ReadDir(a.logsDir())
	if err != nil {
		a.log.Warn("list log directories", "error", err)
	}
	entries, err := os.ReadDir(a.podsDir())
	if err != nil {
		a.log.Warn("list pod directories", "error", err)
		return
	}
	for _, e := range entries {
		if a.worker(e.Name()) != nil {
			continue
		}
		if err := a.volumes.TearDown(e.Name()); err != nil {
			a.log.Warn("remove volumes of a pod that is gone", "uid", e.Name(), "error", err)
			continue
		}
		if err := a.cfg.Network.Teardown(ctx, e.Name()); err != nil {
			a.log.Warn("remove network of a pod that is gone", "uid", e.Name(), "error", err)
			continue
		}
		if err := os.RemoveAll(a.podDir(e.Name())); err != nil {
			a.log.Warn("remove directory of a pod that is gone", "uid", e.Name(), "error", err)
		}
	}
	known := map[string]bool{}
	a.eachWorker(func(w *worker) { known[w.logDirName] = true })
	for _, e := range logs {
		if !known[e.Name()] {
			os.RemoveAll(filepath.Join(a.logsDir(), e.Name()))
		}
	}
}

// setNetworkReady lets pods with a network of their own start.
func (a *Agent) setNetworkReady() {
	a.eachWorker(func(w *worker) { w.setNetworkReady() })
}

// prefixes parses podCIDRs.
func prefixes(cidrs []string) ([]netip.Prefix, error) {
	out := make([]netip.Prefix, 0, len(cidrs))
	for _, c := range cidrs {
		p, err := netip.ParsePrefix(c)
		if err != nil {
			return nil, fmt.Errorf("podCIDR %q: %w", c, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// notifier wakes everybody who waits.
type notifier struct {
	mu sync.Mutex
	ch chan struct{}
}

// next returns a channel that the next broadcast closes.
func (n *notifier) next() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch == nil {
		n.ch = make(chan struct{})
	}
	return n.ch
}

func (n *notifier) broadcast() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch != nil {
		close(n.ch)
		n.ch = nil
	}
}

// pause waits d or until ctx ends, and says whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
