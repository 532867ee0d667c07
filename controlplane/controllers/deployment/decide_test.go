package deployment

import (
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func deployment(n int32, surge, unavailable string) *appsv1.Deployment {
	s, u := intstr.Parse(surge), intstr.Parse(unavailable)
	limit, deadline := int32(10), int32(600)
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "d", Generation: 1},
		Spec: appsv1.DeploymentSpec{
			Replicas: &n, RevisionHistoryLimit: &limit, ProgressDeadlineSeconds: &deadline,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &s, MaxUnavailable: &u},
			},
			Template: template("v1"),
		},
	}
}

func template(image string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: image}}},
	}
}

func TestFenceposts(t *testing.T) {
	for _, c := range []struct {
		n                  int32
		surge, unavailable string
		wantS, wantU       int32
	}{
		{10, "25%", "25%", 3, 2}, // up, down
		{1, "25%", "25%", 1, 0},
		{4, "0", "25%", 0, 1},
		{2, "0", "25%", 0, 1}, // both round to 0
		{3, "1", "0", 1, 0},
		{2, "0", "5", 0, 2},
	} {
		s, u := fenceposts(deployment(c.n, c.surge, c.unavailable))
		if s != c.wantS || u != c.wantU {
			t.Errorf("fenceposts(%d, %s, %s) = %d, %d; want %d, %d", c.n, c.surge, c.unavailable, s, u, c.wantS, c.wantU)
		}
	}
}

// cluster plays the API server, the ReplicaSet controller and the workers: enough
// of them to run a rollout to its end without a server.
type cluster struct {
	d    *appsv1.Deployment
	sets map[string]*appsv1.ReplicaSet
	pods map[string][]bool // by ReplicaSet: available or not
	now  time.Time
	seq  int
}

func newCluster(d *appsv1.Deployment) *cluster {
	return &cluster{d: d, sets: map[string]*appsv1.ReplicaSet{}, pods: map[string][]bool{}, now: start}
}

func (c *cluster) snapshot() Snapshot {
	s := Snapshot{Deployment: c.d}
	for _, rs := range c.sets {
		s.Sets = append(s.Sets, rs)
	}
	for name, pods := range c.pods {
		if rs := c.sets[name]; rs != nil && !sameTemplate(&rs.Spec.Template, &c.d.Spec.Template) {
			s.OldPods += len(pods)
		}
	}
	return s
}

// step takes one decision and reports whether it changed anything.
func (c *cluster) step() bool {
	c.now = c.now.Add(time.Second)
	out := Decide(c.snapshot(), c.now)
	changed := out.Create != nil || len(out.Update) > 0 || len(out.Delete) > 0
	if rs := out.Create; rs != nil {
		c.seq++
		rs.UID, rs.CreationTimestamp = types.UID(rs.Name), metav1.NewTime(start.Add(time.Duration(c.seq)*time.Second))
		c.sets[rs.Name] = rs
	}
	for _, rs := range out.Update {
		c.sets[rs.Name] = rs
	}
	for _, rs := range out.Delete {
		delete(c.sets, rs.Name)
		delete(c.pods, rs.Name)
	}
	if out.Revision != "" {
		if c.d.Annotations == nil {
			c.d.Annotations = map[string]string{}
		}
		c.d.Annotations[RevisionAnnotation] = out.Revision
	}
	c.d.Status = out.Status
	return changed
}

// settle lets the ReplicaSet controller catch up and publishes its statuses. Pods
// that are not available are deleted first.
func (c *cluster) settle() {
	for name, rs := range c.sets {
		pods := c.pods[name]
		for len(pods) < int(replicas(rs)) {
			pods = append(pods, false)
		}
		for len(pods) > int(replicas(rs)) {
			at := len(pods) - 1
			for i, ok := range pods {
				if !ok {
					at = i
					break
				}
			}
			pods = append(pods[:at:at], pods[at+1:]...)
		}
		c.pods[name] = pods
		rs.Status.Replicas, rs.Status.ReadyReplicas, rs.Status.AvailableReplicas = int32(len(pods)), 0, 0
		for _, ok := range pods {
			if ok {
				rs.Status.ReadyReplicas++
				rs.Status.AvailableReplicas++
			}
		}
	}
}

func (c *cluster) available() (n int32) {
	for _, pods := range c.pods {
		for _, ok := range pods {
			if ok {
				n++
			}
		}
	}
	return n
}

func (c *cluster) allReady() {
	for _, pods := range c.pods {
		for i := range pods {
			pods[i] = true
		}
	}
	c.settle()
}

