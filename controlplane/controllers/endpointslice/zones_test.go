package endpointslice

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"
)

// node reads "name zone cpu", with marks behind it.
func node(text string) *corev1.Node {
	part := strings.Fields(text)
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: part[0], Labels: map[string]string{}}}
	ready := corev1.ConditionTrue
	if part[1] != "-" {
		n.Labels[corev1.LabelTopologyZone] = part[1]
	}
	if part[2] != "-" {
		n.Status.Allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(part[2])}
	}
	for _, mark := range part[3:] {
		switch mark {
		case "down":
			ready = corev1.ConditionFalse
		default:
			n.Labels["node-role.kubernetes.io/"+mark] = ""
		}
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
	return n
}

// auto decides for pods of which there are some on each node, and says how many endpoints
// each zone has, those from elsewhere behind a plus sign.
func auto(svc *corev1.Service, nodes []*corev1.Node, pods []*corev1.Pod, have []*discoveryv1.EndpointSlice) (Decision, string) {
	places := Places{Zones: map[string]string{}, Capacity: CapacityOf(nodes)}
	for _, n := range nodes {
		places.Zones[n.Name] = n.Labels[corev1.LabelTopologyZone]
	}
	d := Decide(svc, pods, places, have)
	own, lent := map[string]int{}, map[string]int{}
	var zones []string
	for _, s := range append(slices.Clone(d.Create), d.Update...) {
		for _, e := range s.Endpoints {
			zone := "-"
			if e.Hints != nil {
				zone = e.Hints.ForZones[0].Name
			}
			if ptr.Deref(e.Zone, "") == zone || zone == "-" {
				own[zone]++
			} else {
				lent[zone]++
			}
			if !slices.Contains(zones, zone) {
				zones = append(zones, zone)
			}
		}
	}
	slices.Sort(zones)
	var out []string
	for _, z := range zones {
		out = append(out, fmt.Sprintf("%s %d+%d", z, own[z], lent[z]))
	}
	return d, strings.Join(out, " ")
}

func autoService(annotations ...string) *corev1.Service {
	svc := service(http)
	svc.Annotations = map[string]string{corev1.AnnotationTopologyMode: "Auto"}
	for _, a := range annotations {
		k, v, _ := strings.Cut(a, "=")
		svc.Annotations[k] = v
	}
	return svc
}

func podsOn(counts ...string) (out []*corev1.Pod) {
	for _, text := range counts {
		var name string
		var n int
		if _, err := fmt.Sscanf(text, "%s %d", &name, &n); err != nil {
			panic(err)
		}
		for range n {
			p := pod(len(out), true)
			p.Spec.NodeName = name
			out = append(out, p)
		}
	}
	return out
}

