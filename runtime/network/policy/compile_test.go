package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"
)

func manifest(t testing.TB, text string) *networkingv1.NetworkPolicy {
	t.Helper()
	p := &networkingv1.NetworkPolicy{}
	if err := yaml.UnmarshalStrict([]byte(text), p); err != nil {
		t.Fatal(text, err)
	}
	if p.Namespace == "" {
		p.Namespace = "shop"
	}
	if len(p.Spec.PolicyTypes) == 0 { // as the API's defaults
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(p.Spec.Egress) > 0 {
			p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	return p
}

func pod(namespace, name, ip string, local bool, l labels.Set, ports ...Port) *Pod {
	return &Pod{Namespace: namespace, Name: name, IPs: []netip.Addr{netip.MustParseAddr(ip)}, Local: local, Labels: l, Ports: ports}
}

// passes says whether a direction lets a connection of a pod and a peer through.
func (d Direction) passes(pod, peer netip.Addr, proto Protocol, port uint16) bool {
	group, held := d.Groups[pod]
	return !held || slices.ContainsFunc(d.Allowed[group], func(b Box) bool { return b.has(peer, proto, port) })
}

// TestPolicies has the recipes of the page "Network Policies".
func TestPolicies(t *testing.T) {
	web := pod("shop", "web", "10.42.0.2", true, labels.Set{"app": "web"}, Port{"http", TCP, 8080})
	db := pod("shop", "db", "10.42.0.3", true, labels.Set{"app": "db"}, Port{"sql", TCP, 5432})
	other := pod("other", "client", "10.42.1.2", false, labels.Set{"app": "client"})
	s := Snapshot{
		Namespaces: map[string]labels.Set{"shop": {"team": "shop"}, "other": {"team": "other"}},
		Pods:       []*Pod{web, db, other, pod("shop", "second", "10.42.0.9", true, labels.Set{"app": "web"}, Port{"http", TCP, 9090})},
	}
	outside := netip.MustParseAddr("192.0.2.7")
	type flow struct {
		in   bool // into pod, else out of it
		pod  *Pod
		peer netip.Addr
		port uint16
		want bool
	}
	for name, tt := range map[string]struct {
		policy string
		flows  []flow
	}{
		"nobody is selected": {`spec: {podSelector: {matchLabels: {app: none}}}`, []flow{{true, web, other.IPs[0], 80, true}}},
		"deny all in": {`spec: {podSelector: {}, policyTypes: [Ingress]}`, []flow{
			{true, web, other.IPs[0], 80, false}, {true, db, web.IPs[0], 5432, false}, {false, web, other.IPs[0], 80, true},
		}},
		"deny all out": {`spec: {podSelector: {}, policyTypes: [Egress]}`, []flow{{false, web, other.IPs[0], 80, false}, {true, web, other.IPs[0], 80, true}}},
		"allow all in": {`spec: {podSelector: {}, ingress: [{}]}`, []flow{{true, web, outside, 80, true}}},
		"pods of the namespace": {`spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}`, []flow{
			{true, db, web.IPs[0], 1, true}, {true, db, other.IPs[0], 1, false}, {true, db, outside, 1, false}, {true, web, other.IPs[0], 1, true},
		}},
		"a namespace": {`spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: other}}}]}]}`, []flow{
			{true, web, other.IPs[0], 1, true}, {true, web, db.IPs[0], 1, false},
		}},
		"pods of a namespace": {`spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: db}}}]}]}`, []flow{
			{true, web, other.IPs[0], 1, false}, {true, web, db.IPs[0], 1, true},
		}},
		"a named port is the pod's own": {`spec: {podSelector: {}, ingress: [{ports: [{port: http}]}]}`, []flow{
			{true, web, outside, 8080, true}, {true, web, outside, 9090, false}, {true, s.Pods[3], outside, 9090, true}, {true, db, outside, 8080, false},
		}},
		"a named port of the peers": {`spec: {podSelector: {matchLabels: {app: db}}, egress: [{to: [{podSelector: {}}], ports: [{port: http}]}]}`, []flow{
			{false, db, web.IPs[0], 8080, true}, {false, db, web.IPs[0], 9090, false}, {false, db, s.Pods[3].IPs[0], 9090, true},
		}},
		"a range of ports": {`spec: {podSelector: {}, egress: [{ports: [{port: 32000, endPort: 32768}]}]}`, []flow{
			{false, web, outside, 32000, true}, {false, web, outside, 32768, true}, {false, web, outside, 31999, false}, {false, web, outside, 32769, false},
		}},
		"a block with an exception": {`spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.0/29]}}]}]}`, []flow{
			{true, web, outside, 1, false}, {true, web, netip.MustParseAddr("192.0.2.8"), 1, true}, {true, web, netip.MustParseAddr("192.0.3.8"), 1, false},
		}},
	} {
		s.Policies = []*networkingv1.NetworkPolicy{manifest(t, tt.policy)}
		r := Compile(s)
		for _, f := range tt.flows {
			d := r.Egress
			if f.in {
				d = r.Ingress
			}
			if got := d.passes(f.pod.IPs[0], f.peer, TCP, f.port); got != f.want {
				t.Errorf("%s: %+v: %v", name, f, got)
			}
		}
	}
	s.Policies = []*networkingv1.NetworkPolicy{manifest(t, `spec: {podSelector: {}}`)}
	if r := Compile(s); len(r.Ingress.Groups) != 3 {
		t.Errorf("the pods that are held back on this node: %v", r.Ingress.Groups)
	}
}

// TestCompileAgrees compares the boxes of random policies with what the API's words
// say, peer by peer and rule by rule, and looks that no two have a point in common.
func TestCompileAgrees(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := snapshots(t)
		r := Compile(s)
		for i, name := range []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress} {
			d := []Direction{r.Ingress, r.Egress}[i]
			for group, list := range d.Allowed {
				for i, a := range list {
					for _, b := range list[i+1:] {
						if a.From.Compare(b.To) <= 0 && b.From.Compare(a.To) <= 0 && a.FirstProto <= b.Proto && b.FirstProto <= a.Proto && a.FirstPort <= b.LastPort && b.FirstPort <= a.LastPort {
							t.Fatalf("%s: %v and %v overlap", group, a, b)
						}
					}
				}
			}
			for range 20 {
				p := rapid.SampledFrom(s.Pods).Draw(t, "pod")
				own := rapid.SampledFrom(p.IPs).Draw(t, "address")
				peer := addressOf(rapid.IntRange(0, 15).Draw(t, "peer"), own.Is6())
				proto := rapid.SampledFrom([]Protocol{1, TCP, UDP}).Draw(t, "protocol")
				port := uint16(rapid.IntRange(0, 8).Draw(t, "port"))
				if got, want := d.passes(own, peer, proto, port), !p.Local || says(s, name, p, peer, proto, port); got != want {
					t.Fatalf("%s of %s/%s with %s, %d/%d: %v, want %v", name, p.Namespace, p.Name, peer, port, proto, got, want)
				}
			}
		}
	})
}

