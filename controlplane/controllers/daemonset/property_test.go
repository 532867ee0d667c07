package daemonset

import (
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
)

// cluster plays the API server, the scheduler and the workers: enough of them to
// run an update to its end without a server.
type cluster struct {
	ds    *appsv1.DaemonSet
	hash  string
	nodes []*corev1.Node
	pods  map[string]*corev1.Pod
	now   time.Time
	seq   int
}

func (c *cluster) snapshot() Snapshot {
	s := Snapshot{Set: c.ds, Hash: c.hash, Nodes: c.nodes, BackOff: map[string]time.Duration{}}
	for _, p := range c.pods {
		s.Pods = append(s.Pods, p)
	}
	return s
}

// view is the state as a decision sees it.
func (c *cluster) view() *decision {
	d := &decision{s: c.snapshot(), ds: c.ds, now: c.now}
	d.arrange()
	return d
}

func up(d *decision, p *place) bool {
	return slices.ContainsFunc(p.alive, func(pod *corev1.Pod) bool { return !ended(pod) && d.available(pod) })
}

// available counts the nodes that should run a pod and have one that is up.
func available(d *decision) (n int) {
	for _, p := range d.places {
		if p.run && up(d, p) {
			n++
		}
	}
	return n
}

// apply checks a decision against what the spec allows and carries it out.
func (c *cluster) apply(t *rapid.T, d Decision) {
	before := c.view()
	surge, unavailable := before.limits()
	have := available(before)
	for _, p := range d.Delete {
		if p.DeletionTimestamp != nil {
			t.Fatalf("%s deleted twice", p.Name)
		}
		p.DeletionTimestamp = &metav1.Time{Time: c.now}
	}
	after := c.view()
	left := available(after)
	if left < have && left < before.desired-unavailable {
		t.Fatalf("%d of %d nodes would be left with a pod, with maxUnavailable %d", left, before.desired, unavailable)
	}
	if surge > 0 && left < have {
		t.Fatalf("a surge took an available pod away without another one")
	}
	for _, n := range d.Create {
		c.seq++
		p := newPod(c.ds, n, c.hash)
		p.Name = "p" + strconv.Itoa(c.seq)
		p.UID, p.CreationTimestamp, p.Status.Phase = types.UID(p.Name), metav1.NewTime(c.now), corev1.PodPending
		c.pods[p.Name] = p
	}
	c.checkTotals(t, d, surge)
	c.ds.Status = d.Status
}

func (c *cluster) checkTotals(t *rapid.T, d Decision, surge int) {
	now := c.view()
	beside, added := 0, false
	for _, p := range now.places {
		current, old := now.pair(p)
		if n := len(p.alive); n > 2 || (surge == 0 && n > 1) {
			t.Fatalf("%d pods on node %s", n, p.name)
		}
		if old != nil && current != nil && now.available(old) && !now.available(current) {
			beside++
			added = added || slices.Contains(d.Create, p.name)
		}
		if slices.Contains(d.Create, p.name) && !p.run {
			t.Fatalf("a pod for node %s, which should run none", p.name)
		}
	}
	if added && beside > surge {
		t.Fatalf("%d pods beside old ones that are available, with maxSurge %d", beside, surge)
	}
}

// happen lets something befall a pod or a node.
func (c *cluster) happen(t *rapid.T, mayFail bool) {
	if mayFail && rapid.IntRange(0, 9).Draw(t, "node event") == 0 {
		n := rapid.SampledFrom(c.nodes).Draw(t, "node")
		effect := rapid.SampledFrom([]corev1.TaintEffect{"", corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute}).Draw(t, "taint")
		if n.Spec.Taints = nil; effect != "" {
			n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: effect}}
		}
		return
	}
	names := make([]string, 0, len(c.pods))
	for n := range c.pods {
		names = append(names, n)
	}
	if len(names) == 0 {
		return
	}
	slices.Sort(names)
	p := c.pods[rapid.SampledFrom(names).Draw(t, "pod")]
	switch what := rapid.IntRange(0, 5).Draw(t, "event"); {
	case p.DeletionTimestamp != nil:
		delete(c.pods, p.Name)
	case what == 0 && mayFail:
		p.Status.Phase, p.Status.Conditions = corev1.PodFailed, nil
	case what == 1 && mayFail:
		p.Status.Conditions = nil
	case what == 2 && mayFail:
		p.DeletionTimestamp = &metav1.Time{Time: c.now} // somebody else's doing
	default:
		c.ready(p)
	}
}

