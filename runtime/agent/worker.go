package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/runtime/container"
)

// worker runs one pod. Its loop alone touches s; everybody else posts.
type worker struct {
	a               *Agent
	uid             string
	namespace, name string
	logDirName      string
	created         time.Time
	critical        bool
	// static: the pod is of a file, and its object in the API a mirror.
	static bool
	// lastToEnd: when the machine goes down the pod ends with the critical ones.
	lastToEnd bool
	// adopted are the addresses of a pod that an earlier agent started, until its network
	// is removed.
	adopted []netip.Addr
	log     *slog.Logger
	// lists says by container name which field of the spec the container is in.
	lists sync.Map

	ctx    context.Context
	cancel context.CancelFunc
	ops    sync.WaitGroup
	// done is closed when the pod is forgotten or the worker has ended.
	done chan struct{}

	mu    sync.Mutex
	inbox []func()
	wake  chan struct{}

	s *podState
	// cancels end the start of a container that is under way.
	cancels map[*ctr]context.CancelFunc
	// probes end the probes of a container's present run.
	probes map[*ctr][]probeStop
	// early holds ends of runs whose start has not been recorded yet.
	early map[string]container.ContainerStatus
	// forgotten ends the loop.
	forgotten bool

	status statusWriter
	view   atomic.Pointer[podView]
	// changed tells of each new view.
	changed notifier
}

func newWorker(a *Agent, pod *v1.Pod, found *container.SandboxStatus) *worker {
	ctx, cancel := context.WithCancel(a.ctx)
	w := &worker{
		a: a, uid: string(pod.UID), namespace: pod.Namespace, name: pod.Name,
		critical: critical(pod), static: isStatic(pod), lastToEnd: hasCriticalPriority(pod), ctx: ctx, cancel: cancel,
		log:     a.log.With("pod", pod.Namespace+"/"+pod.Name, "uid", pod.UID),
		done:    make(chan struct{}),
		wake:    make(chan struct{}, 1),
		s:       newPodState(pod),
		cancels: map[*ctr]context.CancelFunc{},
		probes:  map[*ctr][]probeStop{},
		early:   map[string]container.ContainerStatus{},
	}
	w.logDirName, w.created = filepath.Base(a.podLogDir(pod)), pod.CreationTimestamp.Time
	w.learnContainers()
	w.status.init(w, pod)
	w.s.networkReady = a.networkReady()
	meta := w.readMeta()
	if w.static && meta.Status != nil {
		pod.Status = *meta.Status
	}
	adopt(w.s, found, meta, a.cfg.Now())
	if found != nil {
		w.adopted = w.s.ips
	}
	return w
}

// learnContainers takes note of the pod's containers and of what they refer to.
func (w *worker) learnContainers() {
	for _, c := range w.s.ctrs {
		switch c.kind {
		case initCtr, sidecarCtr:
			w.lists.Store(c.spec.Name, "initContainers")
		case ephemeralCtr:
			w.lists.Store(c.spec.Name, "ephemeralContainers")
		}
	}
	w.a.objects.acquire(w.uid, references(w.s.pod), func() { w.post(w.configChanged) })
}

// post hands f to the loop. It never blocks.
func (w *worker) post(f func()) {
	w.mu.Lock()
	w.inbox = append(w.inbox, f)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *worker) take() []func() {
	w.mu.Lock()
	defer w.mu.Unlock()
	fs := w.inbox
	w.inbox = nil
	return fs
}

func (w *worker) run() {
	defer close(w.done)
	defer w.cancel()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for _, c := range w.s.ctrs {
		if c.running() {
			w.addProbes(c, true)
		}
	}
	for {
		for _, f := range w.take() {
			f()
		}
		next := w.step()
		if w.forgotten {
			return
		}
		timer.Reset(next)
		select {
		case <-w.ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		}
	}
}

// step asks for a plan, starts what it says and publishes the status. It returns
// how long nothing is to be done unless something happens.
func (w *worker) step() time.Duration {
	now := w.a.cfg.Now()
	if w.s.ending() && w.s.endStart.IsZero() {
		w.s.endStart = now
	}
	if w.s.ending() {
		for _, cancel := range w.cancels {
			cancel()
		}
	}
	w.s.pressure, w.s.shuttingDown = w.a.pressure.conditions(now), w.a.shuttingDown.Load()
	p := decide(w.s, now)
	if p.failure != nil || p.terminal != "" {
		w.s.failure, w.s.terminal = p.failure, p.terminal
		if p.failure != nil {
			w.s.terminal = v1.PodFailed
			kind := v1.EventTypeNormal
			if p.failure.Rejected {
				kind = v1.EventTypeWarning
			}
			w.event(kind, p.failure.Reason, p.failure.Message)
		}
		w.s.endStart = now
		if w.static {
			w.writeMeta()
		}
		p = decide(w.s, now)
	}
	for _, act := range p.actions {
		w.do(act, now)
		if w.forgotten {
			return 0
		}
	}
	w.publish(now)
	if p.wake.IsZero() {
		return time.Hour
	}
	return max(p.wake.Sub(now), time.Millisecond)
}

func (w *worker) do(act action, now time.Time) {
	switch act.verb {
	case makeSandbox:
		w.s.sandbox, w.s.admitted = sandboxMaking, true
		pod := w.s.pod
		w.async(func(ctx context.Context) func() { return w.makeSandbox(ctx, pod) })
	case startCtr:
		w.start(act.ctr, now)
	case stopCtr:
		w.stop(act, now)
	case removeSandbox:
		again := w.s.sandbox == sandboxLost && !w.s.ending()
		w.s.sandbox = sandboxRemoving
		w.async(func(ctx context.Context) func() { return w.removeSandbox(ctx, again) })
	case deleteObject:
		w.s.deleting = true
		pod := w.s.pod
		status := w.computeStatus(now)
		w.async(func(ctx context.Context) func() { return w.deleteObject(ctx, pod, status) })
	case forget:
		w.forget()
	}
}

