package expose

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/runtime/network"
)

func service(name string, age int64, kind corev1.ServiceType, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(time.Unix(age, 0))},
		Spec:       corev1.ServiceSpec{Type: kind, Ports: ports},
	}
}

func node(name, ip string, ready corev1.ConditionStatus) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{
		Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}, {Type: corev1.NodeHostName, Address: name}},
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}},
	}}
}

func TestDecide(t *testing.T) {
	tcp := corev1.ServicePort{Port: 80, NodePort: 30080, Protocol: corev1.ProtocolTCP}
	bare := corev1.ServicePort{Port: 80, Protocol: corev1.ProtocolTCP}
	nodes := []*corev1.Node{node("a", "10.41.0.11", corev1.ConditionTrue), node("b", "10.41.0.12", corev1.ConditionTrue), node("c", "10.41.0.13", corev1.ConditionUnknown)}
	on := func(svc string, nodes ...string) *discoveryv1.EndpointSlice {
		s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: svc}}, AddressType: discoveryv1.AddressTypeIPv4}
		for _, n := range nodes {
			e := discoveryv1.Endpoint{Addresses: []string{"10.42.1.1"}}
			if n != "" {
				e.NodeName = ptr.To(strings.TrimSuffix(n, "-unready"))
			}
			if strings.HasSuffix(n, "-unready") {
				e.Conditions.Ready = ptr.To(false)
			}
			s.Endpoints = append(s.Endpoints, e)
		}
		return s
	}
	balanced := func(svc *corev1.Service, ips ...string) *corev1.Service {
		for _, ip := range ips {
			svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
		}
		return svc
	}
	local := service("web", 1, corev1.ServiceTypeNodePort, tcp)
	local.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	for name, c := range map[string]struct {
		services []*corev1.Service
		slice    *discoveryv1.EndpointSlice
		want     string
	}{
		"cluster IP":              {[]*corev1.Service{service("web", 1, corev1.ServiceTypeClusterIP, bare)}, on("web", "a"), ""},
		"node port":               {[]*corev1.Service{service("web", 1, corev1.ServiceTypeNodePort, tcp)}, on("web", "a"), "30080/TCP web [10.41.0.11:30080]"},
		"where endpoints are":     {[]*corev1.Service{service("web", 1, corev1.ServiceTypeNodePort, tcp)}, on("web", "b", "c", "a-unready"), "30080/TCP web [10.41.0.12:30080]"},
		"no endpoints":            {[]*corev1.Service{service("web", 1, corev1.ServiceTypeNodePort, tcp)}, on("web"), "30080/TCP web []"},
		"endpoints on no node":    {[]*corev1.Service{service("web", 1, corev1.ServiceTypeNodePort, tcp)}, on("web", ""), "30080/TCP web [10.41.0.11:30080 10.41.0.12:30080]"},
		"endpoints on none,local": {[]*corev1.Service{local}, on("web", ""), "30080/TCP web []"},
		"SCTP":                    {[]*corev1.Service{service("web", 1, corev1.ServiceTypeNodePort, corev1.ServicePort{NodePort: 30080, Protocol: corev1.ProtocolSCTP})}, on("web", "a"), "30080/SCTP of web is not carried"},
		"balancer of node addresses": {
			[]*corev1.Service{balanced(service("web", 1, corev1.ServiceTypeLoadBalancer, tcp), "10.41.0.11", "10.41.0.12")}, on("web", "b"),
			"30080/TCP web [10.41.0.12:30080]; 80/TCP web [10.41.0.12:80]",
		},
		"balancer with an address": {[]*corev1.Service{balanced(service("web", 1, corev1.ServiceTypeLoadBalancer, bare), "10.41.0.240")}, on("web", "b"), "80/TCP web [10.41.0.240:80]"},
		"balancer without":         {[]*corev1.Service{service("web", 1, corev1.ServiceTypeLoadBalancer, bare)}, on("web", "b"), ""},
		"two balancers": {
			[]*corev1.Service{balanced(service("late", 2, corev1.ServiceTypeLoadBalancer, bare), "10.41.0.241"), balanced(service("web", 1, corev1.ServiceTypeLoadBalancer, bare), "10.41.0.240")}, on("web", "b"),
			"80/TCP web [10.41.0.240:80]; late lacks 80/TCP of web",
		},
	} {
		plan := Decide(c.services, []*discoveryv1.EndpointSlice{c.slice}, nodes)
		var got []string
		for _, number := range []uint16{30080, 80} {
			for _, proto := range []network.Protocol{network.TCP, network.UDP} {
				if w, ok := plan.Ways[Port{proto, number}]; ok {
					got = append(got, fmt.Sprint(Port{proto, number}, w.Service.Name, w.To))
				}
			}
		}
		for _, x := range plan.Taken {
			got = append(got, fmt.Sprintf("%s lacks %s of %s", x.Service.Name, x.Port, x.Older.Name))
		}
		for _, x := range plan.NotCarried {
			got = append(got, fmt.Sprintf("%s of %s is not carried", x.Port, x.Service.Name))
		}
		if s := strings.ReplaceAll(strings.Join(got, "; "), "TCPweb[", "TCP web ["); s != c.want {
			t.Errorf("%s: %q, want %q", name, s, c.want)
		}
	}
}

