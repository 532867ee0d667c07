package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gitk8s.dev/gitk8s/runtime/container"
	"gitk8s.dev/gitk8s/runtime/probe"
)

const (
	// minimumGrace is left to a container for its signal even when the preStop hook
	// has used all of the grace ("Termination of Pods": a one-off extension of 2 s).
	minimumGrace = 2 * time.Second
	// drainTimeout bounds how long a pod is left alone until services lead nobody to it:
	// without the API they do for ever.
	drainTimeout = 2 * time.Second
	// opTimeout bounds what talks to the runtime and should be quick.
	opTimeout = 2 * time.Minute
)

// makeSandbox makes network, volumes and sandbox, or finds them.
func (w *worker) makeSandbox(ctx context.Context, pod *v1.Pod) func() {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	var volumes error
	var ips []netip.Addr
	// First of all the directory: by it a later agent finds what this one leaves.
	err := os.MkdirAll(w.a.podDir(w.uid), 0o750)
	if err == nil {
		var wg sync.WaitGroup
		wg.Go(func() { volumes = w.a.volumes.SetUp(ctx, pod) })
		ips, err = w.makeNetworkAndSandbox(ctx, pod)
		wg.Wait()
	}
	if ctx.Err() != nil && w.ctx.Err() != nil {
		return nil
	}
	switch {
	case err != nil:
		w.event(v1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: "+err.Error())
	case volumes != nil:
		w.event(v1.EventTypeWarning, "FailedMount", "MountVolume.SetUp failed for "+volumes.Error())
		err = volumes
	}
	return func() {
		s, now := w.s, w.a.cfg.Now()
		if s.sandbox != sandboxMaking {
			return // lost meanwhile
		}
		if len(ips) > 0 {
			s.ips = ips
		}
		if err != nil {
			s.sandbox = sandboxNone
			s.sandboxRetry = s.sandboxRetry.failed(now)
			s.sandboxWait = waiting{reasonCreating, err.Error(), now}
			return
		}
		s.sandbox, s.sandboxRetry, s.sandboxWait = sandboxReady, retry{}, waiting{}
		w.writeMeta()
		if fields := unsupported(pod); len(fields) > 0 {
			w.event(v1.EventTypeWarning, "Unsupported", "This node does not act on: "+strings.Join(fields, ", "))
		}
	}
}

// removeSandbox removes sandbox, volumes and network. again says that a new
// sandbox will follow, for which the volumes are kept.
func (w *worker) removeSandbox(ctx context.Context, again bool) func() {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	err := w.a.cfg.Runtime.RemoveSandbox(ctx, w.uid)
	if err == nil && !again {
		if err = w.a.volumes.TearDown(w.uid); err == nil {
			w.a.keeper.poke()
		}
	}
	if err == nil {
		if w.a.cfg.Policies != nil {
			w.a.cfg.Policies.Ends(types.UID(w.uid))
		}
		w.adopted = nil
		err = w.a.cfg.Network.Teardown(ctx, w.uid)
	}
	if w.ctx.Err() != nil {
		return nil
	}
	if err != nil {
		w.log.Warn("remove sandbox", "error", err)
		w.event(v1.EventTypeWarning, "FailedKillPod", "error killing pod: "+err.Error())
	}
	return func() {
		switch {
		case err != nil:
			w.s.sandbox = sandboxLost
			w.s.sandboxRetry = retry{Delay: time.Second, At: w.a.cfg.Now().Add(time.Second)}
		case again:
			w.s.sandbox = sandboxNone
		default:
			w.s.sandbox = sandboxRemoved
			w.s.sandboxRetry = retry{}
		}
	}
}

// deleteObject writes the last status and lets the object go, as nothing of the pod
// runs any more.
func (w *worker) deleteObject(ctx context.Context, pod *v1.Pod, status v1.PodStatus) func() {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	err := w.status.write(ctx, status)
	if err == nil || isGone(err) {
		zero := int64(0)
		err = w.a.cfg.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
			GracePeriodSeconds: &zero,
			Preconditions:      &metav1.Preconditions{UID: &pod.UID},
		})
	}
	if err == nil || isGone(err) && !apierrors.IsForbidden(err) || w.ctx.Err() != nil {
		return nil
	}
	if !apierrors.IsForbidden(err) {
		w.log.Warn("delete pod object", "error", err)
	}
	return func() {
		w.s.deleting = false
		w.s.sandboxRetry = retry{Delay: time.Second, At: w.a.cfg.Now().Add(time.Second)}
	}
}

