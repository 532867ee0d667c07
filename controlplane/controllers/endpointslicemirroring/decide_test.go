package endpointslicemirroring

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestDecide(t *testing.T) {
	svc := func(selector map[string]string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db"}, Spec: corev1.ServiceSpec{Selector: selector}}
	}
	endpoints := func(edit func(*corev1.Endpoints)) *corev1.Endpoints {
		e := &corev1.Endpoints{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db", UID: "u", Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d", corev1.LastAppliedConfigAnnotation: "{}"}},
			Subsets: []corev1.EndpointSubset{{
				Addresses: []corev1.EndpointAddress{{IP: "192.0.2.1"}, {IP: "192.0.2.2", Hostname: "two"}}, NotReadyAddresses: []corev1.EndpointAddress{{IP: "192.0.2.3"}},
				Ports: []corev1.EndpointPort{{Name: "sql", Port: 5432}},
			}},
		}
		if edit != nil {
			edit(e)
		}
		return e
	}
	text := func(s *discoveryv1.EndpointSlice) string {
		var b strings.Builder
		fmt.Fprint(&b, sliceKey(s))
		for _, e := range s.Endpoints {
			fmt.Fprintf(&b, " %s=%v", e.Addresses[0], *e.Conditions.Ready)
		}
		return b.String()
	}
	first := Decide(svc(nil), endpoints(nil), nil)
	if len(first.Create) != 1 || text(first.Create[0]) != "IPv4;sql/TCP/5432 192.0.2.1=true 192.0.2.2=true 192.0.2.3=false" {
		t.Fatalf("%+v", first)
	}
	s := first.Create[0]
	s.Name = "db-x"
	if got := fmt.Sprint(s.Labels, s.Annotations, s.OwnerReferences[0].Kind, *s.OwnerReferences[0].Controller); got !=
		"map[a:b endpointslice.kubernetes.io/managed-by:endpointslicemirroring-controller.gitk8s.dev kubernetes.io/service-name:db] map[c:d]Endpointstrue" {
		t.Error(got)
	}
	existing := []*discoveryv1.EndpointSlice{s}
	for name, c := range map[string]struct {
		svc  *corev1.Service
		e    *corev1.Endpoints
		want string
	}{
		"the same":        {svc(nil), endpoints(nil), ""},
		"another address": {svc(nil), endpoints(func(e *corev1.Endpoints) { e.Subsets[0].Addresses = e.Subsets[0].Addresses[:1] }), "update IPv4;sql/TCP/5432 192.0.2.1=true 192.0.2.3=false"},
		"another port":    {svc(nil), endpoints(func(e *corev1.Endpoints) { e.Subsets[0].Ports[0].Port = 1 }), "create IPv4;sql/TCP/1 192.0.2.1=true 192.0.2.2=true 192.0.2.3=false, delete db-x"},
		"another family": {svc(nil), endpoints(func(e *corev1.Endpoints) {
			e.Subsets[0].Addresses, e.Subsets[0].NotReadyAddresses = []corev1.EndpointAddress{{IP: "2001:db8::1"}}, nil
		}), "create IPv6;sql/TCP/5432 2001:db8::1=true, delete db-x"},
		"a subset more": {svc(nil), endpoints(func(e *corev1.Endpoints) {
			e.Subsets = append(e.Subsets, corev1.EndpointSubset{Addresses: []corev1.EndpointAddress{{IP: "192.0.2.1"}}, Ports: e.Subsets[0].Ports}, corev1.EndpointSubset{Addresses: []corev1.EndpointAddress{{IP: "192.0.2.9"}}})
		}), "create IPv4 192.0.2.9=true"},
		"a selector":   {svc(map[string]string{"a": "b"}), endpoints(nil), "delete db-x"},
		"no service":   {nil, endpoints(nil), "delete db-x"},
		"no endpoints": {svc(nil), nil, "delete db-x"},
		"not wanted":   {svc(nil), endpoints(func(e *corev1.Endpoints) { e.Labels[discoveryv1.LabelSkipMirror] = "true" }), "delete db-x"},
		"a lock":       {svc(nil), endpoints(func(e *corev1.Endpoints) { e.Annotations[leaderAnnotation] = "{}" }), "delete db-x"},
	} {
		d := Decide(c.svc, c.e, existing)
		var got []string
		for _, s := range d.Create {
			got = append(got, "create "+text(s))
		}
		for _, s := range d.Update {
			got = append(got, "update "+text(s))
		}
		for _, s := range d.Delete {
			got = append(got, "delete "+s.Name)
		}
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
