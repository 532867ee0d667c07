package network

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
)

func TestCompileRefuses(t *testing.T) {
	ok := Service{IP: netip.MustParseAddr("10.43.0.5"), Port: 80, Proto: TCP}
	for name, edit := range map[string]func(*Service){
		"no address":     func(s *Service) { s.IP = netip.Addr{} },
		"no port":        func(s *Service) { s.Port = 0 },
		"other protocol": func(s *Service) { s.Proto = 1 },
		"IPv6 endpoint":  func(s *Service) { s.Endpoints = []netip.AddrPort{netip.MustParseAddrPort("[fd00::1]:80")} },
		"endpoint without port": func(s *Service) {
			s.Endpoints = []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("10.42.0.5"), 0)}
		},
		"too many": func(s *Service) { s.Endpoints = make([]netip.AddrPort, maxEndpoints+1) },
	} {
		s := ok
		edit(&s)
		if _, err := compile(State{Services: []Service{s}}, newTable(serviceCIDR)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := compile(State{Services: []Service{ok, ok}}, newTable(serviceCIDR)); err == nil {
		t.Error("twice: taken")
	}
}

// states are those with a few services and endpoints.
var states = rapid.Custom(func(t *rapid.T) State {
	var s State
	for i := range rapid.IntRange(0, 4).Draw(t, "services") {
		svc := Service{IP: netip.AddrFrom4([4]byte{10, 43, 0, byte(i)}), Port: 80, Proto: rapid.SampledFrom([]Protocol{TCP, UDP}).Draw(t, "proto"), Affinity: rapid.SampledFrom([]time.Duration{0, time.Minute, time.Hour}).Draw(t, "affinity"), NodeLocal: rapid.Bool().Draw(t, "local")}
		for _, e := range rapid.SliceOfNDistinct(rapid.ByteRange(1, 6), 0, 4, rapid.ID[byte]).Draw(t, "endpoints") {
			at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 42, 0, e}), 8080)
			svc.Inside = append(svc.Inside, at)
			if !svc.NodeLocal || e < 4 {
				svc.Endpoints = append(svc.Endpoints, at)
			}
		}
		if i == 3 {
			svc.IP, svc.Masquerade, svc.Sources = AnyNodeAddress, true, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		}
		s.Services = append(s.Services, svc)
	}
	return s
})

