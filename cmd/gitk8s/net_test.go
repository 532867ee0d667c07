package main

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/policy"
)

// TestNetTrace: how ends and ports are named, and what is said of them.
func TestNetTrace(t *testing.T) {
	deny := &networkingv1.NetworkPolicy{}
	deny.Namespace, deny.Name, deny.Spec.PolicyTypes = "shop", "deny", []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	s := policy.Snapshot{
		Policies: []*networkingv1.NetworkPolicy{deny},
		Pods: []*policy.Pod{
			{Namespace: "shop", Name: "web", IPs: []netip.Addr{netip.MustParseAddr("10.42.0.2")}, Ports: []policy.Port{{Name: "http", Protocol: policy.TCP, Number: 8080}}},
			{Namespace: "other", Name: "client", IPs: []netip.Addr{netip.MustParseAddr("10.42.0.3")}},
			{Namespace: "shop", Name: "six", IPs: []netip.Addr{netip.MustParseAddr("fd00::6"), netip.MustParseAddr("10.42.0.6")}},
		},
	}
	v := testNetView()
	for _, tt := range []struct{ from, to, want string }{
		{"web", "other/client:80", "shop/web to 10.42.0.3:80: allowed"},
		{"web", "192.0.2.1:53/udp", "no policy selects it"},
		{"other/client", "web:http", "other/client to 10.42.0.2:8080: denied"},
		{"other/client", "10.42.0.2:1", "selected by shop/deny; none of them allows it"},
		{"web", "web:http", "a pod reaches itself"},
		{"gone", "web:http", "there is no pod shop/gone"},
		{"web", "nobody:http", "there is no pod shop/nobody with an address of the pod network, and no service either"},
		{"web", "front:80", "shop/web to shop/front at 10.43.0.9:80: allowed"},
		{"other/client", "shop/front:http", "shop/front at 10.43.0.9:80: allowed by 1 of 2 endpoints"},
		{"other/client", "10.43.0.9:80", "10.42.0.2:8080  shop/web      Ingress    denied"},
		{"other/client", "shop/front:81", "service shop/front has no port 81/TCP"},
		{"other/client", "shop/front:80/udp", "has no port 80/UDP"},
		{"other/client", "shop/empty:80", "refused: no endpoint is ready"},
		{"other/client", "shop/headless:80", "has no address: ask for one of its pods"},
		{"six", "[fd00::9]:53/udp", "shop/six to [fd00::9]:53: allowed"},
		{"other/client", "six:80", "other/client to 10.42.0.6:80: denied"},
		{"other/client", "[fd00::6]:80", "other/client has no address of the family of fd00::6"},
		{"web", "web:http/udp", `port "http" is no number`},
		{"web", "web:http/icmp", "none of tcp, udp and sctp"},
		{"web", "web", "missing port"},
	} {
		var b strings.Builder
		trace, err := traceNet(s, v, "shop", tt.from, tt.to)
		if err == nil {
			err = writeTrace(&b, trace)
		}
		if err != nil {
			b.WriteString(err.Error())
		}
		if !strings.Contains(b.String(), tt.want) {
			t.Errorf("%s to %s: %q, want %q", tt.from, tt.to, b.String(), tt.want)
		}
	}
}

// testNetView has a service with two endpoints, one without any, a headless one, and two
// nodes.
func testNetView() *netView {
	service := func(name, ip string, age time.Duration) *corev1.Service {
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1e9, 0).Add(-age))},
			Spec:       corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}, Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}},
		}
	}
	front := service("front", "10.43.0.9", 0)
	front.Spec.Type, front.Spec.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, corev1.ServiceExternalTrafficPolicyLocal
	front.Spec.Ports[0].NodePort = 30080
	external := service("external", "", 0)
	external.Spec.Type, external.Spec.ExternalName = corev1.ServiceTypeExternalName, "db.example.com"
	return &netView{
		services: []*corev1.Service{front, service("empty", "10.43.0.8", 0), service("headless", corev1.ClusterIPNone, 0), external},
		slices: []*discoveryv1.EndpointSlice{{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Labels: map[string]string{discoveryv1.LabelServiceName: "front"}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8080)}},
			Endpoints: []discoveryv1.Endpoint{
				{Addresses: []string{"10.42.0.2"}, NodeName: ptr.To("one")}, {Addresses: []string{"10.42.1.9"}, NodeName: ptr.To("two")},
			},
		}},
		nodes: []netNode{{Place: network.Place{Node: "one"}}, {Place: network.Place{Node: "two"}}},
		pods: []*corev1.Pod{{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Status: corev1.PodStatus{PodIP: "10.42.0.2"},
			Spec: corev1.PodSpec{NodeName: "one", Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{HostPort: 8088, ContainerPort: 8080}}}}},
		}},
	}
}

