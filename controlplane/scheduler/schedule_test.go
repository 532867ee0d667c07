package scheduler

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func node(name string, cpu, memory string, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name}},
		Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory),
			corev1.ResourcePods: resource.MustParse("110"),
		}},
	}
	for _, f := range change {
		f(n)
	}
	return n
}

func taint(key, value string, effect corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Value: value, Effect: effect})
	}
}

func pod(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name)},
		Spec:       corev1.PodSpec{SchedulerName: corev1.DefaultSchedulerName, Containers: []corev1.Container{{Name: "c"}}},
	}
	for _, f := range change {
		f(p)
	}
	return p
}

func requests(cpu, memory string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory),
		}
	}
}

func hostPort(n int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: n}} }
}

func ownedBy(uid types.UID) func(*corev1.Pod) {
	yes := true
	return func(p *corev1.Pod) {
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: string(uid), UID: uid, Controller: &yes}}
	}
}

func labelled(key, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { metav1.SetMetaDataLabel(&p.ObjectMeta, key, value) }
}

func onlyOn(nodes ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		if p.Spec.Affinity == nil {
			p.Spec.Affinity = &corev1.Affinity{}
		}
		p.Spec.Affinity.NodeAffinity = &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{},
		}
		for _, n := range nodes {
			terms := &p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
			*terms = append(*terms, corev1.NodeSelectorTerm{
				MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{n}}},
			})
		}
	}
}

func cluster(nodes ...*corev1.Node) *Cluster {
	c := NewCluster()
	for _, n := range nodes {
		c.SetNode(n)
	}
	return c
}

func TestSchedule(t *testing.T) {
	for _, c := range []struct {
		name    string
		nodes   []*corev1.Node
		running map[string][]*corev1.Pod
		pod     *corev1.Pod
		want    string // a node, or the beginning of an error after "!"
	}{
		{name: "no nodes", pod: pod("p"), want: "!no nodes available to schedule pods"},
		{
			name:  "least allocated",
			nodes: []*corev1.Node{node("a", "2", "2Gi"), node("b", "4", "4Gi")},
			pod:   pod("p", requests("1", "1Gi")), want: "b",
		},
		{
			name:  "says how much is missing on the node that came closest",
			nodes: []*corev1.Node{node("a", "2", "100Mi"), node("b", "2", "200Mi")},
			pod:   pod("p", requests("1", "512Mi")),
			want:  "!0/2 nodes are available: 2 Insufficient memory (needs 512Mi, 200Mi free).",
		},
		{
			name: "each reason with its count",
			nodes: []*corev1.Node{
				node("a", "100m", "4Gi"), node("b", "4", "4Gi", taint("dedicated", "gpu", corev1.TaintEffectNoSchedule)),
				node("c", "4", "4Gi", func(n *corev1.Node) { n.Spec.Unschedulable = true }),
			},
			pod: pod("p", requests("1", "1Gi")),
			want: "!0/3 nodes are available: 1 Insufficient cpu (needs 1, 100m free), " +
				"1 node(s) had untolerated taint {dedicated: gpu}, 1 node(s) were unschedulable.",
		},
		{
			name:  "a node by its name, as daemon pods ask for it",
			nodes: []*corev1.Node{node("a", "4", "4Gi"), node("b", "1", "1Gi")},
			pod:   pod("p", onlyOn("b")), want: "b",
		},
		{
			name:  "a node by its name that is not there",
			nodes: []*corev1.Node{node("a", "4", "4Gi")},
			pod:   pod("p", onlyOn("b")), want: "!0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
		},
		{
			name:  "tolerated taint",
			nodes: []*corev1.Node{node("a", "4", "4Gi", taint("dedicated", "gpu", corev1.TaintEffectNoSchedule))},
			pod: pod("p", func(p *corev1.Pod) {
				p.Spec.Tolerations = []corev1.Toleration{{Key: "dedicated", Operator: corev1.TolerationOpEqual, Value: "gpu"}}
			}),
			want: "a",
		},
		{
			name:  "preferred taint is avoided",
			nodes: []*corev1.Node{node("a", "4", "4Gi", taint("x", "", corev1.TaintEffectPreferNoSchedule)), node("b", "2", "2Gi")},
			pod:   pod("p"), want: "b",
		},
		{
			name:  "node selector",
			nodes: []*corev1.Node{node("a", "4", "4Gi"), node("b", "2", "2Gi", func(n *corev1.Node) { n.Labels["disk"] = "ssd" })},
			pod:   pod("p", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }), want: "b",
		},
		{
			name:  "required affinity that nothing matches",
			nodes: []*corev1.Node{node("a", "4", "4Gi")},
			pod: pod("p", func(p *corev1.Pod) {
				p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
					NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "zone", Operator: corev1.NodeSelectorOpExists}}}},
				}}}
			}),
			want: "!0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
		},
		{
			name:    "host port taken",
			nodes:   []*corev1.Node{node("a", "4", "4Gi"), node("b", "1", "1Gi")},
			running: map[string][]*corev1.Pod{"a": {pod("q", hostPort(80))}},
			pod:     pod("p", hostPort(80)), want: "b",
		},
		{
			name:    "replicas without constraints of their own are spread",
			nodes:   []*corev1.Node{node("a", "8", "8Gi"), node("b", "2", "2Gi")},
			running: map[string][]*corev1.Pod{"a": {pod("q", labelled("app", "web"), ownedBy("rs"))}},
			pod:     pod("p", labelled("app", "web"), ownedBy("rs")), want: "b",
		},
		{
			name: "a node that has the image already",
			nodes: []*corev1.Node{node("a", "4", "4Gi"), node("b", "4", "4Gi", func(n *corev1.Node) {
				n.Status.Images = []corev1.ContainerImage{{Names: []string{"web:v1"}, SizeBytes: 500 << 20}}
			})},
			pod: pod("p", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "web:v1" }), want: "b",
		},
		{
			name: "an image by its digest",
			nodes: []*corev1.Node{node("a", "4", "4Gi"), node("b", "4", "4Gi", func(n *corev1.Node) {
				n.Status.Images = []corev1.ContainerImage{{Names: []string{"<none>@sha256:1"}, SizeBytes: 500 << 20}}
			})},
			pod: pod("p", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "web@sha256:1" }), want: "b",
		},
		{
			name:    "cpu and memory used alike",
			nodes:   []*corev1.Node{node("a", "4", "4Gi"), node("b", "4", "4Gi")},
			running: map[string][]*corev1.Pod{"a": {pod("q", requests("2", "100Mi"))}, "b": {pod("r", requests("100m", "2Gi"))}},
			pod:     pod("p", requests("100m", "1Gi")), want: "a",
		},
		{
			name:  "overhead counts",
			nodes: []*corev1.Node{node("a", "1", "1Gi")},
			pod: pod("p", requests("1", "1Gi"), func(p *corev1.Pod) {
				p.Spec.Overhead = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1m")}
			}),
			want: "!0/1 nodes are available: 1 Insufficient cpu (needs 1001m, 1 free).",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := cluster(c.nodes...)
			cl.SetOwner(Owner{"ReplicaSet", "default", "rs"}, metav1.SetAsLabelSelector(map[string]string{"app": "web"}))
			for n, pods := range c.running {
				for _, p := range pods {
					cl.Place(NewPod(p), n)
				}
			}
			res, err := Schedule(cl, NewPod(c.pod), 0)
			if msg, failing := strings.CutPrefix(c.want, "!"); failing {
				if err == nil || !strings.HasPrefix(err.Error(), msg) {
					t.Fatalf("got %v, want error %q", err, msg)
				}
				return
			}
			if err != nil || res.Node != c.want {
				t.Fatalf("got %q, %v; want %q", res.Node, err, c.want)
			}
		})
	}
}

