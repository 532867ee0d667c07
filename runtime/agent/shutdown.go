package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
)

// What is said of a pod that ends with its machine, in kubelet's words.
const (
	reasonShutdown  = "Terminated"
	messageShutdown = "Pod was terminated in response to imminent node shutdown."
)

// ShutdownPolicy says how long pods may take to end when the machine goes down
// (KEP-2000).
type ShutdownPolicy struct {
	// GracePeriod is the time for all pods; with 0 none is ended.
	GracePeriod time.Duration
	// CriticalPods is the part of it that is kept for critical pods, which end last.
	CriticalPods time.Duration
}

func (p *ShutdownPolicy) complete() error {
	switch {
	case p.GracePeriod < 0 || p.GracePeriod > 0 && p.GracePeriod < time.Second:
		return fmt.Errorf("agent: shutdownGracePeriod %v must be either zero or otherwise >= 1 sec", p.GracePeriod)
	case p.CriticalPods < 0 || p.CriticalPods > 0 && p.CriticalPods < time.Second:
		return fmt.Errorf("agent: shutdownGracePeriodCriticalPods %v must be either zero or otherwise >= 1 sec", p.CriticalPods)
	case p.CriticalPods > p.GracePeriod:
		return fmt.Errorf("agent: shutdownGracePeriod %v must be >= shutdownGracePeriodCriticalPods %v", p.GracePeriod, p.CriticalPods)
	}
	return nil
}

// Shutdown ends the pods of a machine that goes down: the node is not Ready and takes
// no more, ordinary pods end first and critical ones after them, each within its own
// grace period and the policy's. It returns when their ends are in the API, at the
// latest after the policy's time. Without a policy it does nothing. It works while Run
// runs.
func (a *Agent) Shutdown(ctx context.Context) error {
	policy := a.cfg.Shutdown
	if policy.GracePeriod == 0 {
		return nil
	}
	a.mu.Lock()
	running := a.running
	a.mu.Unlock()
	if !running {
		return errors.New("agent: Shutdown needs Run to be running")
	}
	a.shuttingDown.Store(true)
	a.nodeEvent(v1.EventTypeNormal, "Shutdown", "Shutdown manager detected shutdown event")
	told := make(chan struct{})
	go func() {
		defer close(told)
		if err := a.node.write(ctx); err != nil {
			a.log.Warn("tell that the node is shutting down", "error", err)
		}
	}()
	end := time.Now().Add(policy.GracePeriod)
	ordinary, cancel := context.WithDeadline(ctx, end.Add(-policy.CriticalPods))
	defer cancel()
	left := a.endPods(ordinary, false, policy.GracePeriod-policy.CriticalPods)
	all, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	left += a.endPods(all, true, policy.CriticalPods)
	select {
	case <-told:
	case <-all.Done():
	}
	if left > 0 {
		return fmt.Errorf("agent: %d pods had not ended when their time was over", left)
	}
	return nil
}

// endPods ends either the critical or the other pods, and returns how many of them
// have not ended when ctx does.
func (a *Agent) endPods(ctx context.Context, ofCritical bool, grace time.Duration) (left int) {
	var ending []*worker
	a.eachWorker(func(w *worker) {
		if w.lastToEnd == ofCritical {
			ending = append(ending, w)
		}
	})
	for _, w := range ending {
		w.post(func() { w.shutDown(grace) })
	}
	for _, w := range ending {
		if !w.awaitEnd(ctx) {
			left++
		}
	}
	return left
}

// shutDown ends the pod within so much time. One that is ending already has no more.
func (w *worker) shutDown(grace time.Duration) {
	w.s.graceLimit = &grace
	if w.s.ending() {
		return
	}
	w.s.failure = &podFailure{Reason: reasonShutdown, Message: messageShutdown}
	w.s.terminal, w.s.endStart = v1.PodFailed, w.a.cfg.Now()
}

// awaitEnd waits until the pod has ended and the API knows, and says whether it has.
func (w *worker) awaitEnd(ctx context.Context) bool {
	for {
		changed := w.changed.next()
		if v := w.view.Load(); v != nil && (v.status.Phase == v1.PodFailed || v.status.Phase == v1.PodSucceeded) {
			break
		}
		select {
		case <-changed:
		case <-w.done:
			return true
		case <-ctx.Done():
			return false
		}
	}
	for {
		quiet, next := w.status.quiet()
		if quiet {
			return true
		}
		select {
		case <-next:
		case <-w.done:
			return true
		case <-ctx.Done():
			return false
		}
	}
}
