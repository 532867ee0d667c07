package serviceloadbalancer

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"
)

func balancer(name string, age int64, port int32, edit func(*corev1.Service)) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, CreationTimestamp: metav1.NewTime(time.Unix(age, 0))},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: port, Protocol: corev1.ProtocolTCP}}},
	}
	if edit != nil {
		edit(svc)
	}
	return svc
}

func machine(name, ip string, edit func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{
		Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}},
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
	}}
	if edit != nil {
		edit(n)
	}
	return n
}

func endpointsOn(svc string, nodes ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Labels: map[string]string{discoveryv1.LabelServiceName: svc}}}
	for _, n := range nodes {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{NodeName: ptr.To(n), Addresses: []string{"10.42.0.1"}})
	}
	return s
}

func local(svc *corev1.Service) {
	svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

func has(ip string) func(*corev1.Service) {
	return func(svc *corev1.Service) {
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: ip}}
	}
}

func announcedBy(node, ip string) func(*corev1.Service) {
	return func(svc *corev1.Service) {
		has(ip)(svc)
		svc.Annotations = map[string]string{AnnouncedBy: node}
	}
}

// TestDecideFamilies: a load balancer has the nodes' addresses of its own families.
func TestDecideFamilies(t *testing.T) {
	both := func(ip, six string) *corev1.Node {
		return machine(ip, ip, func(n *corev1.Node) {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: six})
		})
	}
	nodes := []*corev1.Node{both("10.41.0.11", "fd00::b"), both("10.41.0.12", "fd00::c"), machine("z", "10.41.0.13", nil)}
	pool := Pool{{netip.MustParseAddr("10.41.0.240"), netip.MustParseAddr("10.41.0.241")}}
	six := Pool{{netip.MustParseAddr("fd00::f0"), netip.MustParseAddr("fd00::f1")}}
	pools := slices.Concat(pool, six)
	for _, x := range []struct {
		families []corev1.IPFamily
		pool     Pool
		wanted   string
		want     string
	}{
		{[]corev1.IPFamily{corev1.IPv4Protocol}, nil, "", "10.41.0.11 10.41.0.12 10.41.0.13"},
		{[]corev1.IPFamily{corev1.IPv6Protocol}, nil, "", "fd00::b fd00::c"},
		{[]corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}, nil, "", "fd00::b 10.41.0.11 fd00::c 10.41.0.12 10.41.0.13"},
		{[]corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}, nil, "fd00::c", "fd00::c"},
		{[]corev1.IPFamily{corev1.IPv6Protocol}, nil, "10.41.0.12", "! loadBalancerIP 10.41.0.12 is not the address of a node that is ready"},
		{[]corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}, pool, "", "10.41.0.240! the pool has no IPv6 addresses"},
		{[]corev1.IPFamily{corev1.IPv6Protocol}, pool, "", "! the pool has no IPv6 addresses"},
		{[]corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}, pools, "", "fd00::f0 10.41.0.240"},
		{[]corev1.IPFamily{corev1.IPv4Protocol}, pools, "", "10.41.0.240"},
		{[]corev1.IPFamily{corev1.IPv6Protocol}, six, "", "fd00::f0"},
		{[]corev1.IPFamily{corev1.IPv4Protocol}, six, "", "! the pool has no IPv4 addresses"},
		{[]corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}, pools, "fd00::f1", "fd00::f1 10.41.0.240"},
		{[]corev1.IPFamily{corev1.IPv4Protocol}, pools, "fd00::f1", "! loadBalancerIP fd00::f1 is not of the service's family IPv4"},
	} {
		svc := balancer("x", 1, 80, func(s *corev1.Service) { s.Spec.IPFamilies, s.Spec.LoadBalancerIP = x.families, x.wanted })
		out := Decide(Config{Pool: x.pool}, Snapshot{Services: []*corev1.Service{svc}, Nodes: nodes})["ns/x"]
		got := ""
		for i, in := range out.Ingress {
			got += map[bool]string{true: " "}[i > 0] + in.IP
		}
		if out.Problem != "" {
			got += "! " + out.Problem
		}
		if got != x.want {
			t.Errorf("%v %s: %q, want %q", x.families, x.wanted, got, x.want)
		}
	}
}

