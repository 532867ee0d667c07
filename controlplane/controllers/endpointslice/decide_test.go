package endpointslice

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"
)

func service(ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "svc"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: ports},
	}
}

func pod(i int, ready bool) *corev1.Pod {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("web-%03d", i), Namespace: "default"},
		Spec:       corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}},
		Status: corev1.PodStatus{
			PodIP: fmt.Sprintf("10.42.%d.%d", i/250, i%250+2), Phase: corev1.PodRunning,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: status}},
		},
	}
}

var http = corev1.ServicePort{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}

// TestConditions follows the table of the page "EndpointSlices".
func TestConditions(t *testing.T) {
	now := metav1.Now()
	for _, c := range []struct {
		name                        string
		ready, deleting, publish    bool
		wantReady, wantServing, end bool
	}{
		{name: "ready", ready: true, wantReady: true, wantServing: true},
		{name: "not ready"},
		{name: "ready and terminating", ready: true, deleting: true, wantServing: true, end: true},
		{name: "terminating", deleting: true, end: true},
		{name: "published though not ready", publish: true, wantReady: true, wantServing: true},
		{name: "published though terminating", publish: true, deleting: true, wantReady: true, wantServing: true, end: true},
	} {
		p, svc := pod(1, c.ready), service(http)
		svc.Spec.PublishNotReadyAddresses = c.publish
		if c.deleting {
			p.DeletionTimestamp = &now
		}
		e := Decide(svc, []*corev1.Pod{p}, Places{}, nil).Create[0].Endpoints[0]
		if *e.Conditions.Ready != c.wantReady || *e.Conditions.Serving != c.wantServing || *e.Conditions.Terminating != c.end {
			t.Errorf("%s: ready %v serving %v terminating %v", c.name, *e.Conditions.Ready, *e.Conditions.Serving, *e.Conditions.Terminating)
		}
	}
}

func TestPorts(t *testing.T) {
	other := pod(2, true)
	other.Spec.Containers[0].Ports[0].ContainerPort = 9090 // the same name, another number
	nameless := pod(3, true)
	nameless.Spec.Containers = nil
	d := Decide(service(http), []*corev1.Pod{pod(1, true), other, nameless}, Places{}, nil)
	got := map[int32]string{}
	for _, s := range d.Create {
		for _, p := range s.Ports {
			got[*p.Port] = s.Endpoints[0].TargetRef.Name
		}
	}
	if got[8080] != "web-001" || got[9090] != "web-002" || len(d.Create) != 3 {
		t.Errorf("ports %v in %d slices; pods that resolve a name differently go to slices of their own", got, len(d.Create))
	}
	if len(d.Endpoints.Subsets) != 3 {
		t.Errorf("%d subsets of the old form, want 3", len(d.Endpoints.Subsets))
	}
}

func TestEndedPodsLeave(t *testing.T) {
	p := pod(1, true)
	p.Status.Phase = corev1.PodSucceeded
	q := pod(2, true)
	q.Status.PodIP = ""
	if d := Decide(service(http), []*corev1.Pod{p, q}, Places{}, nil); len(d.Create[0].Endpoints) != 0 {
		t.Errorf("endpoints %v", d.Create[0].Endpoints)
	}
}

// TestConverges: after doing what Decide says, every pod is in exactly one slice,
// no slice is too large, and deciding again changes nothing.
func TestConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		svc := service(http)
		var have []*discoveryv1.EndpointSlice
		for range 3 {
			var pods []*corev1.Pod
			for i := range rapid.IntRange(0, 320).Draw(t, "pods") {
				pods = append(pods, pod(i, rapid.IntRange(0, 9).Draw(t, "ready") > 0))
			}
			d := Decide(svc, pods, Places{}, have)
			have = carryOut(have, d)
			seen := map[string]int{}
			for _, s := range have {
				if len(s.Endpoints) > maxEndpoints {
					t.Fatalf("a slice of %d", len(s.Endpoints))
				}
				for _, e := range s.Endpoints {
					seen[e.TargetRef.Name]++
				}
			}
			for _, p := range pods {
				if seen[p.Name] != 1 {
					t.Fatalf("%s is in %d slices", p.Name, seen[p.Name])
				}
			}
			if len(seen) != len(pods) {
				t.Fatalf("%d endpoints for %d pods", len(seen), len(pods))
			}
			again := Decide(svc, pods, Places{}, have)
			if len(again.Create)+len(again.Update)+len(again.Delete) > 0 {
				t.Fatalf("a second look changes %d, %d, %d", len(again.Create), len(again.Update), len(again.Delete))
			}
		}
	})
}

