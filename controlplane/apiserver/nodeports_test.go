package apiserver

import (
	"errors"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apitypes "k8s.io/apimachinery/pkg/types"
)

// Ports asked for by number stay free for as long as others are there; every port is
// given once.
func TestNodePortsAreUnique(t *testing.T) {
	a, _ := testAddresses(t, "10.9.0.0/24")
	n := newNodePorts(a.client, a.now)
	if n.static() != 86 {
		t.Errorf("%d ports are left to who asks for one", n.static())
	}
	n.first, n.last = 30070, 30117
	given := map[int32]bool{}
	for i := range n.size() {
		port, err := n.any(t.Context(), "ns/x/1")
		if err != nil || given[port] {
			t.Fatalf("port %d: %v", port, err)
		}
		if isStatic := port < n.first+n.static(); isStatic != (i >= n.size()-n.static()) {
			t.Fatalf("port %d is number %d to be given", port, i)
		}
		given[port] = true
	}
	if _, err := n.any(t.Context(), "ns/x/1"); !errors.Is(err, errExhausted) {
		t.Errorf("a full range: %v", err)
	}
	for port, want := range map[int32]error{30080: errPortTaken, 30069: errPortOutOfRange, 30118: errPortOutOfRange} {
		if _, err := n.reserve(t.Context(), port, "ns/y/2"); !errors.Is(err, want) {
			t.Errorf("%d: %v", port, err)
		}
	}
	if taken, err := n.reserve(t.Context(), 30080, "ns/x/1"); taken || err != nil {
		t.Errorf("its own port: %v %v", taken, err)
	}
	n.release(t.Context(), "30080", "ns/x/1")
	if taken, err := n.reserve(t.Context(), 30080, "ns/y/2"); !taken || err != nil {
		t.Errorf("a port given back: %v %v", taken, err)
	}
}

func TestInUse(t *testing.T) {
	svc := func(name, ip string, port int32) corev1.Service {
		return corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: apitypes.UID(name)},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, ClusterIP: ip, Ports: []corev1.ServicePort{{NodePort: port, Protocol: corev1.ProtocolTCP}, {NodePort: port, Protocol: corev1.ProtocolUDP}}},
		}
	}
	ips, ports := inUse([]corev1.Service{svc("older", "10.43.0.5", 30001), svc("younger", "10.43.0.6", 30001), svc("none", "", 0)})
	if got := fmt.Sprint(ips, ports); got != "map[10.43.0.5:ns/older/older 10.43.0.6:ns/younger/younger] map[30001:ns/older/older]" {
		t.Error(got)
	}
}