// finish runs until nothing changes, with every pod becoming available at once.
func (c *cluster) finish(t interface{ Fatalf(string, ...any) }) {
	for i := range 1000 {
		changed := c.step()
		c.settle()
		c.allReady()
		if !changed && complete(c.d, c.d.Status) {
			return
		}
		if i == 999 {
			t.Fatalf("rollout of %d did not end: %+v", want(c.d), c.d.Status)
		}
	}
}

func (c *cluster) update(image string) {
	c.d.Spec.Template = template(image)
	c.d.Generation++
}

// TestRollingUpdateKeepsItsPromises: over random sizes, limits, orders of pods
// becoming ready, failures and changes of mind, the number of pods never exceeds
// replicas+maxSurge, availability never falls below replicas-maxUnavailable
// through the controller's doing, and every rollout ends.
func TestRollingUpdateKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int32Range(1, 20).Draw(t, "replicas")
		limit := rapid.SampledFrom([]string{"0", "1", "2", "5", "25%", "34%", "100%"})
		d := deployment(n, limit.Draw(t, "surge"), limit.Draw(t, "unavailable"))
		c := newCluster(d)
		c.finish(t)
		if c.available() != n {
			t.Fatalf("first rollout: %d of %d available", c.available(), n)
		}
		surge, unavailable := fenceposts(d)
		c.update("v2")
		for step := range rapid.IntRange(0, 60).Draw(t, "steps") {
			before := c.available()
			c.step()
			if got := total(values(c.sets)); got > n+surge {
				t.Fatalf("step %d: %d pods wanted, at most %d allowed", step, got, n+surge)
			}
			c.settle()
			if after := c.available(); after < before && after < n-unavailable {
				t.Fatalf("step %d: availability fell from %d to %d, at least %d promised", step, before, after, n-unavailable)
			}
			for name, pods := range c.pods {
				for i := range pods {
					if rapid.IntRange(0, 3).Draw(t, "ready "+name) == 0 {
						pods[i] = true
					} else if rapid.IntRange(0, 30).Draw(t, "crash "+name) == 0 {
						pods[i] = false
					}
				}
			}
			if rapid.IntRange(0, 25).Draw(t, "mind") == 0 {
				c.update(fmt.Sprintf("v%d", 3+step))
			}
			c.settle()
		}
		c.finish(t)
		if c.available() != n || total(values(c.sets)) != n {
			t.Fatalf("ended with %d available, %d wanted by ReplicaSets, want %d", c.available(), total(values(c.sets)), n)
		}
	})
}

// TestProportionalScaling: scaling in the middle of a rollout keeps the total at
// the new size plus surge.
func TestProportionalScaling(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := deployment(rapid.Int32Range(2, 15).Draw(t, "replicas"), "3", "2")
		c := newCluster(d)
		c.finish(t)
		c.update("v2")
		for range rapid.IntRange(1, 4).Draw(t, "steps") {
			c.step()
			c.settle()
		}
		n := rapid.Int32Range(0, 30).Draw(t, "scaled")
		d.Spec.Replicas = &n
		d.Generation++
		c.step()
		surge, _ := fenceposts(d)
		if got := total(values(c.sets)); got > n+surge {
			t.Fatalf("scaled to %d: %d pods wanted, at most %d allowed", n, got, n+surge)
		}
		c.settle()
		c.finish(t)
	})
}

func values(m map[string]*appsv1.ReplicaSet) (out []*appsv1.ReplicaSet) {
	for _, rs := range m {
		out = append(out, rs)
	}
	return out
}

// TestUndoReusesReplicaSet: going back to an old template numbers its ReplicaSet
// anew and keeps one ReplicaSet a template, so history never flips.
func TestUndoReusesReplicaSet(t *testing.T) {
	d := deployment(2, "1", "0")
	c := newCluster(d)
	for _, image := range []string{"v1", "v2", "v3", "v1"} {
		c.update(image)
		c.finish(t)
	}
	if len(c.sets) != 3 {
		t.Errorf("%d replica sets, want 3", len(c.sets))
	}
	for _, rs := range c.sets {
		if sameTemplate(&rs.Spec.Template, &d.Spec.Template) {
			if revisionOf(rs) != 4 || rs.Annotations[revisionHistory] != "1" {
				t.Errorf("reused set has revision %d, history %q; want 4 and 1", revisionOf(rs), rs.Annotations[revisionHistory])
			}
		}
	}
	if got := d.Annotations[RevisionAnnotation]; got != "4" {
		t.Errorf("deployment is at revision %q, want 4", got)
	}
}

