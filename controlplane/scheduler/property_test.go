package scheduler

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"
)

// Clusters of up to five nodes in up to two zones, with pods of two kinds in two
// namespaces: small enough for everything to collide.

func drawNode(t *rapid.T, name string) *corev1.Node {
	n := node(name, fmt.Sprint(rapid.IntRange(1, 4).Draw(t, "cpus")), "8Gi")
	if z := rapid.SampledFrom([]string{"", "1", "2"}).Draw(t, "zone"); z != "" {
		n.Labels[inZone] = z
	}
	n.Labels["disk"] = rapid.SampledFrom([]string{"ssd", "hdd"}).Draw(t, "disk")
	n.Spec.Unschedulable = rapid.IntRange(0, 9).Draw(t, "cordon") == 0
	if rapid.IntRange(0, 9).Draw(t, "taint") == 0 {
		taint("x", "", corev1.TaintEffectNoSchedule)(n)
	}
	return n
}

func drawPod(t *rapid.T, uid string) *corev1.Pod {
	kinds := rapid.SampledFrom([]string{"web", "db"})
	p := pod(uid, app(kinds.Draw(t, "app")), in(rapid.SampledFrom([]string{"default", "other"}).Draw(t, "namespace")),
		priority(int32(rapid.IntRange(0, 3).Draw(t, "priority"))))
	p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: *resource.NewMilliQuantity(int64(rapid.IntRange(0, 4).Draw(t, "cpu")*500), resource.DecimalSI)}
	key := func() string { return rapid.SampledFrom([]string{host, inZone}).Draw(t, "key") }
	namespaces := func(term *corev1.PodAffinityTerm) {
		switch rapid.IntRange(0, 3).Draw(t, "namespaces") {
		case 0:
			term.NamespaceSelector = &metav1.LabelSelector{}
		case 1:
			term.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "two"}}
		}
	}
	for range rapid.IntRange(0, 2).Draw(t, "wants") {
		switch rapid.IntRange(0, 5).Draw(t, "want") {
		case 0:
			near(key(), kinds.Draw(t, "near"), namespaces)(p)
		case 1:
			apart(key(), kinds.Draw(t, "apart"), namespaces)(p)
		case 2:
			spreading(key(), int32(rapid.IntRange(1, 2).Draw(t, "skew")), kinds.Draw(t, "spread"), func(c *corev1.TopologySpreadConstraint) {
				if rapid.Bool().Draw(t, "domains") {
					c.MinDomains = ptr.To(int32(rapid.IntRange(1, 3).Draw(t, "min")))
				}
				if rapid.Bool().Draw(t, "taints") {
					c.NodeTaintsPolicy = ptr.To(corev1.NodeInclusionPolicyHonor)
				}
			})(p)
		case 3:
			ratherNear(key(), kinds.Draw(t, "rather near"))(p)
		case 4:
			hostPort(80)(p)
		case 5:
			p.Spec.NodeSelector = map[string]string{"disk": "ssd"}
		}
	}
	return p
}

// drawWorld changes a world and a cluster alike, step by step.
func drawWorld(t *rapid.T, c *Cluster) *world {
	w := &world{nodes: map[string]*corev1.Node{}, namespaces: map[string]map[string]string{}, pods: map[string]*corev1.Pod{}, node: map[string]string{}}
	names := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})
	setNode := func(n *corev1.Node) { w.nodes[n.Name] = n; c.SetNode(n) }
	place := func(p *corev1.Pod, node string) {
		w.pods[string(p.UID)], w.node[string(p.UID)] = p, node
		c.Place(NewPod(p), node)
	}
	some := func() string {
		return rapid.SampledFrom(slices.Sorted(maps.Keys(w.pods))).Draw(t, "pod")
	}
	for i := range rapid.IntRange(0, 25).Draw(t, "steps") {
		step := rapid.IntRange(0, 11).Draw(t, "step")
		switch {
		case step <= 2:
			setNode(drawNode(t, names.Draw(t, "node")))
		case step <= 5:
			place(drawPod(t, fmt.Sprint("p", i)), names.Draw(t, "on"))
		case step <= 7:
			p := drawPod(t, fmt.Sprint("p", i))
			if res, err := Schedule(c, NewPod(p), 0); err == nil {
				if why := w.fits(p, w.nodes[res.Node]); why != "" {
					t.Fatalf("placed against %s on %s\n%v", why, res.Node, w)
				}
				place(p, res.Node)
			}
		case step == 8:
			name := names.Draw(t, "gone")
			delete(w.nodes, name)
			c.RemoveNode(name)
		case step == 9:
			name := rapid.SampledFrom([]string{"default", "other"}).Draw(t, "namespace")
			w.namespaces[name] = map[string]string{"team": rapid.SampledFrom([]string{"one", "two"}).Draw(t, "team")}
			c.SetNamespace(name, w.namespaces[name])
		case len(w.pods) == 0:
		case step == 10:
			uid := some()
			c.Remove(w.pods[uid].UID)
			delete(w.pods, uid)
			delete(w.node, uid)
		default:
			uid := some()
			p := w.pods[uid].DeepCopy()
			p.Labels["app"] = rapid.SampledFrom([]string{"web", "db"}).Draw(t, "relabel")
			if rapid.Bool().Draw(t, "leaves") {
				p.DeletionTimestamp = &metav1.Time{}
			}
			place(p, w.node[uid])
		}
	}
	return w
}