// TestNetServices: what nodes should do is compared with what their kernels do.
func TestNetServices(t *testing.T) {
	v := testNetView()
	at := netip.MustParseAddrPort
	both := []netip.AddrPort{at("10.42.0.2:8080"), at("10.42.1.9:8080")}
	cluster := network.Installed{IP: netip.MustParseAddr("10.43.0.9"), Port: 80, Proto: network.TCP, Endpoints: both}
	port := network.Installed{IP: network.AnyNodeAddress, Port: 30080, Proto: network.TCP, Endpoints: both[:1], Inside: both}
	v.nodes[0].state = &networkState{Services: []network.Installed{cluster, port}}
	cluster.Endpoints = both[1:]
	v.nodes[1].state = &networkState{Services: []network.Installed{cluster, {IP: port.IP, Port: port.Port, Proto: port.Proto, Endpoints: both[1:], Inside: both}}}
	check := func(want string) {
		t.Helper()
		var b strings.Builder
		if err := writeRoutes(&b, v.routes()); err != nil {
			t.Fatal(err)
		}
		var got []string
		for line := range strings.Lines(b.String()) {
			got = append(got, strings.Join(strings.Fields(line), " "))
		}
		if got := strings.Join(got, "\n"); got != want {
			t.Errorf("%s\nwant:\n%s", got, want)
		}
	}
	check(`SERVICE ADDRESS ENDPOINTS NODES KERNEL NOTES
shop/empty:http 10.43.0.8:80/TCP - one,two in place refused: no endpoint is ready
shop/external none - - - its name stands for db.example.com
shop/front:http 10.43.0.9:80/TCP 10.42.0.2:8080,10.42.1.9:8080 one in place -
shop/front:http *:30080/TCP 10.42.0.2:8080 (inside: 10.42.0.2:8080,10.42.1.9:8080) one in place from outside to this node's endpoints alone
shop/front:http 10.43.0.9:80/TCP 10.42.0.2:8080,10.42.1.9:8080 two leads to 10.42.1.9:8080 -
shop/front:http *:30080/TCP 10.42.1.9:8080 (inside: 10.42.0.2:8080,10.42.1.9:8080) two in place from outside to this node's endpoints alone
shop/headless none - - - its name leads to the pods themselves
shop/web *:8088/TCP 10.42.0.2:8080 one leads nowhere -`)
	v.services, v.nodes[0].err = v.services[1:2], errors.New("no route to host")
	check(`SERVICE ADDRESS ENDPOINTS NODES KERNEL NOTES
shop/empty:http 10.43.0.8:80/TCP - one unknown: no route to host refused: no endpoint is ready
shop/empty:http 10.43.0.8:80/TCP - two in place refused: no endpoint is ready
shop/web *:8088/TCP 10.42.0.2:8080 one unknown: no route to host -`)
}

// TestNetPolicies: peers by name, and whether the node enforces it.
func TestNetPolicies(t *testing.T) {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}, Spec: networkingv1.NetworkPolicySpec{
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
		Ingress: []networkingv1.NetworkPolicyIngressRule{
			{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}}},
			{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "192.0.2.0/24"}}}, Ports: []networkingv1.NetworkPolicyPort{{}}},
		},
	}}
	web := &policy.Pod{Namespace: "shop", Name: "web", IPs: []netip.Addr{netip.MustParseAddr("10.42.0.2")}}
	s := policy.Snapshot{Policies: []*networkingv1.NetworkPolicy{p}, Pods: []*policy.Pod{web}}
	pods := []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.PodSpec{NodeName: "one"}}}
	nodes := []netNode{{Place: network.Place{Node: "one"}, state: &networkState{Policies: policy.Installed{Ingress: web.IPs}}}}
	var b strings.Builder
	if err := writeHeldPods(&b, heldPods(s, func(*policy.Pod) bool { return true }, pods, nodes)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"shop/web  one   Ingress    shop/p    shop/web, 192.0.2.0-192.0.2.255 any port/TCP  yes",
		"shop/web  one   Egress     shop/p    nothing                                       no",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%s\nwant %s", b.String(), want)
		}
	}
}