// TestManyNodes: a decision looks at a part of many nodes, the next one at others, and
// at all of them if it has to.
func TestManyNodes(t *testing.T) {
	c := NewCluster()
	for i := range 300 {
		c.SetNode(node(fmt.Sprintf("n%03d", i), "4", "4Gi", zone(fmt.Sprint(i/100))))
	}
	for i, n := range c.Nodes()[:6] {
		if want := fmt.Sprint(i % 3); n.Labels[inZone] != want {
			t.Errorf("node %d is of zone %s, want %s", i, n.Labels[inZone], want)
		}
	}
	res, err := Schedule(c, NewPod(pod("p")), 0)
	if want := enough(300); err != nil || want != 144 || res.Next != want || res.Node != c.Nodes()[0].Name {
		t.Errorf("%+v, %v; enough are %d", res, err, want)
	}
	res, err = Schedule(c, NewPod(pod("p")), res.Next)
	if err != nil || res.Next != 288 || res.Node != c.Nodes()[144].Name {
		t.Errorf("the next decision: %+v, %v", res, err)
	}
	if res, err = Schedule(c, NewPod(pod("p")), res.Next); err != nil || res.Next != 132 {
		t.Errorf("around the end: %+v, %v", res, err)
	}
	if res, err = Schedule(c, NewPod(pod("p", onlyOn("n299"))), 0); err != nil || res.Node != "n299" {
		t.Errorf("the one that fits: %+v, %v", res, err)
	}
	_, err = Schedule(c, NewPod(pod("p", onlyOn("n299"), cpu("9"))), 144)
	if err == nil || !strings.HasPrefix(err.Error(), "0/300 nodes are available: 1 Insufficient cpu (needs 9, 4 free), 299 node(s) didn't match Pod's node affinity/selector.") {
		t.Error(err)
	}
}
