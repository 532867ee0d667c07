package network

import (
	"net/netip"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestHostPorts(t *testing.T) {
	pod := func(ip string, ports ...corev1.ContainerPort) *corev1.Pod {
		p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: ports}}}}
		p.Status.PodIP = ip
		return p
	}
	ended := pod("10.42.0.9", corev1.ContainerPort{HostPort: 99, ContainerPort: 99})
	ended.Status.Phase = corev1.PodFailed
	onHost := pod("10.41.0.11", corev1.ContainerPort{HostPort: 98, ContainerPort: 98})
	onHost.Spec.HostNetwork = true
	before := State{Services: []Service{
		{IP: AnyNodeAddress, Port: 30080, Proto: TCP, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("10.42.1.1:80")}},
		{IP: AnyNodeAddress, Port: 30081, Proto: TCP},
	}}
	both := pod("fd00::4", corev1.ContainerPort{HostPort: 90, ContainerPort: 3}, corev1.ContainerPort{HostPort: 91, HostIP: "fd00::b", ContainerPort: 4})
	both.Status.PodIPs = []corev1.PodIP{{IP: "fd00::4"}, {IP: "10.42.0.4"}}
	got := before.WithHostPorts([]*corev1.Pod{
		pod("10.42.0.2", corev1.ContainerPort{HostPort: 80, ContainerPort: 8080}, corev1.ContainerPort{HostPort: 30080, ContainerPort: 1}, corev1.ContainerPort{ContainerPort: 7}),
		pod("10.42.0.3", corev1.ContainerPort{HostPort: 80, ContainerPort: 53, Protocol: corev1.ProtocolUDP}, corev1.ContainerPort{HostPort: 81, HostIP: "10.41.0.11", ContainerPort: 2}),
		pod("", corev1.ContainerPort{HostPort: 97, ContainerPort: 97}), ended, onHost, both,
	})
	to := func(s string) []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort(s)} }
	want := State{Services: []Service{
		{IP: AnyNodeAddress, Port: 30081, Proto: TCP},
		{IP: AnyNodeAddress, Port: 80, Proto: TCP, Endpoints: to("10.42.0.2:8080")},
		{IP: AnyNodeAddress, Port: 30080, Proto: TCP, Endpoints: to("10.42.0.2:1")},
		{IP: AnyNodeAddress, Port: 80, Proto: UDP, Endpoints: to("10.42.0.3:53")},
		{IP: netip.MustParseAddr("10.41.0.11"), Port: 81, Proto: TCP, Endpoints: to("10.42.0.3:2")},
		{IP: AnyNodeAddress6, Port: 90, Proto: TCP, Endpoints: to("[fd00::4]:3")},
		{IP: netip.MustParseAddr("fd00::b"), Port: 91, Proto: TCP, Endpoints: to("[fd00::4]:4")},
		{IP: AnyNodeAddress, Port: 90, Proto: TCP, Endpoints: to("10.42.0.4:3")},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if len(before.Services) != 2 || before.Services[0].Port != 30080 {
		t.Errorf("the state before has changed: %+v", before)
	}
}