// TestDecisionsAreRight: whatever has happened, each node is accepted exactly if
// looking at everything says so, and a cluster that has followed every change decides
// and rates as one made anew.
func TestDecisionsAreRight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := NewCluster()
		w := drawWorld(t, c)
		fresh := w.cluster()
		for i := range 3 {
			p := drawPod(t, fmt.Sprint("probe", i))
			compare(t, w, c, fresh, p)
		}
	})
}

func compare(t *rapid.T, w *world, c, fresh *Cluster, p *corev1.Pod) {
	d, e := c.decision(NewPod(p)), fresh.decision(NewPod(p))
	var fit, fitFresh []*Node
	for _, n := range c.Nodes() {
		v, vFresh := d.on(n), e.on(fresh.nodes[n.Name])
		if v.plugin != vFresh.plugin {
			t.Fatalf("node %s: %v by changes, %v made anew\n%v", n.Name, v, vFresh, w)
		}
		if why := w.fits(p, w.nodes[n.Name]); (why == "") != v.fits() {
			t.Fatalf("node %s: %v, but really %q\n%v", n.Name, v.reasons, why, w)
		}
		if v.fits() {
			fit, fitFresh = append(fit, n), append(fitFresh, fresh.nodes[n.Name])
		}
	}
	if a, b := slices.Clone(d.rate(fit, nil)), e.rate(fitFresh, nil); !slices.Equal(a, b) {
		t.Fatalf("rated %v by changes, %v made anew\n%v", a, b, w)
	}
}

// TestPreemptionIsRight: only less important pods go, the pod fits once they have, and
// looking for them leaves no trace.
func TestPreemptionIsRight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := NewCluster()
		w := drawWorld(t, c)
		pod := drawPod(t, "preemptor")
		pod.Spec.Priority = ptr.To[int32](2)
		p := NewPod(pod)
		_, err := Schedule(c, p, 0)
		var why *FitError
		if !errors.As(err, &why) {
			return
		}
		budgets := []*policyv1.PodDisruptionBudget{budget("web", int32(rapid.IntRange(0, 2).Draw(t, "allowed")))}
		plan, _ := Preempt(c, p, why, budgets, 0)
		compare(t, w, c, w.cluster(), drawPod(t, "probe"))
		if plan == nil {
			return
		}
		if len(plan.Victims) == 0 {
			t.Fatal("preempted nothing")
		}
		for _, v := range plan.Victims {
			if v.priority >= p.priority || w.node[string(v.UID)] != plan.Node {
				t.Fatalf("%s of priority %d on %s goes for one of priority %d on %s", v.UID, v.priority, w.node[string(v.UID)], p.priority, plan.Node)
			}
			delete(w.pods, string(v.UID))
			delete(w.node, string(v.UID))
		}
		if broken := w.fits(pod, w.nodes[plan.Node]); broken != "" {
			t.Fatalf("it does not fit when the victims have gone: %s\n%v", broken, w)
		}
	})
}

// TestNeverOvercommits: whatever comes and goes, no node is given more than it has,
// and taking every pod away leaves nothing counted.
func TestNeverOvercommits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := cluster(node("a", "4", "4Gi"), node("b", "2", "8Gi"))
		var placed []*Pod
		for i := range rapid.IntRange(1, 60).Draw(t, "n") {
			if len(placed) > 0 && rapid.Bool().Draw(t, "remove") {
				at := rapid.IntRange(0, len(placed)-1).Draw(t, "which")
				c.Remove(placed[at].UID)
				placed = append(placed[:at], placed[at+1:]...)
				continue
			}
			p := NewPod(pod(fmt.Sprint("p", i), requests(
				fmt.Sprintf("%dm", rapid.IntRange(0, 1500).Draw(t, "cpu")), fmt.Sprintf("%dMi", rapid.IntRange(0, 3000).Draw(t, "mem")))))
			res, err := Schedule(c, p, 0)
			if err != nil {
				continue
			}
			c.Place(p, res.Node)
			placed = append(placed, p)
			for _, n := range c.Nodes() {
				n.Requested.each(func(name corev1.ResourceName, used int64) {
					if used > n.Allocatable.of(name) {
						t.Fatalf("node %s: %d of %s requested, %d allocatable", n.Name, used, name, n.Allocatable.of(name))
					}
				})
			}
		}
		for _, p := range placed {
			c.Remove(p.UID)
		}
		if len(c.terms)+len(c.priorities)+len(c.where) != 0 {
			t.Fatal("something is left when all are gone")
		}
		for _, n := range c.Nodes() {
			n.Requested.each(func(name corev1.ResourceName, used int64) {
				if used != 0 {
					t.Fatalf("node %s: %d of %s left when empty", n.Name, used, name)
				}
			})
		}
	})
}