// addressOf is one of a handful of addresses.
func addressOf(i int, v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:42::%x", i))
	}
	return netip.AddrFrom4([4]byte{10, 42, 0, byte(i)})
}

// says evaluates policies as they are written.
func says(s Snapshot, t networkingv1.PolicyType, p *Pod, peer netip.Addr, proto Protocol, port uint16) bool {
	held := false
	for _, pol := range s.Policies {
		sel, _ := metav1.LabelSelectorAsSelector(&pol.Spec.PodSelector)
		if pol.Namespace != p.Namespace || !slices.Contains(pol.Spec.PolicyTypes, t) || !sel.Matches(p.Labels) {
			continue
		}
		held = true
		if t == networkingv1.PolicyTypeIngress {
			for _, r := range pol.Spec.Ingress {
				if meets(s, pol.Namespace, r.From, peer) && at(r.Ports, p, proto, port) {
					return true
				}
			}
			continue
		}
		var other *Pod
		if i := slices.IndexFunc(s.Pods, func(o *Pod) bool { return slices.Contains(o.IPs, peer) }); i >= 0 {
			other = s.Pods[i]
		}
		for _, r := range pol.Spec.Egress {
			if !meets(s, pol.Namespace, r.To, peer) {
				continue
			}
			named := slices.ContainsFunc(r.Ports, isNamed)
			if !named && at(r.Ports, nil, proto, port) {
				return true
			}
			// A named port of a peer that only a block selects is nobody's.
			selected := slices.DeleteFunc(slices.Clone(r.To), func(q networkingv1.NetworkPolicyPeer) bool { return q.IPBlock != nil })
			who := other
			if len(r.To) > 0 && (len(selected) == 0 || !meets(s, pol.Namespace, selected, peer)) {
				who = nil
			}
			if named && at(r.Ports, who, proto, port) {
				return true
			}
		}
	}
	return !held
}

