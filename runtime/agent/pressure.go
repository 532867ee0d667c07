package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

const (
	// pressureCheck is how often the node looks at what is left of memory and disk, as
	// kubelet does.
	pressureCheck = 10 * time.Second
	// evictionCleanup is how long an evicted pod may take to end before another one is
	// evicted.
	evictionCleanup = 30 * time.Second
)

// pressureState is what the node knows of its own shortages.
type pressureState struct {
	mu   sync.Mutex
	seen pressureSeen
	// last are the conditions at the last look.
	last []v1.NodeConditionType
	// evicted is the pod evicted last, at evictedAt; only the loop uses them.
	evicted   *worker
	evictedAt time.Time
}

// conditions are the conditions of the node now.
func (p *pressureState) conditions(now time.Time) []v1.NodeConditionType {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen.conditions(now)
}

// readSignals looks at memory and at the disk of a directory.
func readSignals(dir string) (observations, error) {
	free, err := memInfo("MemAvailable")
	if err != nil {
		return nil, err
	}
	total, err := memInfo("MemTotal")
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil, fmt.Errorf("ask for the space on %s: %w", dir, err)
	}
	out := observations{"memory.available": {free, total}}
	disk := observation{int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize}
	out["nodefs.available"], out["imagefs.available"] = disk, disk
	if st.Files > 0 { // some file systems do not number them
		inodes := observation{int64(st.Ffree), int64(st.Files)}
		out["nodefs.inodesFree"], out["imagefs.inodesFree"] = inodes, inodes
	}
	return out, nil
}

// watchPressure keeps the node from running out of memory and disk, for as long as
// ctx lives.
func (a *Agent) watchPressure(ctx context.Context) {
	select {
	case <-a.firstList: // before it, nobody knows what may be evicted
	case <-ctx.Done():
		return
	}
	for {
		a.checkPressure(ctx, readSignals)
		if !pause(ctx, pressureCheck) {
			return
		}
	}
}

// observePressure looks once, and returns what was seen and which thresholds are
// crossed.
func (a *Agent) observePressure(read func(dir string) (observations, error)) (observations, []EvictionThreshold) {
	if len(a.cfg.EvictionHard) == 0 {
		return nil, nil
	}
	seen, err := read(a.cfg.DataDir)
	if err != nil {
		a.log.Warn("look for pressure on the node", "error", err)
		return nil, nil
	}
	met := crossed(a.cfg.EvictionHard, seen)
	now := a.cfg.Now()
	p := &a.pressure
	p.mu.Lock()
	if p.seen == nil {
		p.seen = pressureSeen{}
	}
	p.seen.observe(met, now)
	fresh := p.seen.conditions(now)
	changed := !slices.Equal(p.last, fresh)
	p.last = fresh
	p.mu.Unlock()
	if changed {
		a.node.poke()
	}
	return seen, met
}

// checkPressure looks at the node and, where something is short, frees what nobody
// needs, then evicts one pod.
func (a *Agent) checkPressure(ctx context.Context, read func(dir string) (observations, error)) {
	seen, met := a.observePressure(read)
	if len(met) == 0 || a.stillEnding() {
		return
	}
	a.nodeEvent(v1.EventTypeWarning, "EvictionThresholdMet", "Attempting to reclaim "+string(met[0].resource()))
	if met[0].condition() == v1.NodeDiskPressure {
		a.freeDisk(ctx)
		if seen, met = a.observePressure(read); len(met) == 0 {
			return
		}
	}
	short := met[0]
	pods := a.evictables(ctx, short.resource())
	rankForEviction(pods, short.resource())
	if len(pods) == 0 {
		a.log.Warn("the node is short of something and has no pod to evict", "signal", short.Signal)
		return
	}
	first := &pods[0]
	why := evictionMessage(&short, seen[short.Signal], first)
	first.w.post(func() { first.w.evict(why) })
	a.pressure.evicted, a.pressure.evictedAt = first.w, a.cfg.Now()
}

// stillEnding says that what the pod evicted last used is not free yet.
func (a *Agent) stillEnding() bool {
	w := a.pressure.evicted
	if w == nil || a.cfg.Now().Sub(a.pressure.evictedAt) >= evictionCleanup {
		return false
	}
	select {
	case <-w.done:
		return false
	default:
	}
	v := w.view.Load()
	return v == nil || v.status.Phase != v1.PodFailed && v.status.Phase != v1.PodSucceeded
}

// evictables are the pods that may be evicted, measured.
func (a *Agent) evictables(ctx context.Context, res v1.ResourceName) []evictable {
	var workers []*worker
	a.eachWorker(func(w *worker) { workers = append(workers, w) })
	var out []evictable
	for _, w := range workers {
		v := w.view.Load()
		if v == nil || v.status.Phase == v1.PodFailed || v.status.Phase == v1.PodSucceeded || v.pod.DeletionTimestamp != nil || w.critical {
			continue
		}
		e := evictable{w: w, pod: v.pod, containers: map[string]int64{}}
		switch res {
		case v1.ResourceMemory:
			for name, in := range v.cur {
				if !in.Running {
					continue
				}
				st, err := a.cfg.Runtime.Stats(ctx, w.uid, in.ID)
				if err != nil {
					e.unknown = true
					continue
				}
				e.containers[name] = int64(st.MemoryWorkingSet)
				e.used += int64(st.MemoryWorkingSet)
			}
		case resourceInodes:
			e.used = a.measure(ctx, w, v).inodes
		default:
			use := a.measure(ctx, w, v)
			e.containers = use.containers
			for _, sizes := range []map[string]int64{use.volumes, use.containers} {
				for _, n := range sizes {
					e.used += n
				}
			}
		}
		out = append(out, e)
	}
	return out
}

// freeDisk removes what is left of containers that have ended, and the images that
// nothing uses ("Reclaiming node level resources").
func (a *Agent) freeDisk(ctx context.Context) {
	var workers []*worker
	a.eachWorker(func(w *worker) { workers = append(workers, w) })
	for _, w := range workers {
		done := make(chan struct{})
		w.post(func() { w.removeDead(done) })
		select {
		case <-done:
		case <-w.done:
		case <-ctx.Done():
			return
		}
	}
	if a.cfg.ImageStore == nil {
		return
	}
	for {
		found, err := a.removeOneImage(a.cfg.ImageStore, a.cfg.Now())
		if err != nil {
			a.log.Warn("remove unused images", "error", err)
		}
		if err != nil || found != removalDone {
			return
		}
	}
}

// removeDead removes layers and logs of runs that are over: those before the present
// one, and of a pod that is over all. It closes done when they are gone.
func (w *worker) removeDead(done chan<- struct{}) {
	type run struct{ name, id string }
	var dead []run
	for _, c := range w.s.ctrs {
		for _, in := range []*instance{c.prev, c.cur} {
			over := in != nil && !in.Running && (in == c.prev || w.s.sandbox == sandboxRemoved)
			if over && !in.Removed {
				in.Removed = true
				dead = append(dead, run{c.spec.Name, in.ID})
			}
		}
	}
	pod := w.s.pod
	w.async(func(context.Context) func() {
		for _, r := range dead {
			w.removeInstance(pod, r.name, r.id)
		}
		return func() {
			w.publish(w.a.cfg.Now()) // the images of these runs are free now
			close(done)
		}
	})
}