// TestAuto follows the unit tests that KEP-2433 names, and the safeguards of the page
// "Topology Aware Routing".
func TestAuto(t *testing.T) {
	three := []string{"a east 4", "b west 4", "c north 4"}
	two := three[:2]
	for _, c := range []struct {
		name    string
		nodes   []string
		pods    []string
		want    string
		problem string
	}{
		{"three for three", three, []string{"a 1", "b 1", "c 1"}, "east 1+0 north 1+0 west 1+0", ""},
		{"two for three", three, []string{"a 1", "b 1"}, "- 2+0", "2 ready endpoints are not enough for 3 zones"},
		{"four for three", three, []string{"a 2", "b 1", "c 1"}, "- 4+0", "some would get over 20 % more"},
		{"four for three, one twice as large", []string{"a east 8", "b west 4", "c north 4"}, []string{"a 2", "b 1", "c 1"}, "east 2+0 north 1+0 west 1+0", ""},
		{"four for two", two, []string{"a 2", "b 2"}, "east 2+0 west 2+0", ""},
		{"four in one zone of two", two, []string{"a 4"}, "east 2+0 west 0+2", ""},
		{"two in one zone that is twice as large", []string{"a east 8", "b west 4"}, []string{"a 2"}, "- 2+0", "some would get over 20 % more"},
		{"twenty, sixteen, fourteen", []string{"a east 20", "b west 16", "c north 14"}, []string{"a 50"}, "east 24+0 north 0+12 west 0+14", ""},
		{"lent by who has most", three, []string{"a 5", "b 7"}, "east 4+0 north 0+4 west 4+0", ""},
		{"one zone", []string{"a east 4", "d east 4"}, []string{"a 3"}, "- 3+0", "in one zone"},
		{"only one zone is Ready", []string{"a east 4", "b west 4 down"}, []string{"a 3"}, "- 3+0", "in one zone"},
		{"none is Ready", []string{"a east 4 down"}, []string{"a 3"}, "- 3+0", "no node is Ready"},
		{"no zone", append(slices.Clone(two), "e - 4"), []string{"a 3", "b 3"}, "- 6+0", "node e has no label"},
		{"no CPU", append(slices.Clone(two), "e east -"), []string{"a 3", "b 3"}, "- 6+0", "node e has no label topology.kubernetes.io/zone, or says of no CPU"},
		{"not Ready and without a zone", append(slices.Clone(two), "e - 4 down"), []string{"a 3", "b 3"}, "east 3+0 west 3+0", ""},
		{"a pod there", append(slices.Clone(two), "e - 4 down"), []string{"a 3", "e 3"}, "- 6+0", "endpoint web-003 is in no zone"},
		{"the control plane does not count", append(slices.Clone(two), "e north 64 control-plane", "f - 1 master"), []string{"a 3", "b 3"}, "east 3+0 west 3+0", ""},
		{"endpoints there are for others", append(slices.Clone(two), "e north 4 control-plane"), []string{"a 3", "b 1", "e 3"}, "east 3+1 west 1+2", ""},
	} {
		var nodes []*corev1.Node
		for _, n := range c.nodes {
			nodes = append(nodes, node(n))
		}
		d, got := auto(autoService(), nodes, podsOn(c.pods...), nil)
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		if len(d.Allotted) != 1 || (c.problem == "") != (d.Allotted[0].Problem == "") || !strings.Contains(d.Allotted[0].Problem, c.problem) {
			t.Errorf("%s: says %+v, want %q", c.name, d.Allotted, c.problem)
		}
	}
}

// TestAutoAsked: who asks for it, and what it comes before.
func TestAutoAsked(t *testing.T) {
	nodes := []*corev1.Node{node("a east 4"), node("b west 4")}
	for _, c := range []struct {
		annotation, distribution, want string
	}{
		{"service.kubernetes.io/topology-mode=Auto", "", "east 2+0 west 0+2"},
		{"service.kubernetes.io/topology-mode=auto", "", "east 2+0 west 0+2"},
		{"service.kubernetes.io/topology-mode=Disabled", "", "- 4+0"},
		{"service.kubernetes.io/topology-mode=example.com/mine", "", "- 4+0"},
		{"service.kubernetes.io/topology-aware-hints=Auto", "", "east 2+0 west 0+2"},
		{"service.kubernetes.io/topology-aware-hints=Disabled", "", "- 4+0"},
		{"service.kubernetes.io/topology-mode=Auto", "PreferSameZone", "east 2+0 west 0+2"},
		{"service.kubernetes.io/topology-mode=Disabled", "PreferSameZone", "east 4+0"},
	} {
		svc := autoService(c.annotation)
		if c.distribution != "" {
			svc.Spec.TrafficDistribution = &c.distribution
		}
		d, got := auto(svc, nodes, podsOn("a 4"), nil)
		if got != c.want {
			t.Errorf("%s %s: %s, want %s", c.annotation, c.distribution, got, c.want)
		}
		if (len(d.Allotted) > 0) != strings.Contains(c.want, "+2") {
			t.Errorf("%s %s: says %+v", c.annotation, c.distribution, d.Allotted)
		}
	}
}

// TestAutoOfReady: endpoints that are not ready count for nothing and have no hint, and
// each family is allotted by itself.
func TestAutoOfReady(t *testing.T) {
	nodes := []*corev1.Node{node("a east 4"), node("b west 4")}
	pods := podsOn("a 2", "b 2")
	pods[3] = pod(3, false)
	pods[3].Spec.NodeName = "b"
	for i, p := range pods[:2] {
		p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}, {IP: fmt.Sprintf("fd00::%d", i+1)}}
	}
	svc := autoService()
	svc.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	d, got := auto(svc, nodes, pods, nil)
	if got != "- 4+0 east 1+0 west 0+1" {
		t.Errorf("%s", got)
	}
	if len(d.Allotted) != 2 || d.Allotted[0].Problem == "" || d.Allotted[1].Problem != "" {
		t.Errorf("3 endpoints of IPv4 are too few for an even share, 2 of IPv6 are not: %+v", d.Allotted)
	}
}