// isGone says that the object of this UID is not there any more. A node is not told
// about objects that are not its own: also one that is gone is forbidden to it.
func isGone(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsForbidden(err)
}

// start begins a run of c.
func (w *worker) start(c *ctr, now time.Time) {
	c.starting = true
	c.stopping, c.kill = false, nil
	ctx, cancel := context.WithCancel(w.ctx)
	w.cancels[c] = cancel
	req := startRequest{pod: w.s.pod, spec: c.spec, kind: c.kind, attempt: c.nextAttempt(), ips: w.s.ips, crashed: c.crash.Delay > 0, target: c.target}
	if t := w.s.ctr(c.target); t != nil && t.running() {
		req.targetID = t.cur.ID
	}
	stale := ""
	if c.prev != nil {
		stale = c.prev.ID
	}
	w.async(func(context.Context) func() {
		res := w.startContainer(ctx, req)
		hookErr := error(nil)
		if res.err == nil && req.spec.Lifecycle != nil && req.spec.Lifecycle.PostStart != nil {
			w.post(func() { w.started(c, res) })
			hookErr = w.runHook(ctx, req.spec, res.id, firstIP(req.ips), req.spec.Lifecycle.PostStart)
		}
		if stale != "" && res.created {
			w.removeInstance(req.pod, req.spec.Name, stale)
		}
		return func() {
			cancel()
			delete(w.cancels, c)
			w.startDone(c, res, hookErr)
		}
	})
}

// started records a run that began.
func (w *worker) started(c *ctr, res startResult) {
	if c.cur != nil && c.cur.ID == res.id {
		return
	}
	now := w.a.cfg.Now()
	c.prev = c.cur
	c.cur = &instance{ID: res.id, Attempt: res.attempt, Running: true, StartedAt: now, Image: res.image, ImageID: res.imageID, User: res.user}
	c.wait, c.startRetry = waiting{}, retry{}
	if c.kind == mainCtr {
		w.s.mainStarted = true
	}
	for _, e := range w.s.ctrs {
		if e.target != "" && e.target == c.spec.Name {
			e.startRetry = retry{} // it waits for this one
		}
	}
	w.writeMeta()
	if st, ok := w.early[res.id]; ok {
		delete(w.early, res.id)
		w.finish(c, st, now)
	}
}

