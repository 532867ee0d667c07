package network

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
)

func TestCompileRefuses(t *testing.T) {
	ok := Service{IP: netip.MustParseAddr("10.43.0.5"), Port: 80, Proto: TCP}
	for name, edit := range map[string]func(*Service){
		"IPv6":          func(s *Service) { s.IP = netip.MustParseAddr("fd00::1") },
		"no port":       func(s *Service) { s.Port = 0 },
		"SCTP":          func(s *Service) { s.Proto = 132 },
		"IPv6 endpoint": func(s *Service) { s.Endpoints = []netip.AddrPort{netip.MustParseAddrPort("[fd00::1]:80")} },
		"endpoint without port": func(s *Service) {
			s.Endpoints = []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("10.42.0.5"), 0)}
		},
		"too many": func(s *Service) { s.Endpoints = make([]netip.AddrPort, maxEndpoints+1) },
	} {
		s := ok
		edit(&s)
		if _, err := compile(State{Services: []Service{s}}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := compile(State{Services: []Service{ok, ok}}); err == nil {
		t.Error("twice: taken")
	}
}

// TestDiff: a table with the difference applied to it is the other table, and no
// slot is both kept and touched.
func TestDiff(t *testing.T) {
	draw := rapid.Custom(func(t *rapid.T) *table {
		var s State
		for i := range rapid.IntRange(0, 4).Draw(t, "services") {
			svc := Service{IP: netip.AddrFrom4([4]byte{10, 43, 0, byte(i)}), Port: 80, Proto: rapid.SampledFrom([]Protocol{TCP, UDP}).Draw(t, "proto"), Affinity: rapid.Bool().Draw(t, "affinity")}
			for _, e := range rapid.SliceOfNDistinct(rapid.ByteRange(1, 6), 0, 4, rapid.ID[byte]).Draw(t, "endpoints") {
				svc.Endpoints = append(svc.Endpoints, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 42, 0, e}), 8080))
			}
			s.Services = append(s.Services, svc)
		}
		out, err := compile(s)
		if err != nil {
			t.Fatal(err)
		}
		return out
	})
	rapid.Check(t, func(t *rapid.T) {
		old, now := draw.Draw(t, "old"), draw.Draw(t, "now")
		c := now.diff(old)
		for _, k := range c.delSlots {
			delete(old.slots, k)
		}
		for _, k := range c.addSlots {
			if _, there := old.slots[k]; there {
				t.Fatalf("adds %v, which is there", k)
			}
			old.slots[k] = now.slots[k]
		}
		for _, k := range c.delServing {
			delete(old.serving, k)
		}
		for _, k := range c.addServing {
			old.serving[k] = true
		}
		for _, k := range c.delHairpins {
			delete(old.hairpins, k)
		}
		for _, k := range c.addHairpins {
			old.hairpins[k] = true
		}
		if !reflect.DeepEqual(old.slots, now.slots) || !reflect.DeepEqual(old.serving, now.serving) || !reflect.DeepEqual(old.hairpins, now.hairpins) {
			t.Fatalf("applied: %+v, want %+v", old, now)
		}
		if again := now.diff(now); !again.empty() || len(again.stale) > 0 {
			t.Fatalf("a difference to itself: %+v", again)
		}
	})
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
		{"no slices", service(nil), nil, "[]"},
	} {
		got := Desired("node-1", []*corev1.Service{c.svc}, c.slices)
		if len(got.Services) != 1 || fmt.Sprint(got.Services[0].Endpoints) != c.want {
			t.Errorf("%s: %+v, want %s", c.name, got, c.want)
		}
	}
	for name, edit := range map[string]func(*corev1.Service){
		"headless":     func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone },
		"no address":   func(s *corev1.Service) { s.Spec.ClusterIP = "" },
		"ExternalName": func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName },
		"SCTP":         func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolSCTP },
	} {
		if got := Desired("node-1", []*corev1.Service{service(edit)}, nil); len(got.Services) != 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
	affine := Desired("n", []*corev1.Service{service(func(s *corev1.Service) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.Ports[0].Protocol = corev1.ProtocolUDP
	})}, nil)
	if s := affine.Services[0]; !s.Affinity || s.Proto != UDP || s.Port != 80 {
		t.Errorf("%+v", s)
	}
}