func TestDecide(t *testing.T) {
	nodes := []*corev1.Node{machine("a", "10.41.0.11", nil), machine("b", "10.41.0.12", nil)}
	withoutA := []*corev1.Node{machine("a", "10.41.0.11", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown }), nodes[1]}
	excludedB := []*corev1.Node{nodes[0], machine("b", "10.41.0.12", func(n *corev1.Node) { n.Labels = map[string]string{corev1.LabelNodeExcludeBalancers: ""} })}
	pool := Pool{{netip.MustParseAddr("10.41.0.240"), netip.MustParseAddr("10.41.0.241")}}
	pools := append(slices.Clone(pool), Range{netip.MustParseAddr("fd00::f0"), netip.MustParseAddr("fd00::f1")})
	for _, c := range []struct {
		name   string
		pool   Pool
		nodes  []*corev1.Node
		svcs   []*corev1.Service
		slices []*discoveryv1.EndpointSlice
		want   map[string]string
	}{
		{"nodes' addresses", nil, nodes, []*corev1.Service{balancer("x", 1, 80, nil)}, nil, map[string]string{"ns/x": "10.41.0.11 10.41.0.12"}},
		{"ready nodes alone", nil, withoutA, []*corev1.Service{balancer("x", 1, 80, nil)}, nil, map[string]string{"ns/x": "10.41.0.12"}},
		{"excluded node", nil, excludedB, []*corev1.Service{balancer("x", 1, 80, nil)}, nil, map[string]string{"ns/x": "10.41.0.11"}},
		{"local", nil, nodes, []*corev1.Service{balancer("x", 1, 80, local)}, []*discoveryv1.EndpointSlice{endpointsOn("x", "b")}, map[string]string{"ns/x": "10.41.0.12"}},
		{"same port, the older one", nil, nodes, []*corev1.Service{balancer("y", 2, 80, nil), balancer("x", 1, 80, nil)}, nil, map[string]string{"ns/x": "10.41.0.11 10.41.0.12", "ns/y": "! port 80/TCP of the nodes is in use by service ns/x"}},
		{"same port, who has it", nil, nodes, []*corev1.Service{balancer("y", 2, 80, has("10.41.0.11")), balancer("x", 1, 80, nil)}, nil, map[string]string{"ns/y": "10.41.0.11 10.41.0.12", "ns/x": "! port 80/TCP of the nodes is in use by service ns/y"}},
		{"another protocol", nil, nodes, []*corev1.Service{balancer("y", 2, 80, func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolUDP }), balancer("x", 1, 80, nil)}, nil, map[string]string{"ns/x": "10.41.0.11 10.41.0.12", "ns/y": "10.41.0.11 10.41.0.12"}},
		{"the node's own port", nil, nodes, []*corev1.Service{balancer("x", 1, 10250, nil)}, nil, map[string]string{"ns/x": "! port 10250/TCP of the nodes is in use by the node itself"}},
		{"a node port", nil, nodes, []*corev1.Service{balancer("x", 1, 30080, nil), balancer("np", 2, 1, func(s *corev1.Service) {
			s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080
		})}, nil, map[string]string{"ns/x": "! port 30080/TCP of the nodes is in use by service ns/np"}},
		{"one node wanted", nil, nodes, []*corev1.Service{balancer("x", 1, 80, func(s *corev1.Service) { s.Spec.LoadBalancerIP = "10.41.0.12" })}, nil, map[string]string{"ns/x": "10.41.0.12"}},
		{"no node wanted", nil, nodes, []*corev1.Service{balancer("x", 1, 80, func(s *corev1.Service) { s.Spec.LoadBalancerIP = "192.0.2.1" })}, nil, map[string]string{"ns/x": "! loadBalancerIP 192.0.2.1 is not the address of a node that is ready"}},
		{"others' classes", nil, nodes, []*corev1.Service{
			balancer("x", 1, 80, func(s *corev1.Service) { s.Spec.LoadBalancerClass = ptr.To("example.com/lb") }),
			balancer("y", 1, 80, func(s *corev1.Service) { s.Spec.LoadBalancerClass = ptr.To(Class) }),
		}, nil, map[string]string{"ns/y": "10.41.0.11 10.41.0.12"}},

		{"from the pool", pool, nodes, []*corev1.Service{balancer("x", 1, 80, nil), balancer("y", 2, 80, nil), balancer("z", 3, 80, nil)}, nil,
			map[string]string{"ns/x": "10.41.0.240 by a", "ns/y": "10.41.0.241 by b", "ns/z": "! no IPv4 address of the pool is free"}},
		{"kept", pool, nodes, []*corev1.Service{balancer("x", 1, 80, nil), balancer("y", 2, 80, announcedBy("a", "10.41.0.240"))}, nil,
			map[string]string{"ns/x": "10.41.0.241 by b", "ns/y": "10.41.0.240 by a"}},
		{"node lost", pool, withoutA, []*corev1.Service{balancer("y", 2, 80, announcedBy("a", "10.41.0.240"))}, nil, map[string]string{"ns/y": "10.41.0.240 by b"}},
		{"local, with endpoints", pool, nodes, []*corev1.Service{balancer("x", 1, 80, local)}, []*discoveryv1.EndpointSlice{endpointsOn("x", "b")}, map[string]string{"ns/x": "10.41.0.240 by b"}},
		{"local, without", pool, nodes, []*corev1.Service{balancer("x", 1, 80, local)}, nil, map[string]string{"ns/x": "10.41.0.240 by "}},
		{"wanted", pool, nodes, []*corev1.Service{balancer("x", 1, 80, func(s *corev1.Service) { s.Spec.LoadBalancerIP = "10.41.0.241" })}, nil, map[string]string{"ns/x": "10.41.0.241 by a"}},
		{"wanted, not there", pool, nodes, []*corev1.Service{balancer("x", 1, 80, func(s *corev1.Service) { s.Spec.LoadBalancerIP = "10.41.0.250" })}, nil, map[string]string{"ns/x": "! loadBalancerIP 10.41.0.250 is not in the pool"}},
		{"wanted, taken", pool, nodes, []*corev1.Service{balancer("y", 2, 80, announcedBy("a", "10.41.0.240")), balancer("x", 1, 80, func(s *corev1.Service) { s.Spec.LoadBalancerIP = "10.41.0.240" })}, nil,
			map[string]string{"ns/y": "10.41.0.240 by a", "ns/x": "! loadBalancerIP 10.41.0.240 is in use by another service"}},
		{"one that had one family gets another", pools, nodes, []*corev1.Service{
			balancer("x", 1, 80, func(s *corev1.Service) {
				announcedBy("a", "10.41.0.240")(s)
				s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
			}),
			balancer("y", 2, 80, func(s *corev1.Service) {
				announcedBy("b", "fd00::f0")(s)
				s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol}
			}),
		}, nil, map[string]string{"ns/x": "10.41.0.240 fd00::f1 by a", "ns/y": "fd00::f0 by b"}},
		{"preferred families", pool, nodes, []*corev1.Service{balancer("x", 1, 80, func(s *corev1.Service) {
			s.Spec.IPFamilies, s.Spec.IPFamilyPolicy = []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}, ptr.To(corev1.IPFamilyPolicyPreferDualStack)
		})}, nil, map[string]string{"ns/x": "10.41.0.240 by a"}},
		{"outside of a new pool", pool, nodes, []*corev1.Service{balancer("x", 1, 80, announcedBy("a", "192.0.2.9")), balancer("y", 2, 80, announcedBy("b", "10.41.0.240"))}, nil,
			map[string]string{"ns/x": "10.41.0.241 by a", "ns/y": "10.41.0.240 by b"}},
	} {
		got := map[string]string{}
		for k, o := range Decide(Config{Pool: c.pool, Reserved: []int32{10250}}, Snapshot{c.svcs, c.nodes, c.slices}) {
			text := ""
			for i, in := range o.Ingress {
				if i > 0 {
					text += " "
				}
				text += in.IP
			}
			if c.pool != nil && o.Problem == "" {
				text += " by " + o.Node
			}
			if o.Problem != "" {
				text += "! " + o.Problem
			}
			got[k] = text
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestNothingIsGivenTwice: no two balancers have the same port of an address,
// whatever they had before, and deciding again changes nothing.
func TestNothingIsGivenTwice(t *testing.T) {
	nodes := []*corev1.Node{machine("a", "10.41.0.11", nil), machine("b", "10.41.0.12", nil)}
	rapid.Check(t, func(t *rapid.T) {
		cfg := Config{}
		if rapid.Bool().Draw(t, "pool") {
			cfg.Pool = Pool{{netip.MustParseAddr("10.41.0.240"), netip.MustParseAddr("10.41.0.243")}, {netip.MustParseAddr("fd00::f0"), netip.MustParseAddr("fd00::f2")}}
		}
		var svcs []*corev1.Service
		for i := range rapid.IntRange(0, 6).Draw(t, "services") {
			svcs = append(svcs, balancer(fmt.Sprint("s", i), int64(rapid.IntRange(0, 3).Draw(t, "age")), int32(rapid.IntRange(80, 82).Draw(t, "port")), func(s *corev1.Service) {
				if ip := rapid.SampledFrom([]string{"", "10.41.0.11", "10.41.0.240", "10.41.0.241", "192.0.2.1"}).Draw(t, "had"); ip != "" {
					announcedBy(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "node"), ip)(s)
				}
				s.Spec.IPFamilies = rapid.SampledFrom([][]corev1.IPFamily{nil, {corev1.IPv4Protocol}, {corev1.IPv6Protocol, corev1.IPv4Protocol}}).Draw(t, "families")
				if had := rapid.SampledFrom([]string{"", "fd00::f0", "fd00::f1", "fd00::1"}).Draw(t, "had of IPv6"); had != "" {
					s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: had})
				}
			}))
		}
		first := Decide(cfg, Snapshot{Services: svcs, Nodes: nodes})
		seen := map[string]string{}
		for _, svc := range svcs {
			o := first[key(svc)]
			for _, in := range o.Ingress {
				at := fmt.Sprint(in.IP, ":", svc.Spec.Ports[0].Port)
				if cfg.Pool != nil {
					at = in.IP
				}
				if has := seen[at]; has != "" {
					t.Fatalf("%s and %s have %s", has, svc.Name, at)
				}
				seen[at] = svc.Name
			}
			if o.Problem == "" && len(o.Ingress) == 0 || o.Problem != "" && len(o.Ingress) == len(families(svc)) {
				t.Fatalf("%+v", o)
			}
			svc.Status.LoadBalancer.Ingress = slices.Clone(o.Ingress)
			setNode(svc, o.Node)
		}
		if again := Decide(cfg, Snapshot{Services: svcs, Nodes: nodes}); !reflect.DeepEqual(again, first) {
			t.Fatalf("%+v, then %+v", first, again)
		}
	})
}