// TestDecideFamilies: a service is reached by the nodes' addresses of its first family.
func TestDecideFamilies(t *testing.T) {
	tcp := corev1.ServicePort{Port: 80, NodePort: 30080, Protocol: corev1.ProtocolTCP}
	n := node("a", "10.41.0.11", corev1.ConditionTrue)
	n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: "fd00::b"})
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv6, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"fd00:42::2"}, NodeName: ptr.To("a")}},
	}
	for want, families := range map[string][]corev1.IPFamily{
		"[[fd00::b]:30080] [[fd00::b]:80]":   {corev1.IPv6Protocol, corev1.IPv4Protocol},
		"[10.41.0.11:30080] [10.41.0.11:80]": {corev1.IPv4Protocol, corev1.IPv6Protocol},
	} {
		svc := service("web", 1, corev1.ServiceTypeLoadBalancer, tcp)
		svc.Spec.IPFamilies = families
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "10.41.0.11"}, {IP: "fd00::b"}}
		plan := Decide([]*corev1.Service{svc}, []*discoveryv1.EndpointSlice{slice}, []*corev1.Node{n})
		if got := fmt.Sprint(plan.Ways[Port{network.TCP, 30080}].To, plan.Ways[Port{network.TCP, 80}].To); got != want {
			t.Errorf("%v: %s, want %s", families, got, want)
		}
	}
}

// echo answers on TCP and UDP with its name and what it is sent.
func echo(t *testing.T, name string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b, _ := io.ReadAll(c) // until the client's end has come through
				_, _ = fmt.Fprintf(c, "%s %s", name, b)
			}()
		}
	}()
	at := l.Addr().(*net.TCPAddr).AddrPort()
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Close() })
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := u.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteToUDPAddrPort(fmt.Appendf(nil, "%s %s", name, buf[:n]), from)
		}
	}()
	return at
}

func ask(t *testing.T, conn net.Conn, text string) string {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		return "error " + err.Error()
	}
	if c, ok := conn.(*net.TCPConn); ok {
		_ = c.CloseWrite()
		b, err := io.ReadAll(conn)
		if err != nil {
			return "error " + err.Error()
		}
		return string(b)
	}
	buf := make([]byte, 100)
	n, err := conn.Read(buf)
	if err != nil {
		return "error " + err.Error()
	}
	return string(buf[:n])
}

func TestExposer(t *testing.T) {
	a, b := echo(t, "a"), echo(t, "b")
	events := record.NewFakeRecorder(10)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	e := New(netip.MustParseAddr("127.0.0.1"), (&net.Dialer{}).DialContext, events)
	defer e.Close()
	// Ports that were free a moment ago.
	probe := echo(t, "probe")
	tcp, udp, busy := Port{network.TCP, 0}, Port{network.UDP, 0}, Port{network.TCP, probe.Port()}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp.Number = l.Addr().(*net.TCPAddr).AddrPort().Port()
	udp.Number = tcp.Number
	_ = l.Close()

	web := service("web", 1, corev1.ServiceTypeNodePort)
	apply := func(to ...netip.AddrPort) error {
		return e.Apply(ctx, Plan{Ways: map[Port]Way{tcp: {web, to}, udp: {web, to}}})
	}
	if err := apply(netip.MustParseAddrPort("127.0.0.1:1"), a); err != nil { // one that refuses is passed over
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), tcp.Number).String()
	dial := func(network string) net.Conn {
		t.Helper()
		c, err := net.Dial(network, at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	if got := ask(t, dial("tcp"), "hello"); got != "a hello" {
		t.Errorf("TCP: %q", got)
	}
	if err := apply(a); err != nil {
		t.Fatal(err)
	}
	flow := dial("udp")
	for range 3 {
		if got := ask(t, flow, "hello"); got != "a hello" {
			t.Errorf("UDP: %q", got)
		}
	}
	// Another way: new connections and the flow's next datagrams take it.
	if err := apply(b); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, dial("tcp"), "x"); got != "b x" {
		t.Errorf("TCP: %q", got)
	}
	if got := ask(t, flow, "x"); got != "b x" {
		t.Errorf("UDP: %q", got)
	}
	// Nowhere: reset.
	if err := apply(); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", at); err == nil { // else it was reset at once
		if got := ask(t, c, "x"); !strings.HasPrefix(got, "error") {
			t.Errorf("without endpoints: %q", got)
		}
		_ = c.Close()
	}
	// A port that somebody else has: one event, and it is tried again.
	plan := Plan{Ways: map[Port]Way{busy: {web, []netip.AddrPort{b}}}}
	for range 2 {
		if err := e.Apply(ctx, plan); err == nil {
			t.Error("a taken port was opened")
		}
	}
	if n := len(events.Events); n != 1 {
		t.Errorf("%d events", n)
	}
	if got := <-events.Events; !strings.Contains(got, "PortNotOpen") || !strings.Contains(got, "address already in use") {
		t.Error(got)
	}
	// What is not wanted any more is closed.
	if _, err := net.Dial("tcp", at); err == nil {
		t.Error("a port without a service is open")
	}
}
