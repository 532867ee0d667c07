package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Protocol is the number of a protocol in the IP header.
type Protocol uint8

// The protocols that policies know.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// Port is a named port of a pod.
type Port struct {
	Name     string
	Protocol Protocol
	Number   uint16
}

// Pod is what policies look at of a pod that has an address of the pod network.
type Pod struct {
	Namespace, Name string
	Labels          labels.Set
	// IPs are its addresses, one of each family that the cluster has.
	IPs   []netip.Addr
	Ports []Port
	// Local says that the pod is on this node.
	Local bool
}

// ip is the pod's address of a family; invalid if it has none.
func (p *Pod) ip(v6 bool) netip.Addr {
	if i := slices.IndexFunc(p.IPs, func(a netip.Addr) bool { return a.Is6() == v6 }); i >= 0 {
		return p.IPs[i]
	}
	return netip.Addr{}
}

// Snapshot is what Rules are made of.
type Snapshot struct {
	Policies   []*networkingv1.NetworkPolicy
	Namespaces map[string]labels.Set
	Pods       []*Pod
}

// Box is a range of addresses, protocols and ports: the peer's address, and the port
// at which the connection arrives.
type Box struct {
	From, To            netip.Addr
	FirstProto, Proto   Protocol // from, to
	FirstPort, LastPort uint16
}

// Direction has the rules for what comes in, or for what goes out.
type Direction struct {
	// Groups are the pods of this node that are held back, and to which group each
	// belongs.
	Groups map[netip.Addr]string
	// Allowed are the boxes of each group; no two of a group have a point in common.
	Allowed map[string][]Box
}

// Rules are what a node enforces.
type Rules struct {
	Ingress, Egress Direction
}

// Compile makes the rules of a node.
func Compile(s Snapshot) Rules {
	c := newCompiler(s)
	return Rules{
		Ingress: c.direction(networkingv1.PolicyTypeIngress),
		Egress:  c.direction(networkingv1.PolicyTypeEgress),
	}
}

// compiler has the selectors parsed, and remembers whom they select.
type compiler struct {
	s        Snapshot
	policies []policy
	byNS     map[string][]*Pod
}

type policy struct {
	name  string
	obj   *networkingv1.NetworkPolicy
	pods  labels.Selector
	about map[networkingv1.PolicyType]bool
}

func newCompiler(s Snapshot) *compiler {
	c := &compiler{s: s, byNS: map[string][]*Pod{}}
	for _, p := range s.Pods {
		c.byNS[p.Namespace] = append(c.byNS[p.Namespace], p)
	}
	for _, obj := range s.Policies {
		p := policy{name: obj.Namespace + "/" + obj.Name, obj: obj, pods: selector(&obj.Spec.PodSelector), about: map[networkingv1.PolicyType]bool{}}
		for _, t := range obj.Spec.PolicyTypes {
			p.about[t] = true
		}
		c.policies = append(c.policies, p)
	}
	slices.SortFunc(c.policies, func(a, b policy) int { return cmp.Compare(a.name, b.name) })
	return c
}

// selector parses one that the API has accepted.
func selector(s *metav1.LabelSelector) labels.Selector {
	out, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return out
}

// selecting are the policies that hold a pod back in one direction.
func (c *compiler) selecting(p *Pod, t networkingv1.PolicyType) []policy {
	var out []policy
	for _, pol := range c.policies {
		if pol.obj.Namespace == p.Namespace && pol.about[t] && pol.pods.Matches(p.Labels) {
			out = append(out, pol)
		}
	}
	return out
}

