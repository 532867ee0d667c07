package follow

import (
	"context"
	"sync"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// elsewhere is how much later than here another node may have heard that a pod ends, and
// have it in its rules, if this one did not take longer itself: all may be as busy.
const elsewhere = 250 * time.Millisecond

// Drain knows the node's pods that services lead to. Its zero value knows none; its
// methods may be called at the same time.
//
// With Kubernetes a pod is told to end at the same time as the nodes are told to lead
// nobody to it any more (page "Pod Lifecycle", "Termination of Pods"), and who connects
// in between is refused. So those milliseconds are waited for here.
type Drain struct {
	mu      sync.Mutex
	led     map[types.UID]bool
	changed chan struct{} // closed with the next change; nil while nobody waits
}

// Wait returns when services lead nobody to a pod that is being deleted, on the other
// nodes neither as far as this one can tell, or when ctx ends. For a pod that none
// leads to that is at once.
func (d *Drain) Wait(ctx context.Context, pod types.UID) {
	if !d.leads(pod) {
		return
	}
	began := time.Now()
	for {
		changed := d.next()
		if !d.leads(pod) {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
	t := time.NewTimer(max(elsewhere, time.Since(began)))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (d *Drain) leads(pod types.UID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.led[pod]
}

func (d *Drain) next() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changed == nil {
		d.changed = make(chan struct{})
	}
	return d.changed
}

// applied takes the endpoints that the node's rules have now. One that ends is not
// among them, unless there is no other: then who connects has nowhere else to go.
func (d *Drain) applied(node string, endpointSlices []*discoveryv1.EndpointSlice) {
	led := map[types.UID]bool{}
	for _, s := range endpointSlices {
		for _, e := range s.Endpoints {
			c := e.Conditions
			if e.NodeName != nil && *e.NodeName == node && e.TargetRef != nil && (c.Ready == nil || *c.Ready) && (c.Terminating == nil || !*c.Terminating) {
				led[e.TargetRef.UID] = true
			}
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.led = led
	if d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}