func (c *cluster) ready(p *corev1.Pod) {
	if ended(p) || len(p.Status.Conditions) > 0 {
		return
	}
	p.Spec.NodeName, p.Status.Phase = nodeOf(p), corev1.PodRunning
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(c.now)}}
}

// settle does all that workers would do in time, until nothing changes.
func (c *cluster) settle(t *rapid.T) {
	for range 30 * (len(c.nodes) + len(c.pods) + 1) {
		d := Decide(c.snapshot(), c.now)
		c.apply(t, d)
		for n, p := range c.pods {
			if p.DeletionTimestamp != nil {
				delete(c.pods, n)
				continue
			}
			c.ready(p)
		}
		c.now = c.now.Add(time.Second)
		now := c.view()
		if len(d.Create)+len(d.Delete) == 0 && available(now) == now.desired {
			if d = Decide(c.snapshot(), c.now); len(d.Create)+len(d.Delete) == 0 && d.Recheck == 0 {
				c.ds.Status = d.Status
				return
			}
			c.apply(t, d)
		}
	}
	now := c.view()
	t.Fatalf("the update does not end: %d pods, %d of %d nodes", len(c.pods), available(now), now.desired)
}

// TestRollingUpdate: whatever the number of nodes, limits, failures and orders of
// events, an update keeps to maxUnavailable and maxSurge, and it ends.
func TestRollingUpdate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := strconv.Itoa(rapid.IntRange(1, 4).Draw(t, "number"))
		if rapid.Bool().Draw(t, "percent") {
			limit = fmt.Sprintf("%d%%", rapid.IntRange(1, 100).Draw(t, "percents"))
		}
		ds := newSet(limit, "0")
		if rapid.Bool().Draw(t, "surge") {
			ds = newSet("0", limit)
		}
		ds.Spec.MinReadySeconds = rapid.Int32Range(0, 3).Draw(t, "minReady")
		c := &cluster{ds: ds, hash: "v1", pods: map[string]*corev1.Pod{}, now: now}
		for i := range rapid.IntRange(1, 7).Draw(t, "nodes") {
			c.nodes = append(c.nodes, node("n"+strconv.Itoa(i)))
		}
		c.settle(t)
		c.hash = "v2"
		mayFail := rapid.Bool().Draw(t, "failures")
		for range rapid.IntRange(0, 60).Draw(t, "events") {
			if rapid.Bool().Draw(t, "look") {
				c.apply(t, Decide(c.snapshot(), c.now))
			} else {
				c.happen(t, mayFail)
			}
			v := c.view()
			surge, unavailable := v.limits()
			if n := available(v); !mayFail && n < v.desired-unavailable {
				t.Fatalf("%d of %d nodes available, with maxUnavailable %d", n, v.desired, unavailable)
			}
			if !mayFail && len(c.pods) > v.desired+surge {
				// What is stopping beside its successor counts too, until it is gone.
				stopping := 0
				for _, p := range c.pods {
					if p.DeletionTimestamp != nil {
						stopping++
					}
				}
				if len(c.pods)-stopping > v.desired+surge {
					t.Fatalf("%d pods on %d nodes, with maxSurge %d", len(c.pods)-stopping, v.desired, surge)
				}
			}
			c.now = c.now.Add(time.Duration(rapid.IntRange(0, 2).Draw(t, "pause")) * time.Second)
		}
		c.settle(t)
		for name, p := range c.pods {
			if p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] != "v2" {
				t.Fatalf("%s is left at the old template", name)
			}
		}
		v := c.view()
		if s := ds.Status; int(s.UpdatedNumberScheduled) != v.desired || int(s.NumberAvailable) != v.desired || s.NumberUnavailable != 0 {
			t.Fatalf("the update has ended and is not complete: %+v", s)
		}
	})
}