func (c *compiler) direction(t networkingv1.PolicyType) Direction {
	d := Direction{Groups: map[netip.Addr]string{}, Allowed: map[string][]Box{}}
	type part struct {
		key string
		v6  bool
	}
	done := map[part]bool{}
	for _, p := range c.s.Pods {
		if !p.Local {
			continue
		}
		policies := c.selecting(p, t)
		if len(policies) == 0 {
			continue
		}
		key := groupKey(p, policies, t)
		for _, ip := range p.IPs {
			d.Groups[ip] = key
			of := part{key, ip.Is6()}
			if done[of] {
				continue
			}
			done[of] = true
			var rules []rule
			for _, pol := range policies {
				rules = append(rules, c.rules(pol, p, t, of.v6)...)
			}
			d.Allowed[key] = append(d.Allowed[key], boxes(rules)...)
		}
	}
	return d
}

// groupKey names what is allowed to a pod: pods with the same policies share it, unless
// these name ports, which each pod may have at another number.
func groupKey(p *Pod, policies []policy, t networkingv1.PolicyType) string {
	var b strings.Builder
	named := map[string]bool{}
	for _, pol := range policies {
		fmt.Fprintf(&b, "%s ", pol.name)
		if t == networkingv1.PolicyTypeIngress {
			for _, r := range pol.obj.Spec.Ingress {
				for _, port := range r.Ports {
					if port.Port != nil && port.Port.Type == intstr.String {
						named[port.Port.StrVal] = true
					}
				}
			}
		}
	}
	for _, port := range p.Ports {
		if named[port.Name] {
			fmt.Fprintf(&b, "%s=%d/%d ", port.Name, port.Number, port.Protocol)
		}
	}
	return b.String()
}

// rule is one rule of a policy: any of the addresses at any of the ports.
type rule struct {
	addrs []span
	ports []ports
}

// span is a range of addresses of one family.
type span struct{ from, to netip.Addr }

// ports is a range of ports of a range of protocols.
type ports struct {
	firstProto, proto Protocol
	first, last       uint16
}

var anyPort = []ports{{0, 255, 0, 65535}}

// everywhere are all addresses of a family.
func everywhere(v6 bool) []span {
	if v6 {
		return []span{prefix(netip.PrefixFrom(netip.IPv6Unspecified(), 0))}
	}
	return []span{prefix(netip.PrefixFrom(netip.IPv4Unspecified(), 0))}
}

// rules are those of a policy for one pod that it selects, as far as they are about
// addresses of one family.
func (c *compiler) rules(pol policy, p *Pod, t networkingv1.PolicyType, v6 bool) []rule {
	var out []rule
	if t == networkingv1.PolicyTypeIngress {
		for _, r := range pol.obj.Spec.Ingress {
			// A named port is the selected pod's.
			out = append(out, rule{c.peers(pol.obj.Namespace, r.From, v6), portsOf(r.Ports, p)})
		}
		return out
	}
	for _, r := range pol.obj.Spec.Egress {
		numbered := slices.DeleteFunc(slices.Clone(r.Ports), isNamed)
		if len(r.Ports) == 0 || len(numbered) > 0 {
			out = append(out, rule{c.peers(pol.obj.Namespace, r.To, v6), portsOf(numbered, nil)})
		}
		named := slices.DeleteFunc(slices.Clone(r.Ports), func(q networkingv1.NetworkPolicyPort) bool { return !isNamed(q) })
		if len(named) == 0 {
			continue
		}
		// A named port is the peer's, so each peer has its own.
		for _, peer := range c.podsOf(pol.obj.Namespace, r.To, v6) {
			if at := portsOf(named, peer); len(at) > 0 {
				out = append(out, rule{[]span{single(peer.ip(v6))}, at})
			}
		}
	}
	return out
}

func isNamed(p networkingv1.NetworkPolicyPort) bool {
	return p.Port != nil && p.Port.Type == intstr.String
}