// TestDiff: what the differences lead to is the same as what is built anew; nothing is
// deleted that is not there, or added that is. At every step a service that has
// endpoints before and after has some, by the rules from before it and by those after.
func TestDiff(t *testing.T) {
	compiled := func(t *rapid.T, s State, before *table) *table {
		t.Helper()
		out, err := compile(s, before)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	rapid.Check(t, func(t *rapid.T) {
		then, next := states.Draw(t, "old"), states.Draw(t, "now")
		old := compiled(t, then, newTable(serviceCIDR))
		now := compiled(t, next, old)
		kernel := apply(t, map[set]map[string]string{}, old.diff(newTable(serviceCIDR)))
		rules := old
		for _, s := range now.steps(old) {
			kernel = apply(t, kernel, s.change)
			after := &table{groups: s.groups}
			if s.rules != !maps.Equal(rules.groups, after.groups) {
				t.Fatalf("the rules change: %v, from %v to %v", s.rules, rules.groups, after.groups)
			}
			for key, p := range now.parts {
				for _, g := range p.groups {
					if was := old.parts[key]; was == nil || !slices.ContainsFunc(was.groups, func(o group) bool { return o.inside == g.inside }) {
						continue
					}
					if !drawn(kernel, rules, key, g.inside) || !drawn(kernel, after, key, g.inside) {
						t.Fatalf("%v has no endpoints for a while, by %v or %v, with %v", key, rules.groups, after.groups, kernel[slots])
					}
				}
			}
			rules = after
		}
		if !maps.Equal(rules.groups, now.groups) {
			t.Fatalf("the rules are for %v, want %v", rules.groups, now.groups)
		}
		want := apply(t, map[set]map[string]string{}, compiled(t, next, newTable(serviceCIDR)).diff(newTable(serviceCIDR)))
		if !reflect.DeepEqual(kernel, want) {
			t.Fatalf("applied: %v, want %v", kernel, want)
		}
		if again := compiled(t, next, now).diff(now); !again.empty() || len(again.stale) > 0 {
			t.Fatalf("a difference to itself: %+v", again)
		}
	})
}

// drawn says whether one of the rules finds an endpoint, whatever number it draws.
func drawn(kernel map[set]map[string]string, rules *table, key portKey, inside bool) bool {
	for _, g := range rules.sortedGroups() {
		all := g.inside == inside
		for i := range g.n {
			_, there := kernel[slots][string(key.bytes())+string(g.slot(int(i)))]
			all = all && there
		}
		if all {
			return true
		}
	}
	return false
}

// apply does to sets of elements what the kernel does.
func apply(t *rapid.T, kernel map[set]map[string]string, c *change) map[set]map[string]string {
	for i := range setCount {
		for _, e := range c.del[i] {
			if _, there := kernel[i][e.key]; !there {
				t.Fatalf("deletes %q, which is not there", e.key)
			}
			delete(kernel[i], e.key)
		}
		for _, e := range c.add[i] {
			if kernel[i] == nil {
				kernel[i] = map[string]string{}
			}
			if _, there := kernel[i][e.key]; there {
				t.Fatalf("adds %q, which is there", e.key)
			}
			kernel[i][e.key] = e.value
		}
		if len(kernel[i]) == 0 {
			delete(kernel, i)
		}
	}
	return kernel
}

func ptr[T any](v T) *T { return &v }

func TestDesired(t *testing.T) {
	service := func(edit func(*corev1.Service)) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{
			ClusterIP: "10.43.0.5", Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
		}}
		if edit != nil {
			edit(s)
		}
		return s
	}
	endpoint := func(last int, ready, serving, terminating *bool) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{
			Addresses: []string{fmt.Sprintf("10.42.1.%d", last)}, NodeName: ptr(fmt.Sprintf("node-%d", last%2)),
			Conditions: discoveryv1.EndpointConditions{Ready: ready, Serving: serving, Terminating: terminating},
		}
	}
	slice := func(port string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
			AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints,
			Ports: []discoveryv1.EndpointPort{{Name: ptr(port), Port: ptr(int32(8080))}},
		}
	}
	yes, no := ptr(true), ptr(false)
	other := slice("http", endpoint(9, yes, yes, no))
	other.Namespace = "other"
	v6 := slice("http", endpoint(9, yes, yes, no))
	v6.AddressType = discoveryv1.AddressTypeIPv6
	hinted := func(last int, zone, node string) discoveryv1.Endpoint {
		e := endpoint(last, yes, yes, no)
		e.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}}
		if node != "" {
			e.Hints.ForNodes = []discoveryv1.ForNode{{Name: node}}
		}
		return e
	}
	for _, c := range []struct {
		name   string
		svc    *corev1.Service
		slices []*discoveryv1.EndpointSlice
		want   string
	}{
		{"ready ones", service(nil), []*discoveryv1.EndpointSlice{slice("http", endpoint(1, yes, yes, no), endpoint(2, no, no, no)), slice("http", endpoint(3, yes, yes, no))}, "[10.42.1.1:8080 10.42.1.3:8080]"},
		{"unknown is ready", service(nil), []*discoveryv1.EndpointSlice{slice("http", endpoint(1, nil, nil, nil))}, "[10.42.1.1:8080]"},
		{"terminating ones while others are ready", service(nil), []*discoveryv1.EndpointSlice{slice("http", endpoint(1, no, yes, yes), endpoint(2, yes, yes, no))}, "[10.42.1.2:8080]"},
		{"terminating ones alone", service(nil), []*discoveryv1.EndpointSlice{slice("http", endpoint(1, no, yes, yes), endpoint(2, no, no, yes))}, "[10.42.1.1:8080]"},
		{"not ready ones published", service(func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }), []*discoveryv1.EndpointSlice{slice("http", endpoint(1, no, no, no))}, "[10.42.1.1:8080]"},
		{"other port name", service(nil), []*discoveryv1.EndpointSlice{slice("metrics", endpoint(1, yes, yes, no))}, "[]"},
		{"other namespace, other family", service(nil), []*discoveryv1.EndpointSlice{other, v6}, "[]"},
		{"local policy", service(func(s *corev1.Service) { s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal) }), []*discoveryv1.EndpointSlice{slice("http", endpoint(1, yes, yes, no), endpoint(2, yes, yes, no))}, "[10.42.1.1:8080]"},
		{"local policy, terminating ones alone", service(func(s *corev1.Service) { s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal) }), []*discoveryv1.EndpointSlice{slice("http", endpoint(1, no, yes, yes), endpoint(2, yes, yes, no))}, "[10.42.1.1:8080]"},
		{"no slices", service(nil), nil, "[]"},
		{"own zone", service(nil), []*discoveryv1.EndpointSlice{slice("http", hinted(1, "a", ""), hinted(2, "b", ""))}, "[10.42.1.1:8080]"},
		{"nothing in the zone", service(nil), []*discoveryv1.EndpointSlice{slice("http", hinted(1, "c", ""), hinted(2, "b", ""))}, "[10.42.1.1:8080 10.42.1.2:8080]"},
		{"one without a hint", service(nil), []*discoveryv1.EndpointSlice{slice("http", hinted(1, "a", ""), endpoint(2, yes, yes, no))}, "[10.42.1.1:8080 10.42.1.2:8080]"},
		{"own node before the zone", service(nil), []*discoveryv1.EndpointSlice{slice("http", hinted(1, "a", "node-1"), hinted(2, "a", "node-0"))}, "[10.42.1.1:8080]"},
		{"nothing on the node", service(nil), []*discoveryv1.EndpointSlice{slice("http", hinted(1, "a", "node-3"), hinted(2, "b", "node-0"))}, "[10.42.1.1:8080]"},
	} {
		got := Desired(Place{Node: "node-1", Zone: "a"}, []*corev1.Service{c.svc}, c.slices)
		if len(got.Services) != 1 || fmt.Sprint(got.Services[0].Endpoints) != c.want {
			t.Errorf("%s: %+v, want %s", c.name, got, c.want)
		}
	}
	for name, edit := range map[string]func(*corev1.Service){
		"headless":     func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone },
		"no address":   func(s *corev1.Service) { s.Spec.ClusterIP = "" },
		"ExternalName": func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName },
	} {
		if got := Desired(Place{Node: "node-1"}, []*corev1.Service{service(edit)}, nil); len(got.Services) != 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
	affine := Desired(Place{Node: "n"}, []*corev1.Service{service(func(s *corev1.Service) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.Ports[0].Protocol = corev1.ProtocolUDP
	})}, nil)
	if s := affine.Services[0]; s.Affinity != 3*time.Hour || s.Proto != UDP || s.Port != 80 {
		t.Errorf("%+v", s)
	}
}

