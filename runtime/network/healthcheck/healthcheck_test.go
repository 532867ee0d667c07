package healthcheck

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func TestDesired(t *testing.T) {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeLoadBalancer, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, HealthCheckNodePort: 30099,
	}}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.42.1.1"}, NodeName: ptr.To("here")},
			{Addresses: []string{"10.42.1.2"}, NodeName: ptr.To("here"), Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false)}},
			{Addresses: []string{"10.42.2.1"}, NodeName: ptr.To("there")},
		},
	}
	cluster := svc.DeepCopy()
	cluster.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	six := slice.DeepCopy() // the same pods by their other addresses
	six.AddressType, six.Endpoints[0].Addresses = discoveryv1.AddressTypeIPv6, []string{"fd00::1"}
	slices := []*discoveryv1.EndpointSlice{slice, slice, six}
	for node, want := range map[string]int{"here": 1, "elsewhere": 0} {
		got := Desired(node, []*corev1.Service{svc, cluster}, slices)
		if len(got) != 1 || got[30099] != (Check{"ns", "web", want}) {
			t.Errorf("%s: %+v", node, got)
		}
	}
}

func TestServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	_ = l.Close() // free, and nobody else takes it so soon
	s := New("")
	defer s.Close()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for n, code := range map[int]int{0: 503, 2: 200} {
		if err := s.Apply(map[uint16]Check{at.Port(): {"ns", "web", n}}); err != nil {
			t.Fatal(err)
		}
		resp, err := client.Get("http://" + at.String() + "/")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		want := fmt.Sprintf(`{"service":{"namespace":"ns","name":"web"},"localEndpoints":%d,"serviceProxyHealthy":true}`, n)
		if resp.StatusCode != code || strings.TrimSpace(string(body)) != want || resp.Header.Get("X-Load-Balancing-Endpoint-Weight") != fmt.Sprint(n) {
			t.Errorf("%d: %d %s", n, resp.StatusCode, body)
		}
	}
	if err := s.Apply(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Get("http://" + at.String() + "/"); err == nil {
		t.Error("a port without a service is open")
	}
}