// portsOf are the numbers of a rule's ports; named ones are those of pod.
func portsOf(list []networkingv1.NetworkPolicyPort, pod *Pod) []ports {
	if len(list) == 0 {
		return anyPort
	}
	var out []ports
	for _, q := range list {
		proto := protocol(q.Protocol)
		switch {
		case q.Port == nil:
			out = append(out, ports{proto, proto, 0, 65535})
		case isNamed(q):
			if pod == nil {
				continue
			}
			for _, own := range pod.Ports {
				if own.Name == q.Port.StrVal && own.Protocol == proto {
					out = append(out, ports{proto, proto, own.Number, own.Number})
				}
			}
		default:
			last := q.Port.IntVal
			if q.EndPort != nil {
				last = *q.EndPort
			}
			out = append(out, ports{proto, proto, uint16(q.Port.IntVal), uint16(last)})
		}
	}
	return out
}

func protocol(p *corev1.Protocol) Protocol {
	if p == nil {
		return TCP
	}
	return ProtocolOf(*p)
}

// ProtocolOf is the number of an API protocol.
func ProtocolOf(p corev1.Protocol) Protocol {
	switch p {
	case corev1.ProtocolUDP:
		return UDP
	case corev1.ProtocolSCTP:
		return SCTP
	}
	return TCP
}

// peers are the addresses of a rule's peers; none in the rule are all.
func (c *compiler) peers(namespace string, list []networkingv1.NetworkPolicyPeer, v6 bool) []span {
	if len(list) == 0 {
		return everywhere(v6)
	}
	var out []span
	for _, p := range c.podsOf(namespace, list, v6) {
		out = append(out, single(p.ip(v6)))
	}
	for i := range list {
		if list[i].IPBlock != nil {
			out = append(out, block(list[i].IPBlock, v6)...)
		}
	}
	return out
}

// podsOf are the pods that a rule's peers select and that have an address of a family;
// none in the rule are all.
func (c *compiler) podsOf(namespace string, list []networkingv1.NetworkPolicyPeer, v6 bool) []*Pod {
	if len(list) == 0 {
		return slices.DeleteFunc(slices.Clone(c.s.Pods), func(p *Pod) bool { return !p.ip(v6).IsValid() })
	}
	var out []*Pod
	for i := range list {
		peer := &list[i]
		if peer.IPBlock != nil {
			continue
		}
		pods := labels.Everything()
		if peer.PodSelector != nil {
			pods = selector(peer.PodSelector)
		}
		namespaces := []string{namespace}
		if peer.NamespaceSelector != nil {
			namespaces = nil
			among := selector(peer.NamespaceSelector)
			for ns, l := range c.s.Namespaces {
				if among.Matches(l) {
					namespaces = append(namespaces, ns)
				}
			}
		}
		for _, ns := range namespaces {
			for _, p := range c.byNS[ns] {
				if p.ip(v6).IsValid() && pods.Matches(p.Labels) {
					out = append(out, p)
				}
			}
		}
	}
	return out
}

func single(a netip.Addr) span { return span{a, a} }

// block is what of a CIDR is left when the exceptions are taken out. One of another
// family has no address that is met here.
func block(b *networkingv1.IPBlock, v6 bool) []span {
	whole, err := netip.ParsePrefix(b.CIDR)
	if err != nil || whole.Addr().Is6() != v6 {
		return nil
	}
	left := []span{prefix(whole)}
	for _, text := range b.Except {
		except, err := netip.ParsePrefix(text)
		if err != nil || except.Addr().Is6() != v6 {
			continue
		}
		cut := prefix(except)
		var next []span
		for _, s := range left {
			if cut.to.Less(s.from) || s.to.Less(cut.from) {
				next = append(next, s)
				continue
			}
			if s.from.Less(cut.from) {
				next = append(next, span{s.from, cut.from.Prev()})
			}
			if cut.to.Less(s.to) {
				next = append(next, span{cut.to.Next(), s.to})
			}
		}
		left = next
	}
	return left
}

func prefix(p netip.Prefix) span {
	last := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < 8*len(last); bit++ {
		last[bit/8] |= 1 << (7 - bit%8)
	}
	to, _ := netip.AddrFromSlice(last)
	return span{p.Masked().Addr(), to}
}