func TestParsePool(t *testing.T) {
	for text, want := range map[string]string{
		"":               "[]",
		"10.41.0.240/28": "[{10.41.0.241 10.41.0.254}]",
		"10.41.0.240-10.41.0.250, 10.41.0.252/32": "[{10.41.0.240 10.41.0.250} {10.41.0.252 10.41.0.252}]",
		"192.0.2.1":                       "[{192.0.2.1 192.0.2.1}]",
		"192.0.2.9-192.0.2.1":             "error",
		"fd00:0:0:1::/64":                 "[{fd00:0:0:1::1 fd00::1:ffff:ffff:ffff:ffff}]",
		"fd00::f0-fd00::ff, 192.0.2.0/31": "[{fd00::f0 fd00::ff} {192.0.2.0 192.0.2.1}]",
		"fd00::7/128":                     "[{fd00::7 fd00::7}]",
		"fd00::/127":                      "[{fd00:: fd00::1}]",
		"fd00::1-192.0.2.1":               "error",
		"fe80::1":                         "error",
		"ff02::/16":                       "error",
		"fd00::1%eth0":                    "error",
		"::ffff:192.0.2.1":                "error",
		"127.0.0.0/8":                     "error",
		"x":                               "error",
	} {
		pool, err := ParsePool(text)
		got := fmt.Sprint(pool)
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q: %s (%v), want %s", text, got, err, want)
		}
	}
}