func meets(s Snapshot, ns string, peers []networkingv1.NetworkPolicyPeer, peer netip.Addr) bool {
	if len(peers) == 0 {
		return true
	}
	for _, q := range peers {
		if b := q.IPBlock; b != nil {
			if netip.MustParsePrefix(b.CIDR).Contains(peer) && !slices.ContainsFunc(b.Except, func(e string) bool { return netip.MustParsePrefix(e).Contains(peer) }) {
				return true
			}
			continue
		}
		for _, p := range s.Pods {
			if !slices.Contains(p.IPs, peer) {
				continue
			}
			inNS := p.Namespace == ns
			if q.NamespaceSelector != nil {
				sel, _ := metav1.LabelSelectorAsSelector(q.NamespaceSelector)
				l, known := s.Namespaces[p.Namespace]
				inNS = known && sel.Matches(l)
			}
			if sel, _ := metav1.LabelSelectorAsSelector(q.PodSelector); inNS && (q.PodSelector == nil || sel.Matches(p.Labels)) {
				return true
			}
		}
	}
	return false
}

func at(list []networkingv1.NetworkPolicyPort, pod *Pod, proto Protocol, port uint16) bool {
	if len(list) == 0 {
		return true
	}
	for _, q := range list {
		if protocol(q.Protocol) != proto {
			continue
		}
		switch {
		case q.Port == nil:
			return true
		case isNamed(q):
			if pod != nil && slices.ContainsFunc(pod.Ports, func(o Port) bool { return o.Name == q.Port.StrVal && o.Protocol == proto && o.Number == port }) {
				return true
			}
		case q.EndPort == nil && int32(port) == q.Port.IntVal, q.EndPort != nil && q.Port.IntVal <= int32(port) && int32(port) <= *q.EndPort:
			return true
		}
	}
	return false
}

