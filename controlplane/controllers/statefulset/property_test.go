package statefulset

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

// cluster plays the API server and the workers: enough of them to run an update to
// its end without a server.
type cluster struct {
	set  *appsv1.StatefulSet
	pods map[string]*corev1.Pod
	old  Revision
	want Revision
	now  time.Time
	uid  int
}

func (c *cluster) snapshot() Snapshot {
	s := Snapshot{Set: c.set, Claims: map[string]*corev1.PersistentVolumeClaim{}, Current: c.want, Update: c.want}
	if c.set.Status.CurrentRevision == c.old.Name {
		s.Current = c.old
	}
	for _, p := range c.pods {
		s.Pods = append(s.Pods, p)
	}
	return s
}

func (c *cluster) up(p *corev1.Pod) bool {
	return (&decision{set: c.set, now: c.now}).available(p)
}

func (c *cluster) available() (n int) {
	for i := range replicas(c.set) {
		if c.up(c.pods[podName(c.set, start(c.set)+i)]) {
			n++
		}
	}
	return n
}

// apply checks a decision against what the spec allows and carries it out.
func (c *cluster) apply(t *rapid.T, d Decision) {
	ordered := c.set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement
	if ordered && len(d.Create) > 1 {
		t.Fatalf("%d pods created at once in ordered mode", len(d.Create))
	}
	for _, m := range d.Create {
		if c.pods[m.Pod.Name] != nil {
			t.Fatalf("%s created twice", m.Pod.Name)
		}
		ordinal, _ := ordinalOf(c.set, m.Pod)
		for i := start(c.set); ordered && i < ordinal; i++ {
			if !c.up(c.pods[podName(c.set, i)]) {
				t.Fatalf("%s created while %s is not available", m.Pod.Name, podName(c.set, i))
			}
		}
		if i := ordinal - start(c.set); i < 0 || i >= replicas(c.set) {
			t.Fatalf("%s created beyond the replicas", m.Pod.Name)
		}
	}
	c.checkDeletes(t, d, ordered)
	for _, m := range d.Create {
		c.uid++
		m.Pod.UID = types.UID(strconv.Itoa(c.uid))
		m.Pod.Status.Phase = corev1.PodPending
		c.pods[m.Pod.Name] = m.Pod
	}
	for _, p := range d.Delete {
		p.DeletionTimestamp = &metav1.Time{Time: c.now}
	}
	c.set.Status = d.Status
}

func (c *cluster) checkDeletes(t *rapid.T, d Decision, ordered bool) {
	last, updates := -1, 0
	for _, p := range d.Delete {
		ordinal, _ := ordinalOf(c.set, p)
		i := ordinal - start(c.set)
		if p.DeletionTimestamp != nil {
			t.Fatalf("%s deleted twice", p.Name)
		}
		if ended(p) || i < 0 || i >= replicas(c.set) {
			continue
		}
		if last >= 0 && ordinal > last {
			t.Fatalf("deletes %d after %d", ordinal, last)
		}
		last = ordinal
		if i < partition(c.set) || revisionOf(p) == c.want.Name || c.set.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType {
			t.Fatalf("%s of revision %s deleted for no reason", p.Name, revisionOf(p))
		}
		if c.up(p) {
			updates++
		}
		// Nothing of the old revision is left above, but what goes with it.
		for j := i + 1; j < replicas(c.set); j++ {
			above := c.pods[podName(c.set, start(c.set)+j)]
			if above != nil && above.DeletionTimestamp == nil && revisionOf(above) != c.want.Name && c.up(p) && !slices.Contains(d.Delete, above) {
				t.Fatalf("%s updated before %s", p.Name, above.Name)
			}
		}
	}
	if ordered && updates > 0 && c.available() != replicas(c.set) {
		t.Fatalf("an ordered update went on with %d of %d available", c.available(), replicas(c.set))
	}
	if left := c.available() - updates; updates > 0 && left < replicas(c.set)-maxUnavailable(c.set) {
		t.Fatalf("%d of %d would be left, with maxUnavailable %d", left, replicas(c.set), maxUnavailable(c.set))
	}
}

// happen lets something befall a pod.
func (c *cluster) happen(t *rapid.T, mayFail bool) {
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
	p.Status.Phase = corev1.PodRunning
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(c.now)}}
}

// settle does all that workers would do in time, until nothing changes.
func (c *cluster) settle(t *rapid.T) {
	for range 40 * (replicas(c.set) + len(c.pods) + 1) {
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
		if len(d.Create)+len(d.Delete) == 0 && c.available() == replicas(c.set) && len(c.pods) == replicas(c.set) {
			d = Decide(c.snapshot(), c.now)
			if c.set.Status = d.Status; len(d.Create)+len(d.Delete) == 0 {
				return
			}
			c.apply(t, d)
		}
	}
	t.Fatalf("the update does not end: %d pods, %d of %d available", len(c.pods), c.available(), replicas(c.set))
}

// TestRollingUpdate: whatever the sizes, limits, failures and orders of events, an
// update keeps to the order and to maxUnavailable, and it ends.
func TestRollingUpdate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int32Range(0, 7).Draw(t, "replicas")
		unavailable := strconv.Itoa(rapid.IntRange(1, 4).Draw(t, "number"))
		if rapid.Bool().Draw(t, "percent") {
			unavailable = fmt.Sprintf("%d%%", rapid.IntRange(1, 100).Draw(t, "percents"))
		}
		partition := rapid.Int32Range(0, n).Draw(t, "partition")
		set := newSet(n, rolling(partition, unavailable), from(rapid.Int32Range(0, 3).Draw(t, "start")), minReady(rapid.Int32Range(0, 3).Draw(t, "minReady")))
		if rapid.Bool().Draw(t, "parallel") {
			parallel(set)
		}
		v1 := Revision{"v1", &set.Spec.Template}
		c := &cluster{set: set, pods: map[string]*corev1.Pod{}, old: v1, want: v1, now: now}
		c.settle(t)
		c.want = Revision{"v2", &set.Spec.Template}
		mayFail := rapid.Bool().Draw(t, "failures")
		for range rapid.IntRange(0, 60).Draw(t, "events") {
			if rapid.Bool().Draw(t, "look") {
				c.apply(t, Decide(c.snapshot(), c.now))
			} else {
				c.happen(t, mayFail)
			}
			if !mayFail && c.available() < int(n)-maxUnavailable(set) {
				t.Fatalf("%d of %d available, with maxUnavailable %d", c.available(), n, maxUnavailable(set))
			}
			if len(c.pods) > int(n) {
				t.Fatalf("%d pods for %d replicas", len(c.pods), n)
			}
			c.now = c.now.Add(time.Duration(rapid.IntRange(0, 2).Draw(t, "pause")) * time.Second)
		}
		if rapid.Bool().Draw(t, "scale") {
			m := rapid.Int32Range(0, 7).Draw(t, "scaled")
			set.Spec.Replicas = &m
		}
		// Whoever is not ready becomes so: what has failed is replaced.
		c.settle(t)
		for name, p := range c.pods {
			ordinal, _ := ordinalOf(set, p)
			if ordinal-start(set) >= int(partition) && revisionOf(p) != "v2" {
				t.Fatalf("%s is left at %s", name, revisionOf(p))
			}
		}
		if partition == 0 && set.Status.CurrentRevision != "v2" {
			t.Fatalf("the update has ended and is not complete: %+v", set.Status)
		}
	})
}
