package agent

import (
	"errors"
	"net/netip"
	"sync"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
)

// fakePolicies knows the pods by name, and what ran when they were told of.
type fakePolicies struct {
	rt *fakeRuntime

	mu            sync.Mutex
	fail          error
	known         map[types.UID]string
	starts, early int
	runs          []string
}

func (f *fakePolicies) Starts(pod *v1.Pod, ips []netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.starts++
	if f.rt.count() > 0 {
		f.early++
	}
	if f.fail == nil && len(ips) > 0 {
		f.known[pod.UID] = pod.Name
	}
	return f.fail
}

func (f *fakePolicies) Runs(pod *v1.Pod, ips []netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.runs = append(f.runs, pod.Name+" "+ips[0].String())
	f.known[pod.UID] = pod.Name
}

func (f *fakePolicies) Ends(uid types.UID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.known, uid)
}

func (f *fakePolicies) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

func (f *fakePolicies) counts() (known, starts int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.known), f.starts
}

// TestPoliciesComeFirst: nothing of a pod runs before its policies are enforced, and a
// later agent tells of the pods that it found.
func TestPoliciesComeFirst(t *testing.T) {
	rt := newFakeRuntime()
	n := newTestNode(t, apiservertest.StartWith(t, nil), "node-p", rt, &fakePuller{config: defaultImage}, &fakeNetwork{})
	p := &fakePolicies{rt: rt, known: map[types.UID]string{}, fail: errors.New("no room in the kernel")}
	n.cfg.Policies = p
	n.ready()
	ns := n.namespace("policies")
	n.pod(ns, "web", nil)
	n.told(ns, v1.EventTypeWarning, "FailedCreatePodSandBox", "no room in the kernel")
	if rt.count() > 0 {
		t.Error("it runs without its policies")
	}
	p.set(nil)
	web := n.untilReady(ns, "web")
	if p.early > 0 {
		t.Error("it ran before its policies were enforced")
	}

	_, before := p.counts()
	n.pod(ns, "host", func(p *v1.Pod) { p.Spec.HostNetwork = true })
	n.untilReady(ns, "host")
	if known, starts := p.counts(); known != 1 || starts != before {
		t.Errorf("pods of the node's network are told of: %d %d", known, starts)
	}

	n.stop()
	n.ready()
	eventually(t, "the pod is told of by the next agent", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.runs) == 1 && p.runs[0] == "web "+web.Status.PodIP
	})
	if _, starts := p.counts(); starts != before {
		t.Error("a pod that runs was started again")
	}
	n.deletePod(ns, "web", 0)
	n.until(ns, "web", "gone", gone)
	eventually(t, "the pod is forgotten", func() bool { known, _ := p.counts(); return known == 0 })
}