// TestAllotted: every ready endpoint is for exactly one zone, no zone's endpoints get over
// 20 % more than their share, nothing is lent to a zone that has more than it needs,
// deciding again changes nothing, and one endpoint more changes few hints.
func TestAllotted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var nodes []*corev1.Node
		zones := rapid.IntRange(2, 6).Draw(t, "zones")
		for z := range zones {
			for i := range rapid.IntRange(1, 3).Draw(t, "nodes") {
				nodes = append(nodes, node(fmt.Sprintf("n%d-%d z%d %d", z, i, z, rapid.IntRange(1, 32).Draw(t, "cpu"))))
			}
		}
		nodes = append(nodes, node("other strange 4 control-plane"))
		svc := autoService()
		var have []*discoveryv1.EndpointSlice
		pods := make([]*corev1.Pod, 0, 400)
		add := func() {
			p := pod(len(pods), true)
			at := rapid.IntRange(0, len(nodes)-1).Draw(t, "node")
			if rapid.Bool().Draw(t, "crowded") {
				at = 0
			}
			p.Spec.NodeName = nodes[at].Name
			pods = append(pods, p)
		}
		for range rapid.IntRange(2, 300).Draw(t, "pods") {
			add()
		}
		before := map[string]string{}
		for range 4 {
			d, _ := auto(svc, nodes, pods, have)
			have = carryOut(have, d)
			if again, _ := auto(svc, nodes, pods, have); len(again.Create)+len(again.Update)+len(again.Delete) > 0 {
				t.Fatalf("a second look changes %d, %d, %d", len(again.Create), len(again.Update), len(again.Delete))
			}
			now := checkAllotted(t, nodes, have, d.Allotted[0].Problem)
			changed := 0
			for p, zone := range before {
				if now[p] != zone {
					changed++
				}
			}
			if len(now) > 0 && changed > 2*zones {
				t.Fatalf("one endpoint more changes %d of %d hints in %d zones", changed, len(before), zones)
			}
			before = now
			add()
		}
	})
}

func checkAllotted(t *rapid.T, nodes []*corev1.Node, have []*discoveryv1.EndpointSlice, problem string) map[string]string {
	cpu := CapacityOf(nodes).CPU
	var total int64
	for _, c := range cpu {
		total += c
	}
	n, own, lent, all := map[string]int{}, map[string]int{}, map[string]int{}, 0
	hints := map[string]string{}
	for _, s := range have {
		for _, e := range s.Endpoints {
			all++
			if (e.Hints == nil) != (problem != "") {
				t.Fatalf("%s has hints %v although %q", e.TargetRef.Name, e.Hints, problem)
			}
			if e.Hints == nil {
				continue
			}
			zone := e.Hints.ForZones[0].Name
			if len(e.Hints.ForZones) != 1 || cpu[zone] == 0 {
				t.Fatalf("%s is for %v", e.TargetRef.Name, e.Hints.ForZones)
			}
			hints[e.TargetRef.Name] = zone
			n[zone]++
			if *e.Zone == zone {
				own[zone]++
			} else if cpu[*e.Zone] > 0 {
				lent[zone]++
			}
		}
	}
	least := 0
	for zone, c := range cpu {
		fair := float64(c) / float64(total) * float64(all)
		need := 1
		for fair/float64(need) > 1.2+1e-9 {
			need++
		}
		least += need
		if problem == "" && n[zone] < need {
			t.Fatalf("%s has %d of %d endpoints, an even share is %.2f", zone, n[zone], all, fair)
		}
		if lent[zone] > 0 && n[zone] > need {
			t.Fatalf("%s has %d endpoints, %d of them lent, and needs %d", zone, n[zone], lent[zone], need)
		}
	}
	if (problem != "") != (least > all) {
		t.Fatalf("%d endpoints, %d needed, and %q", all, least, problem)
	}
	return hints
}