// async runs op in the background and hands what it returns to the loop.
func (w *worker) async(op func(ctx context.Context) func()) {
	w.ops.Add(1)
	go func() {
		defer w.ops.Done()
		if f := op(w.ctx); f != nil {
			w.post(f)
		}
	}()
}

// setPod takes a newer version of the object from the watch.
func (w *worker) setPod(pod *v1.Pod) {
	w.post(func() {
		old := w.s.pod
		w.s.setPod(pod)
		if len(pod.Spec.EphemeralContainers) != len(old.Spec.EphemeralContainers) {
			w.learnContainers()
		}
		w.status.observe(pod)
		if !w.s.ending() && (pod.Status.Phase == v1.PodFailed || pod.Status.Phase == v1.PodSucceeded) {
			// Somebody else ended it: an eviction.
			w.s.terminal = pod.Status.Phase
			w.s.failure = &podFailure{Reason: pod.Status.Reason, Message: pod.Status.Message}
		}
		if !sameMeta(old, pod) && w.s.sandbox == sandboxReady {
			w.refreshVolumes()
		}
	})
}

func sameMeta(a, b *v1.Pod) bool {
	same := func(x, y map[string]string) bool {
		if len(x) != len(y) {
			return false
		}
		for k, v := range x {
			if w, ok := y[k]; !ok || v != w {
				return false
			}
		}
		return true
	}
	return same(a.Labels, b.Labels) && same(a.Annotations, b.Annotations)
}

// configChanged runs when a ConfigMap or Secret of the pod appeared or changed.
func (w *worker) configChanged() {
	w.s.sandboxRetry.At = time.Time{}
	for _, c := range w.s.ctrs {
		if c.wait.Reason == reasonConfigError || slices.Contains(pullReasons, c.wait.Reason) && len(w.s.pod.Spec.ImagePullSecrets) > 0 {
			c.startRetry = retry{}
		}
	}
	if w.s.sandbox == sandboxReady && !w.s.ending() {
		w.refreshVolumes()
	}
}

func (w *worker) refreshVolumes() {
	pod := w.s.pod
	w.async(func(ctx context.Context) func() {
		if err := w.a.volumes.Refresh(ctx, pod); err != nil && ctx.Err() == nil {
			w.event(v1.EventTypeWarning, "FailedMount", "Updating volumes failed: "+err.Error())
		}
		return nil
	})
}

// containerEnded takes the end of a run from the runtime.
func (w *worker) containerEnded(st container.ContainerStatus) {
	name, _, _ := parseInstanceID(st.ID)
	c := w.s.ctr(name)
	if c == nil {
		return
	}
	if c.cur == nil || c.cur.ID != st.ID {
		if c.starting {
			w.early[st.ID] = st
		}
		return
	}
	if c.cur.Running {
		w.finish(c, st, w.a.cfg.Now())
	}
}

// finish records the end of c's present run.
func (w *worker) finish(c *ctr, st container.ContainerStatus, now time.Time) {
	w.stopProbes(c)
	ended := *c.cur
	ended.Running = false
	ended.ExitCode = st.ExitCode
	ended.FinishedAt = st.FinishedAt
	if ended.FinishedAt.IsZero() {
		ended.FinishedAt = now
	}
	if !st.StartedAt.IsZero() {
		ended.StartedAt = st.StartedAt
	}
	ended.Reason = exitReason(st.ExitCode, st.OOMKilled)
	ended.Message = w.terminationMessage(c.spec, &ended)
	c.cur = &ended
	c.ready, c.started, c.kill, c.stopping = false, false, nil, false
	if c.kind == initCtr && ended.ExitCode == 0 {
		c.done = true
	}
	w.delayRestart(c, now)
	w.writeMeta()
}

// delayRestart sets the back-off after c's run has ended.
func (w *worker) delayRestart(c *ctr, now time.Time) {
	if w.s.ending() || c.done || !c.restarts(w.s.pod.Spec.RestartPolicy, c.cur.ExitCode) {
		return
	}
	ran := c.cur.FinishedAt.Sub(c.cur.StartedAt)
	c.crash = c.crash.crashed(ran, now, c.prev == nil && c.cur.Attempt == 0)
	if c.crash.Delay > 0 {
		c.wait = waiting{reasonCrashLoop, backoffMessage(c.crash.Delay, c.spec.Name, w.s.pod), now}
		w.event(v1.EventTypeWarning, "BackOff", "Back-off restarting failed container "+c.spec.Name+" in pod "+podText(w.s.pod), c.spec.Name)
	} else {
		c.wait = waiting{}
	}
}

// sandboxLost takes the death of the pod's shim: all its containers are gone.
func (w *worker) sandboxLost() {
	now := w.a.cfg.Now()
	if w.s.sandbox != sandboxReady && w.s.sandbox != sandboxMaking {
		return
	}
	for _, c := range w.s.ctrs {
		if c.running() {
			w.finish(c, container.ContainerStatus{ExitCode: 137, FinishedAt: now}, now)
		}
		c.done = false
	}
	w.s.mainStarted = false
	w.s.sandbox = sandboxLost
	if !w.s.ending() {
		w.event(v1.EventTypeNormal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
	}
}

func (w *worker) drain() {
	w.post(func() { w.s.draining = true })
}

func (w *worker) setGone() {
	w.post(func() { w.s.gone = true })
}

func (w *worker) setNetworkReady() {
	w.post(func() { w.s.networkReady = true })
}