// TestDesiredFronts: at which addresses a service is reached, and by whom.
func TestDesiredFronts(t *testing.T) {
	base := func(name string, edit func(*corev1.Service)) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.ServiceSpec{
			ClusterIP: "10.43.0.5", Type: corev1.ServiceTypeLoadBalancer,
			Ports: []corev1.ServicePort{{Port: 80, NodePort: 30080, Protocol: corev1.ProtocolTCP}},
		}}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "10.41.0.240"}, {IP: "10.41.0.241", IPMode: ptr(corev1.LoadBalancerIPModeProxy)}, {Hostname: "lb"}}
		if edit != nil {
			edit(s)
		}
		return s
	}
	eps := []*discoveryv1.EndpointSlice{{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: ptr(""), Port: ptr(int32(8080))}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.42.1.1"}, NodeName: ptr("here")}, {Addresses: []string{"10.42.2.2"}, NodeName: ptr("there")}},
	}}
	for _, c := range []struct {
		name string
		svcs []*corev1.Service
		want []string
	}{
		{"load balancer", []*corev1.Service{base("web", nil)}, []string{
			"10.43.0.5:80 [10.42.1.1:8080 10.42.2.2:8080]", "10.41.0.240:80 masquerade [10.42.1.1:8080 10.42.2.2:8080]", "0.0.0.0:30080 masquerade [10.42.1.1:8080 10.42.2.2:8080]",
		}},
		{"local", []*corev1.Service{base("web", func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal })}, []string{
			"10.43.0.5:80 [10.42.1.1:8080 10.42.2.2:8080]", "10.41.0.240:80 local [10.42.1.1:8080] inside [10.42.1.1:8080 10.42.2.2:8080]", "0.0.0.0:30080 local [10.42.1.1:8080] inside [10.42.1.1:8080 10.42.2.2:8080]",
		}},
		{"source ranges", []*corev1.Service{base("web", func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{"10.0.0.0/8", "fd00::/8"}
			s.Spec.Ports[0].NodePort = 0
		})}, []string{"10.43.0.5:80 [10.42.1.1:8080 10.42.2.2:8080]", "10.41.0.240:80 masquerade [10.42.1.1:8080 10.42.2.2:8080] from [10.0.0.0/8]"}},
		{"source ranges of another family", []*corev1.Service{base("web", func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{"fd00::/8"}
			s.Spec.Ports[0].NodePort = 0
		})}, []string{"10.43.0.5:80 [10.42.1.1:8080 10.42.2.2:8080]", "10.41.0.240:80 masquerade [10.42.1.1:8080 10.42.2.2:8080] from [0.0.0.0/32]"}},
		{"external addresses", []*corev1.Service{base("web", func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ExternalIPs = corev1.ServiceTypeClusterIP, []string{"192.0.2.7", "2001:db8::7"}
		})}, []string{"10.43.0.5:80 [10.42.1.1:8080 10.42.2.2:8080]", "192.0.2.7:80 masquerade [10.42.1.1:8080 10.42.2.2:8080]"}},
		{"twice the same port of an address", []*corev1.Service{
			base("younger", func(s *corev1.Service) {
				s.CreationTimestamp, s.Spec.ClusterIP, s.Spec.Ports[0].NodePort = metav1.NewTime(time.Unix(9, 0)), "10.43.0.6", 0
			}),
			base("web", func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 0 }),
		}, []string{
			"10.43.0.5:80 [10.42.1.1:8080 10.42.2.2:8080]", "10.41.0.240:80 masquerade [10.42.1.1:8080 10.42.2.2:8080]", "10.43.0.6:80 []",
		}},
	} {
		var got []string
		for _, s := range Desired(Place{Node: "here"}, c.svcs, eps).Services {
			text := fmt.Sprintf("%s:%d ", s.IP, s.Port)
			if s.Masquerade {
				text += "masquerade "
			}
			if s.NodeLocal {
				text += "local "
			}
			text += fmt.Sprint(s.Endpoints)
			if s.NodeLocal {
				text += fmt.Sprint(" inside ", s.Inside)
			}
			if len(s.Sources) > 0 {
				text += fmt.Sprint(" from ", s.Sources)
			}
			got = append(got, text)
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\n%q, want\n%q", c.name, got, c.want)
		}
	}
}

func TestOutermost(t *testing.T) {
	p := netip.MustParsePrefix
	got := outermost([]netip.Prefix{p("10.1.2.3/32"), p("10.1.0.0/16"), p("10.1.0.0/16"), p("10.2.5.0/16"), p("192.0.2.1/24")})
	if fmt.Sprint(got) != "[10.1.0.0/16 10.2.0.0/16 192.0.2.0/24]" {
		t.Error(got)
	}
}