// snapshots draws a few pods and policies over a handful of addresses and ports.
func snapshots(t *rapid.T) Snapshot {
	s := Snapshot{Namespaces: map[string]labels.Set{"a": {"x": "1"}, "b": {"x": "2"}}}
	value := rapid.SampledFrom([]string{"1", "2"})
	for i := range rapid.IntRange(1, 6).Draw(t, "pods") {
		p := &Pod{Namespace: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "namespace"), Name: fmt.Sprint("p", i), Local: rapid.Bool().Draw(t, "local")}
		for _, v6 := range rapid.SampledFrom([][]bool{{false}, {true}, {false, true}, {true, false}}).Draw(t, "families") {
			p.IPs = append(p.IPs, addressOf(i+1, v6))
		}
		p.Labels = labels.Set{"x": value.Draw(t, "label")}
		if rapid.Bool().Draw(t, "named") {
			p.Ports = []Port{{"http", TCP, uint16(rapid.IntRange(1, 4).Draw(t, "number"))}}
		}
		s.Pods = append(s.Pods, p)
	}
	sel := func(what string) *metav1.LabelSelector {
		out := &metav1.LabelSelector{}
		if rapid.Bool().Draw(t, what) {
			out.MatchLabels = map[string]string{"x": value.Draw(t, what)}
		}
		return out
	}
	peers := func() (out []networkingv1.NetworkPolicyPeer) {
		for range rapid.IntRange(0, 2).Draw(t, "peers") {
			switch rapid.IntRange(0, 3).Draw(t, "peer kind") {
			case 0:
				out = append(out, networkingv1.NetworkPolicyPeer{PodSelector: sel("pods")})
			case 1:
				out = append(out, networkingv1.NetworkPolicyPeer{NamespaceSelector: sel("namespaces")})
			case 2:
				out = append(out, networkingv1.NetworkPolicyPeer{NamespaceSelector: sel("namespaces"), PodSelector: sel("pods")})
			default:
				b := &networkingv1.IPBlock{CIDR: rapid.SampledFrom([]string{"0.0.0.0/0", "10.42.0.0/28", "10.42.0.4/30", "::/0", "fd00:42::/124", "fd00:42::4/126"}).Draw(t, "cidr")}
				if rapid.Bool().Draw(t, "exception") && !strings.Contains(b.CIDR, "4/") {
					b.Except = []string{rapid.SampledFrom(map[bool][]string{false: {"10.42.0.2/31", "10.42.0.0/30", "10.42.0.8/29"}, true: {"fd00:42::2/127", "fd00:42::/126", "fd00:42::8/125"}}[strings.Contains(b.CIDR, ":")]).Draw(t, "except")}
				}
				out = append(out, networkingv1.NetworkPolicyPeer{IPBlock: b})
			}
		}
		return out
	}
	ports := func() (out []networkingv1.NetworkPolicyPort) {
		for range rapid.IntRange(0, 2).Draw(t, "ports") {
			var q networkingv1.NetworkPolicyPort
			switch rapid.IntRange(0, 3).Draw(t, "port kind") {
			case 0:
				v := intstr.FromInt(rapid.IntRange(1, 6).Draw(t, "port"))
				q.Port = &v
			case 1:
				v := intstr.FromInt(rapid.IntRange(1, 4).Draw(t, "port"))
				end := v.IntVal + int32(rapid.IntRange(0, 3).Draw(t, "more"))
				q.Port, q.EndPort = &v, &end
			case 2:
				v := intstr.FromString("http")
				q.Port = &v
			}
			out = append(out, q)
		}
		return out
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "policies") {
		p := &networkingv1.NetworkPolicy{}
		p.Namespace, p.Name = rapid.SampledFrom([]string{"a", "b"}).Draw(t, "of"), fmt.Sprint("n", i)
		p.Spec.PodSelector = *sel("selects")
		for kind, on := range map[networkingv1.PolicyType]bool{networkingv1.PolicyTypeIngress: rapid.Bool().Draw(t, "in"), networkingv1.PolicyTypeEgress: rapid.Bool().Draw(t, "out")} {
			if on {
				p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, kind)
			}
		}
		for range rapid.IntRange(0, 2).Draw(t, "ingress") {
			p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: peers(), Ports: ports()})
		}
		for range rapid.IntRange(0, 2).Draw(t, "egress") {
			p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: peers(), Ports: ports()})
		}
		s.Policies = append(s.Policies, p)
	}
	return s
}

// TestLayout: groups keep their numbers, so that a change touches what has changed.
func TestLayout(t *testing.T) {
	e := &familyEnforcer{ipFamily: families[0], ids: map[string]uint32{}}
	s := Snapshot{
		Pods:     []*Pod{pod("shop", "web", "10.42.0.2", true, labels.Set{"app": "web"}), pod("shop", "db", "10.42.0.3", true, labels.Set{"app": "db"})},
		Policies: []*networkingv1.NetworkPolicy{manifest(t, `{metadata: {name: one}, spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}]}]}}`)},
	}
	first := e.lay(Compile(s))
	s.Policies = append(s.Policies, manifest(t, `{metadata: {name: a-two}, spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress, Egress]}}`))
	second := e.lay(Compile(s))
	for name, elements := range first {
		for el := range maps.Keys(elements) {
			if !second[name][el] {
				t.Errorf("%s lost %+v", name, el)
			}
		}
	}
	if n := len(second["egress-pods"]); n != 1 || len(second["ingress-pods"]) != 2 || len(second["egress-allowed"]) != 0 {
		t.Errorf("%v", second)
	}
}