func TestHistoryLimit(t *testing.T) {
	d := deployment(1, "1", "0")
	limit := int32(2)
	d.Spec.RevisionHistoryLimit = &limit
	c := newCluster(d)
	for i := range 6 {
		c.update(fmt.Sprintf("v%d", i))
		c.finish(t)
		c.step()
	}
	if len(c.sets) != 3 {
		t.Errorf("%d replica sets, want the current and 2 old ones", len(c.sets))
	}
}

func TestRecreateWaitsForOldPods(t *testing.T) {
	d := deployment(3, "1", "0")
	d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
	c := newCluster(d)
	c.finish(t)
	c.update("v2")
	c.step()
	for _, rs := range c.sets {
		if replicas(rs) != 0 {
			t.Fatalf("%s has %d replicas while old pods run", rs.Name, replicas(rs))
		}
	}
	c.step() // old pods are still counted: nothing may start
	if got := total(values(c.sets)); got != 0 {
		t.Fatalf("%d replicas wanted before the old pods have gone", got)
	}
	c.settle()
	c.finish(t)
	if c.available() != 3 {
		t.Errorf("%d available, want 3", c.available())
	}
}

func TestProgressDeadline(t *testing.T) {
	d := deployment(1, "1", "0")
	seconds := int32(30)
	d.Spec.ProgressDeadlineSeconds = &seconds
	c := newCluster(d)
	c.step()
	c.settle()
	for range 29 {
		c.step()
	}
	if p := find(&d.Status, appsv1.DeploymentProgressing); p.Status != corev1.ConditionTrue {
		t.Fatalf("gave up early: %+v", p)
	}
	for range 3 {
		c.step()
	}
	p := find(&d.Status, appsv1.DeploymentProgressing)
	if p.Status != corev1.ConditionFalse || p.Reason != ReasonDeadline {
		t.Fatalf("after the deadline: %+v", p)
	}
	c.allReady()
	c.step()
	if p := find(&d.Status, appsv1.DeploymentProgressing); p.Reason != reasonAvailable {
		t.Fatalf("after recovering: %+v", p)
	}
	// A lost pod of a finished rollout does not start the clock again.
	for _, pods := range c.pods {
		pods[0] = false
	}
	c.settle()
	for range 60 {
		c.step()
	}
	if p := find(&d.Status, appsv1.DeploymentProgressing); p.Status != corev1.ConditionTrue {
		t.Fatalf("a finished rollout timed out: %+v", p)
	}
}

func TestPausedChangesNothing(t *testing.T) {
	d := deployment(3, "1", "0")
	c := newCluster(d)
	c.finish(t)
	d.Spec.Paused = true
	c.update("v2")
	c.step()
	if len(c.sets) != 1 {
		t.Fatal("a paused deployment made a new replica set")
	}
	n := int32(5)
	d.Spec.Replicas = &n
	c.step()
	if got := total(values(c.sets)); got != 5 {
		t.Errorf("a paused deployment scaled to %d, want 5", got)
	}
}

// TestUndoAfterDeadline: going back after a failed rollout clears the failure at
// once, even when no count of pods changes.
func TestUndoAfterDeadline(t *testing.T) {
	d := deployment(1, "1", "0")
	seconds := int32(5)
	d.Spec.ProgressDeadlineSeconds = &seconds
	c := newCluster(d)
	c.finish(t)
	c.update("bad")
	for range 10 {
		c.step()
		c.settle()
	}
	if p := find(&d.Status, appsv1.DeploymentProgressing); p.Reason != ReasonDeadline {
		t.Fatalf("the bad rollout did not time out: %+v", p)
	}
	c.update("v1")
	c.step()
	if p := find(&d.Status, appsv1.DeploymentProgressing); p.Status != corev1.ConditionTrue {
		t.Fatalf("still failed after going back: %+v", p)
	}
}

// TestLostStatus: when the write of the status fails after the new ReplicaSet was
// made, the old rollout's clock does not run on for the new one.
func TestLostStatus(t *testing.T) {
	d := deployment(1, "1", "0")
	c := newCluster(d)
	c.finish(t)
	c.now = c.now.Add(time.Hour)
	c.update("v2")
	before := *d.Status.DeepCopy()
	c.step()
	d.Status = before // the write was lost
	c.settle()
	c.step()
	if p := find(&d.Status, appsv1.DeploymentProgressing); p.Status != corev1.ConditionTrue {
		t.Fatalf("a new rollout failed at once: %+v", p)
	}
}