var serial int

func carryOut(have []*discoveryv1.EndpointSlice, d Decision) []*discoveryv1.EndpointSlice {
	byName := map[string]*discoveryv1.EndpointSlice{}
	for _, s := range have {
		byName[s.Name] = s
	}
	for _, s := range d.Create {
		serial++
		s.Name = fmt.Sprintf("web-%d", serial)
		byName[s.Name] = s
	}
	for _, s := range d.Update {
		byName[s.Name] = s
	}
	for _, s := range d.Delete {
		delete(byName, s.Name)
	}
	var out []*discoveryv1.EndpointSlice
	for _, s := range byName {
		out = append(out, s)
	}
	return out
}

// TestHints: which endpoints are meant for whom.
func TestHints(t *testing.T) {
	on := func(i int, node string, ready bool) *corev1.Pod {
		p := pod(i, ready)
		p.Spec.NodeName = node
		return p
	}
	pods := []*corev1.Pod{on(1, "a", true), on(2, "b", true), on(3, "c", true), on(4, "a", false)}
	zones := map[string]string{"a": "east", "b": "west"}
	for distribution, want := range map[string]string{
		"":               "east -; west -; - -; east -",
		"PreferClose":    "east [east]; west [west]; - -; east -",
		"PreferSameZone": "east [east]; west [west]; - -; east -",
		"PreferSameNode": "east [east] [a]; west [west] [b]; - [] [c]; east -",
	} {
		svc := service(http)
		if distribution != "" {
			svc.Spec.TrafficDistribution = &distribution
		}
		var got []string
		for _, e := range Decide(svc, pods, Places{Zones: zones}, nil).Create[0].Endpoints {
			text := "-"
			if e.Zone != nil {
				text = *e.Zone
			}
			if e.Hints == nil {
				text += " -"
			} else {
				var z, n []string
				for _, x := range e.Hints.ForZones {
					z = append(z, x.Name)
				}
				for _, x := range e.Hints.ForNodes {
					n = append(n, x.Name)
				}
				text += fmt.Sprint(" ", z)
				if n != nil {
					text += fmt.Sprint(" ", n)
				}
			}
			got = append(got, text)
		}
		if s := strings.Join(got, "; "); s != want {
			t.Errorf("%q: %q, want %q", distribution, s, want)
		}
	}
}

// TestFamilies: each family of a Service has its own slices, and one that it has no more
// loses them.
func TestFamilies(t *testing.T) {
	svc := service(http)
	svc.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}
	two, six := pod(1, true), pod(2, true)
	two.Status.PodIPs = []corev1.PodIP{{IP: two.Status.PodIP}, {IP: "fd00::1"}}
	six.Status.PodIP, six.Status.PodIPs = "fd00::2", []corev1.PodIP{{IP: "fd00::2"}}
	said := func(list []*discoveryv1.EndpointSlice) string {
		var out []string
		for _, s := range list {
			text := string(s.AddressType)
			for _, e := range s.Endpoints {
				text += " " + e.Addresses[0]
			}
			out = append(out, text)
		}
		return strings.Join(out, ", ")
	}
	d := Decide(svc, []*corev1.Pod{two, six}, Places{}, nil)
	if got := said(d.Create); got != "IPv6 fd00::1 fd00::2, IPv4 10.42.0.3" {
		t.Errorf("made: %s", got)
	}
	if got := d.Endpoints.Subsets; len(got) != 1 || len(got[0].Addresses) != 2 || got[0].Addresses[0].IP != "fd00::1" {
		t.Errorf("Endpoints are those of the first family: %+v", got)
	}
	have := d.Create
	for i, s := range have {
		s.Name = fmt.Sprint("s", i)
	}
	if d := Decide(svc, []*corev1.Pod{two, six}, Places{}, have); len(d.Create)+len(d.Update)+len(d.Delete) > 0 {
		t.Errorf("again: %+v", d)
	}
	svc.Spec.IPFamilies = svc.Spec.IPFamilies[:1]
	if d := Decide(svc, []*corev1.Pod{two, six}, Places{}, have); said(d.Delete) != "IPv4 10.42.0.3" || len(d.Create)+len(d.Update) > 0 {
		t.Errorf("one family less: %+v", d)
	}
}
