package expose

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"gitk8s.dev/gitk8s/runtime/network"
)

// Port is a port of the machine.
type Port struct {
	Proto  network.Protocol
	Number uint16
}

// String is the port as kubectl prints it.
func (p Port) String() string { return fmt.Sprintf("%d/%s", p.Number, p.Proto) }

// Way is where a port leads.
type Way struct {
	// Service whose port it is, for events.
	Service *corev1.Service
	// To are the addresses to try, one after the other; none refuses connections.
	To []netip.AddrPort
}

// Plan is what Decide returns.
type Plan struct {
	Ways map[Port]Way
	// Taken are ports that a service does not get since an older one has them.
	Taken []Conflict
	// NotCarried are ports of SCTP, which is not carried.
	NotCarried []NotCarried
}

// NotCarried is a port that a service does not get, whoever else wants it.
type NotCarried struct {
	Port    Port
	Service *corev1.Service
}

// Conflict is a port that two services want.
type Conflict struct {
	Port  Port
	Older *corev1.Service
	// Service is the one that does not get it.
	Service *corev1.Service
}

// Decide computes which ports of the machine lead where: node ports to the nodes
// that have an endpoint, and the ports of load balancers to their addresses. Of two
// services that want the same port the older one has it.
func Decide(services []*corev1.Service, endpointSlices []*discoveryv1.EndpointSlice, nodes []*corev1.Node) Plan {
	bySvc := network.SlicesByService(endpointSlices)
	ready := map[bool]map[string]netip.Addr{false: readyNodes(nodes, false), true: readyNodes(nodes, true)}
	plan := Plan{Ways: map[Port]Way{}}
	for _, svc := range slices.SortedFunc(slices.Values(services), older) {
		if svc.Spec.Type != corev1.ServiceTypeNodePort && svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
			continue
		}
		ready := ready[network.FirstIsIPv6(svc)]
		hosts := hosts(svc, bySvc[svc.Namespace+"/"+svc.Name], ready)
		for _, p := range svc.Spec.Ports {
			if p.NodePort > 0 {
				plan.add(svc, p, p.NodePort, at(hosts, p.NodePort))
			}
			if balancers := balancers(svc, hosts, ready); len(balancers) > 0 {
				plan.add(svc, p, p.Port, at(balancers, p.Port))
			}
		}
	}
	return plan
}

func (p *Plan) add(svc *corev1.Service, port corev1.ServicePort, number int32, to []netip.AddrPort) {
	key := Port{Number: uint16(number)}
	switch port.Protocol {
	case corev1.ProtocolTCP:
		key.Proto = network.TCP
	case corev1.ProtocolUDP:
		key.Proto = network.UDP
	default:
		key.Proto = network.SCTP
		p.NotCarried = append(p.NotCarried, NotCarried{key, svc})
		return
	}
	if has, taken := p.Ways[key]; taken {
		p.Taken = append(p.Taken, Conflict{key, has.Service, svc})
		return
	}
	p.Ways[key] = Way{Service: svc, To: to}
}

func older(a, b *corev1.Service) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// readyNodes are the addresses of one family of the nodes that are Ready, by name.
func readyNodes(nodes []*corev1.Node, v6 bool) map[string]netip.Addr {
	out := map[string]netip.Addr{}
	for _, n := range nodes {
		isReady := slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		})
		for _, a := range n.Status.Addresses {
			ip, err := netip.ParseAddr(a.Address)
			if isReady && err == nil && ip.Is6() == v6 && a.Type == corev1.NodeInternalIP {
				out[n.Name] = ip
			}
		}
	}
	return out
}

// hosts are the nodes by which a service is reached: those with an endpoint, or if
// its endpoints are on no node, any.
func hosts(svc *corev1.Service, endpointSlices []*discoveryv1.EndpointSlice, ready map[string]netip.Addr) []netip.Addr {
	seen, elsewhere := map[netip.Addr]bool{}, false
	for _, s := range endpointSlices {
		for _, e := range s.Endpoints {
			if e.Conditions.Ready != nil && !*e.Conditions.Ready && !svc.Spec.PublishNotReadyAddresses &&
				(e.Conditions.Serving == nil || !*e.Conditions.Serving) {
				continue
			}
			if e.NodeName == nil {
				elsewhere = true
			} else if ip, ok := ready[*e.NodeName]; ok {
				seen[ip] = true
			}
		}
	}
	if len(seen) == 0 && elsewhere && svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		for _, ip := range ready {
			seen[ip] = true
		}
	}
	return sorted(seen)
}

// balancers are the addresses of a load balancer. Of those that are nodes' the ones
// by which the service is reached are taken.
func balancers(svc *corev1.Service, hosts []netip.Addr, ready map[string]netip.Addr) []netip.Addr {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return nil
	}
	isNode := map[netip.Addr]bool{}
	for _, ip := range ready {
		isNode[ip] = true
	}
	all, here := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	for _, in := range svc.Status.LoadBalancer.Ingress {
		ip, err := netip.ParseAddr(in.IP)
		if err != nil || ip.Is6() != network.FirstIsIPv6(svc) {
			continue
		}
		all[ip] = true
		if !isNode[ip] || slices.Contains(hosts, ip) {
			here[ip] = true
		}
	}
	if len(here) > 0 {
		return sorted(here)
	}
	return sorted(all)
}

func sorted(set map[netip.Addr]bool) []netip.Addr {
	var out []netip.Addr
	for ip := range set {
		out = append(out, ip)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

func at(ips []netip.Addr, port int32) []netip.AddrPort {
	out := make([]netip.AddrPort, 0, len(ips))
	for _, ip := range ips {
		out = append(out, netip.AddrPortFrom(ip, uint16(port)))
	}
	return out
}