// startDone takes the result of an attempt to start.
func (w *worker) startDone(c *ctr, res startResult, hookErr error) {
	c.starting = false
	now := w.a.cfg.Now()
	switch {
	case res.err == nil:
		w.started(c, res)
		if !c.running() {
			return
		}
		if hookErr != nil {
			w.event(v1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed: "+hookErr.Error(), c.spec.Name)
			c.kill = &killOrder{"FailedPostStartHook", w.s.grace()}
			return
		}
		w.addProbes(c, false)
	case res.created:
		// The container exists and did not run: that counts as a run that failed.
		var se *container.StartError
		code, reason := 128, "StartError"
		if errors.As(res.err, &se) {
			code, reason = se.ExitCode, se.Reason
		}
		c.prev = c.cur
		c.cur = &instance{
			ID: res.id, Attempt: res.attempt, StartedAt: now, FinishedAt: now, ExitCode: code,
			Reason: reason, Message: res.err.Error(), Image: res.image, ImageID: res.imageID,
		}
		delete(w.early, res.id)
		w.delayRestart(c, now)
		if c.crash.Delay == 0 && c.restarts(w.s.pod.Spec.RestartPolicy, code) {
			c.wait = waiting{"RunContainerError", res.err.Error(), now}
		}
		w.writeMeta()
	default:
		if w.s.ending() {
			return
		}
		c.startRetry = c.startRetry.failed(now)
		c.wait = waiting{res.reason, res.err.Error(), now}
		if res.reason == reasonErrPull {
			w.event(v1.EventTypeNormal, "BackOff", fmt.Sprintf("Back-off pulling image %q", c.spec.Image), c.spec.Name)
			w.event(v1.EventTypeWarning, "Failed", "Error: "+reasonPullBackoff, c.spec.Name)
		}
	}
}

// stop ends c's present run: hook, signal, kill.
func (w *worker) stop(act action, now time.Time) {
	c := act.ctr
	again := c.stopping
	c.stopping = true
	c.stopBy = now.Add(act.grace + minimumGrace)
	if w.s.ending() {
		w.stopProbes(c, probe.Liveness, probe.Startup)
	} else {
		w.stopProbes(c)
	}
	if act.message != "" {
		w.event(v1.EventTypeNormal, "Killing", act.message, c.spec.Name)
	}
	spec, id, ip, image := c.spec, c.cur.ID, firstIP(w.s.ips), c.cur.Image
	pod, deleted := w.s.pod.UID, w.s.pod.DeletionTimestamp != nil
	w.async(func(ctx context.Context) func() {
		begin := time.Now()
		if !again && act.grace > 0 && spec.Lifecycle != nil && spec.Lifecycle.PreStop != nil {
			hctx, cancel := context.WithTimeout(ctx, act.grace)
			if err := w.runHook(hctx, spec, id, ip, spec.Lifecycle.PreStop); err != nil && ctx.Err() == nil {
				w.event(v1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed: "+err.Error(), spec.Name)
			}
			cancel()
		}
		if deleted && !again && act.grace > 0 && w.a.cfg.Drained != nil {
			dctx, cancel := context.WithTimeout(ctx, min(drainTimeout, act.grace))
			w.a.cfg.Drained(dctx, pod)
			cancel()
		}
		if ctx.Err() != nil {
			return nil // the agent ends, and its hook and waiting with it: the next one stops it in order
		}
		left := max(act.grace-time.Since(begin), minimumGrace)
		err := w.a.cfg.Runtime.StopContainer(ctx, w.uid, id, w.a.stopSignal(spec, image), left)
		if err == nil || w.ctx.Err() != nil {
			return nil // the runtime's event tells the rest
		}
		w.log.Warn("stop container", "container", id, "error", err)
		return func() {
			if c.cur != nil && c.cur.ID == id && c.running() {
				c.stopping = false
			}
		}
	})
}

// runHook runs a lifecycle handler of a container.
// firstIP is where probes and hooks reach a pod; empty without an address.
func firstIP(ips []netip.Addr) string {
	if len(ips) == 0 {
		return ""
	}
	return ips[0].String()
}

func (w *worker) runHook(ctx context.Context, spec *v1.Container, id string, ip string, h *v1.LifecycleHandler) error {
	switch {
	case h.Exec != nil:
		code, out, err := w.exec(ctx, id, h.Exec.Command)
		if err != nil {
			return err
		}
		if code != 0 {
			return fmt.Errorf("command %q exited with %d: %s", h.Exec.Command, code, out)
		}
		return nil
	case h.HTTPGet != nil:
		return httpHook(ctx, h.HTTPGet, ip, spec.Ports)
	case h.Sleep != nil:
		t := time.NewTimer(time.Duration(h.Sleep.Seconds) * time.Second)
		defer t.Stop()
		select {
		case <-t.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errors.New("invalid handler: exec, httpGet or sleep must be set")
}

// removeInstance removes a run that nobody can ask about any more, with its log.
func (w *worker) removeInstance(pod *v1.Pod, name, id string) {
	ctx, cancel := context.WithTimeout(w.ctx, opTimeout)
	defer cancel()
	if err := w.a.cfg.Runtime.RemoveContainer(ctx, w.uid, id); err != nil && ctx.Err() == nil {
		w.log.Warn("remove container", "container", id, "error", err)
	}
	_, attempt, _ := parseInstanceID(id)
	removeLogs(w.a.logPath(pod, name, attempt))
	os.Remove(w.a.messagePath(w.uid, name, attempt))
}

// forget removes the last traces of a pod and ends its worker.
func (w *worker) forget() {
	w.forgotten = true
	w.a.objects.release(w.uid)
	w.a.tokens.forget(w.uid)
	for _, dir := range []string{w.a.podDir(w.uid), w.a.podLogDir(w.s.pod)} {
		if err := os.RemoveAll(dir); err != nil {
			w.log.Warn("remove pod's directory", "error", err)
		}
	}
	w.a.removeWorker(w)
}
