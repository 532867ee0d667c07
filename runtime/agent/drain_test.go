package agent

import (
	"context"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
)

// TestDrained deletes pods to which services still lead: they are told to end when none
// does any more, or after a second, and at once where there is nothing to wait for.
func TestDrained(t *testing.T) {
	rt := newFakeRuntime()
	n := newTestNode(t, apiservertest.StartWith(t, nil), "node-d", rt, &fakePuller{config: defaultImage}, &fakeNetwork{})
	asked, left := make(chan types.UID, 10), make(chan struct{})
	n.cfg.Drained = func(ctx context.Context, pod types.UID) {
		asked <- pod
		select {
		case <-left:
		case <-ctx.Done():
		}
	}
	n.ready()
	ns := n.namespace("drain")
	stops := func() []fakeStop {
		rt.mu.Lock()
		defer rt.mu.Unlock()
		return rt.stopped
	}
	pod := func(name string) types.UID {
		n.pod(ns, name, func(p *v1.Pod) { p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](20) })
		return n.untilReady(ns, name).UID
	}

	uid := pod("led")
	n.deletePod(ns, "led", 20)
	if got := <-asked; got != uid {
		t.Errorf("asked for %s, want %s", got, uid)
	}
	if got := stops(); len(got) != 0 {
		t.Errorf("told to end while services lead to it: %v", got)
	}
	left <- struct{}{}
	n.until(ns, "led", "gone", gone)
	if got := stops(); len(got) != 1 || got[0].signal != syscall.SIGTERM || got[0].grace > 20*time.Second {
		t.Errorf("stops: %v", got)
	}

	pod("always")
	began := time.Now()
	n.deletePod(ns, "always", 20)
	n.until(ns, "always", "gone", gone)
	if took := time.Since(began); took < drainTimeout {
		t.Errorf("gone after %s, though services lead to it", took)
	}
	<-asked

	for name, end := range map[string]func(uid types.UID){
		"forced":  func(types.UID) { n.deletePod(ns, "forced", 0) },
		"crashed": func(uid types.UID) { rt.exit(string(uid), "main-0", 1) },
	} {
		uid := pod(name)
		end(uid)
		n.until(ns, name, "ended or started again", func(p *v1.Pod) bool {
			return gone(p) || p.Status.ContainerStatuses[0].RestartCount == 1
		})
	}
	if len(asked) != 0 {
		t.Errorf("asked for %s, which nobody waits for", <-asked)
	}

	// An agent that ends meanwhile leaves it to the next one.
	pod("later")
	told := len(stops())
	n.deletePod(ns, "later", 20)
	<-asked
	n.stop()
	if got := stops(); len(got) != told {
		t.Errorf("told to end by an agent that ends: %v", got[told:])
	}
}
