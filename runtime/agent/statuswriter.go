package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// statusWriter brings a pod's status into the API. Only the newest status counts:
// while one write is on its way, later ones replace each other.
type statusWriter struct {
	w *worker

	mu     sync.Mutex
	want   *v1.PodStatus
	active bool
	// ended tells that active became false.
	ended notifier

	// io serialises the writes themselves; base is what the API has as far as known.
	io   sync.Mutex
	base *v1.Pod
	// mirror is what the API has of a static pod, and takes the place of base; nil
	// while it has none.
	mirror atomic.Pointer[v1.Pod]
}

func (sw *statusWriter) init(w *worker, pod *v1.Pod) {
	sw.w, sw.base = w, pod
}

// observe takes the object as the watch has it and, when its status is not the one
// wanted, writes again: a controller may have marked the pod while the node was
// out of reach.
func (sw *statusWriter) observe(pod *v1.Pod) {
	if !sw.io.TryLock() {
		return // the write under way will be seen by the watch as well
	}
	var old, fresh uint64
	fmt.Sscan(sw.base.ResourceVersion, &old)
	fmt.Sscan(pod.ResourceVersion, &fresh)
	if fresh >= old {
		sw.base = pod
	}
	sw.io.Unlock()
	sw.again()
}

// setMirror takes the mirror of a static pod as the API has it, nil when there is none.
func (sw *statusWriter) setMirror(pod *v1.Pod) {
	sw.mirror.Store(pod)
	sw.again()
}

// apiUID is the UID of the pod's object in the API.
func (w *worker) apiUID() string {
	if mirror := w.status.mirror.Load(); mirror != nil {
		return string(mirror.UID)
	}
	return w.uid
}

// again writes what is wanted if it is not what the API has.
func (sw *statusWriter) again() {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	if sw.want != nil {
		again := *sw.want
		sw.want = &again
		sw.kick()
	}
}

// set asks for status to be written.
func (sw *statusWriter) set(status v1.PodStatus) {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	if sw.want != nil && equality.Semantic.DeepEqual(*sw.want, status) {
		return
	}
	sw.want = &status
	sw.kick()
}

// quiet says that all that was set is written; if it is not, next is closed when to
// ask again.
func (sw *statusWriter) quiet() (quiet bool, next <-chan struct{}) {
	next = sw.ended.next()
	sw.mu.Lock()
	defer sw.mu.Unlock()
	return !sw.active, next
}

// kick starts the loop if it is not running. The caller holds mu.
func (sw *statusWriter) kick() {
	if !sw.active {
		sw.active = true
		sw.w.ops.Add(1)
		go sw.loop()
	}
}

func (sw *statusWriter) loop() {
	defer sw.w.ops.Done()
	pause := 50 * time.Millisecond
	var written *v1.PodStatus
	for {
		sw.mu.Lock()
		want := sw.want
		if want == written {
			sw.active = false
			sw.mu.Unlock()
			sw.ended.broadcast()
			return
		}
		sw.mu.Unlock()
		err := sw.write(sw.w.a.ctx, *want)
		if err == nil || isGone(err) && !apierrors.IsForbidden(err) {
			written, pause = want, 50*time.Millisecond
			continue
		}
		// Forbidden: the pod is gone, which the watch will tell, or the API server does
		// not know yet that it is bound to this node.
		if sw.w.ctx.Err() == nil && !apierrors.IsForbidden(err) {
			sw.w.log.Warn("write pod status", "error", err)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-sw.w.ctx.Done():
			t.Stop()
			sw.mu.Lock()
			sw.active = false
			sw.mu.Unlock()
			return
		}
		pause = min(2*pause, 10*time.Second)
	}
}

// write patches the status if it differs from what the API has.
func (sw *statusWriter) write(ctx context.Context, status v1.PodStatus) error {
	sw.io.Lock()
	defer sw.io.Unlock()
	base := sw.base
	if sw.w.static {
		if base = sw.mirror.Load(); base == nil {
			return nil // the mirror that comes will be told
		}
	}
	patch, err := statusPatch(base, status)
	if err != nil || patch == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	pod, err := sw.w.a.cfg.Client.CoreV1().Pods(base.Namespace).Patch(ctx, base.Name,
		types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		return err
	}
	if sw.w.static {
		sw.mirror.CompareAndSwap(base, pod)
	} else {
		sw.base = pod
	}
	return nil
}

// statusPatch is the patch that turns base's status into want, or nil if they
// agree. The UID in it makes the write fail on another pod of the same name.
// Conditions that others own stay as base has them.
func statusPatch(base *v1.Pod, want v1.PodStatus) ([]byte, error) {
	old := v1.Pod{Status: base.Status}
	fresh := v1.Pod{Status: *want.DeepCopy()}
	fresh.Status.Conditions = mergeConditions(base.Status.Conditions, fresh.Status.Conditions)
	fresh.Status.NominatedNodeName = base.Status.NominatedNodeName
	if equality.Semantic.DeepEqual(old.Status, fresh.Status) {
		return nil, nil
	}
	oldJSON, err := json.Marshal(old)
	if err != nil {
		return nil, fmt.Errorf("encode old status: %w", err)
	}
	fresh.UID = base.UID
	freshJSON, err := json.Marshal(fresh)
	if err != nil {
		return nil, fmt.Errorf("encode new status: %w", err)
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(oldJSON, freshJSON, v1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("compute status patch: %w", err)
	}
	return patch, nil
}

// mergeConditions takes the node's own conditions from want and all others from
// base, in base's order, so that a mere order is never written.
func mergeConditions(base, want []v1.PodCondition) []v1.PodCondition {
	var out []v1.PodCondition
	for _, c := range base {
		if !isOwnCondition(c.Type) {
			out = append(out, c)
		} else if w := findCondition(want, c.Type); w != nil {
			out = append(out, *w)
		}
	}
	for _, c := range want {
		if (isOwnCondition(c.Type) || c.Type == v1.PodScheduled || c.Type == v1.DisruptionTarget) && findCondition(base, c.Type) == nil {
			out = append(out, c)
		}
	}
	return out
}

// computeStatus is the pod's status now.
func (w *worker) computeStatus(now time.Time) v1.PodStatus {
	last := w.s.pod.Status
	if v := w.view.Load(); v != nil && len(v.status.Conditions) > 0 {
		last = v.status
	}
	if w.s.startTime.IsZero() {
		w.s.startTime = now.Truncate(time.Second)
	}
	return buildStatus(w.s, last, w.a.cfg.NodeIPs, now)
}

// podView is what the HTTPS server may read of a pod.
type podView struct {
	pod    *v1.Pod
	status v1.PodStatus
	ip     string
	// runs by container name: the present or latest one and the one before.
	cur, prev map[string]instance
}

// container returns the container of that name, or nil.
func (v *podView) container(name string) *v1.Container {
	for _, c := range podContainers(v.pod) {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// publish computes the status, shows it to the server and writes it to the API.
func (w *worker) publish(now time.Time) {
	status := w.computeStatus(now)
	v := &podView{pod: w.s.pod, status: status, cur: map[string]instance{}, prev: map[string]instance{}}
	v.ip = firstIP(w.s.ips)
	for _, c := range w.s.ctrs {
		if c.cur != nil {
			v.cur[c.spec.Name] = *c.cur
		}
		if c.prev != nil {
			v.prev[c.spec.Name] = *c.prev
		}
	}
	if !w.s.draining && !w.s.gone {
		w.status.set(status) // before who sees the view asks whether it is written
	}
	w.view.Store(v)
	w.changed.broadcast()
}
