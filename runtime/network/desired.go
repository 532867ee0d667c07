package network

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Place is where a proxy is.
type Place struct {
	Node string
	// Zone is the node's topology.kubernetes.io/zone.
	Zone string
	// Names are the service addresses at which the node answers names itself.
	Names []netip.Addr
}

// Desired computes what the proxy of a node has to do from the API's objects: the
// cluster addresses of all services, their node ports, and the addresses outside of
// the cluster that lead to them. Services without an address of their own
// (headless, ExternalName) are left out. Of two services that claim the same port
// of an address the older one has it.
func Desired(at Place, services []*corev1.Service, endpointSlices []*discoveryv1.EndpointSlice) State {
	byService := SlicesByService(endpointSlices)
	sorted := slices.SortedFunc(slices.Values(services), older)
	var out State
	taken := map[portKey]bool{}
	for _, svc := range sorted {
		for _, ip := range clusterIPs(svc) {
			for _, port := range svc.Spec.Ports {
				proto, ok := protocol(port.Protocol)
				if !ok || port.Port < 1 || port.Port > 65535 {
					continue
				}
				chosen := choose(at, svc, port, byService[svc.Namespace+"/"+svc.Name], ip.Is6())
				for _, f := range fronts(at, svc, port, proto, ip, chosen) {
					if key := (portKey{f.IP, f.Proto, f.Port}); !taken[key] {
						taken[key] = true
						out.Services = append(out.Services, f)
					}
				}
			}
		}
	}
	return out
}

// clusterIPs are a service's own addresses, at most one of each family.
func clusterIPs(svc *corev1.Service) []netip.Addr {
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	all := svc.Spec.ClusterIPs
	if len(all) == 0 {
		all = []string{svc.Spec.ClusterIP}
	}
	var out []netip.Addr
	for _, text := range all {
		if ip, err := netip.ParseAddr(text); err == nil && !Same(ip, out).IsValid() {
			out = append(out, ip)
		}
	}
	return out
}

// FirstIsIPv6 says that the first or only family of a service is IPv6.
func FirstIsIPv6(svc *corev1.Service) bool {
	if len(svc.Spec.IPFamilies) > 0 {
		return svc.Spec.IPFamilies[0] == corev1.IPv6Protocol
	}
	ips := clusterIPs(svc)
	return len(ips) > 0 && ips[0].Is6()
}

func older(a, b *corev1.Service) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// SlicesByService sorts the slices that have addresses by namespace/name of their service.
func SlicesByService(endpointSlices []*discoveryv1.EndpointSlice) map[string][]*discoveryv1.EndpointSlice {
	out := map[string][]*discoveryv1.EndpointSlice{}
	for _, s := range endpointSlices {
		if s.AddressType != discoveryv1.AddressTypeFQDN {
			key := s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
			out[key] = append(out[key], s)
		}
	}
	return out
}

// fronts are the addresses at which one port of a service is reached. What comes
// from outside hides its client's address behind the node's, unless
// externalTrafficPolicy is Local: then it stays on the node.
func fronts(at Place, svc *corev1.Service, port corev1.ServicePort, proto Protocol, clusterIP netip.Addr, e endpoints) []Service {
	front := Service{Proto: proto, Port: uint16(port.Port), Affinity: affinity(svc)}
	inside := front
	inside.IP, inside.Local, inside.Endpoints = clusterIP, slices.Contains(at.Names, clusterIP), e.cluster
	if p := svc.Spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
		inside.Endpoints = e.local
	}
	out := []Service{inside}
	if svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		front.NodeLocal, front.Endpoints, front.Inside = true, e.local, e.cluster
	} else {
		front.Masquerade, front.Endpoints = true, e.cluster
	}
	add := func(address string, sources []netip.Prefix) {
		f := front
		var err error
		if f.IP, err = netip.ParseAddr(address); err == nil && f.IP.Is6() == clusterIP.Is6() && !f.IP.IsUnspecified() {
			f.Sources = sources
			out = append(out, f)
		}
	}
	for _, address := range svc.Spec.ExternalIPs {
		add(address, nil)
	}
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for _, ingress := range svc.Status.LoadBalancer.Ingress {
			// Those of mode Proxy come here with the node's address (KEP-1860).
			if ingress.IPMode == nil || *ingress.IPMode == corev1.LoadBalancerIPModeVIP {
				add(ingress.IP, sources(svc, clusterIP.Is6()))
			}
		}
	}
	if hasNodePorts(svc) && port.NodePort > 0 && port.NodePort <= 65535 {
		front.IP, front.Port = anyNodeAddress(clusterIP.Is6()), uint16(port.NodePort)
		out = append(out, front)
	}
	return out
}

func hasNodePorts(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeNodePort || svc.Spec.Type == corev1.ServiceTypeLoadBalancer
}

func affinity(svc *corev1.Service) time.Duration {
	if svc.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	return time.Duration(seconds) * time.Second
}

// sources leaves out ranges of another family. If that leaves none, nobody may
// connect.
func sources(svc *corev1.Service, v6 bool) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range svc.Spec.LoadBalancerSourceRanges {
		if p, err := netip.ParsePrefix(strings.TrimSpace(r)); err == nil && p.Addr().Is6() == v6 {
			out = append(out, p)
		}
	}
	if len(out) == 0 && len(svc.Spec.LoadBalancerSourceRanges) > 0 {
		out = append(out, host(anyNodeAddress(v6))) // no client's address
	}
	return out
}

func protocol(p corev1.Protocol) (Protocol, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return TCP, true
	case corev1.ProtocolUDP:
		return UDP, true
	case corev1.ProtocolSCTP:
		return SCTP, true
	default:
		return 0, false
	}
}

// endpoints of one port of a service.
type endpoints struct {
	cluster []netip.AddrPort // for traffic policy Cluster
	local   []netip.AddrPort // those of this node, for traffic policy Local
}

// candidate is an endpoint with what is known of it.
type candidate struct {
	to    netip.AddrPort
	local bool
	hints *discoveryv1.EndpointHints
}

// choose follows KEP-1669 (proxy terminating endpoints): the ready ones, or if
// there are none those that still serve while they end. With
// publishNotReadyAddresses all count as ready.
func choose(at Place, svc *corev1.Service, port corev1.ServicePort, endpointSlices []*discoveryv1.EndpointSlice, v6 bool) endpoints {
	ready, ending := candidates(at, svc, port, endpointSlices, v6)
	isRemote := func(c candidate) bool { return !c.local }
	localReady := slices.DeleteFunc(slices.Clone(ready), isRemote)
	localEnding := slices.DeleteFunc(slices.Clone(ending), isRemote)
	return endpoints{cluster: addresses(nearest(at, ready), ending), local: addresses(localReady, localEnding)}
}

// addresses are those of the first list that has any.
func addresses(lists ...[]candidate) []netip.AddrPort {
	for _, list := range lists {
		if len(list) == 0 {
			continue
		}
		out := make([]netip.AddrPort, 0, len(list))
		for _, c := range list {
			out = append(out, c.to)
		}
		return out
	}
	return nil
}

// nearest are those of the endpoints that hints say are for this node, or else for
// its zone. Where one has no hint, or none is for here, they all are: half of the
// hints would be worse than none (page "Topology Aware Routing", section
// "Safeguards").
func nearest(at Place, ready []candidate) []candidate {
	here := func(hinted func(*discoveryv1.EndpointHints) (some, mine bool)) []candidate {
		var out []candidate
		for _, c := range ready {
			if c.hints == nil {
				return nil
			}
			some, mine := hinted(c.hints)
			if !some {
				return nil
			}
			if mine {
				out = append(out, c)
			}
		}
		return out
	}
	node := here(func(h *discoveryv1.EndpointHints) (bool, bool) {
		return len(h.ForNodes) > 0, slices.Contains(h.ForNodes, discoveryv1.ForNode{Name: at.Node})
	})
	if len(node) > 0 {
		return node
	}
	zone := here(func(h *discoveryv1.EndpointHints) (bool, bool) {
		return len(h.ForZones) > 0, at.Zone != "" && slices.Contains(h.ForZones, discoveryv1.ForZone{Name: at.Zone})
	})
	if len(zone) > 0 {
		return zone
	}
	return ready
}

// candidates are the endpoints of a family that are ready, and those that still serve
// while they end.
func candidates(at Place, svc *corev1.Service, port corev1.ServicePort, endpointSlices []*discoveryv1.EndpointSlice, v6 bool) (ready, ending []candidate) {
	for _, s := range endpointSlices {
		number, ok := targetPort(s, port)
		if !ok || (s.AddressType == discoveryv1.AddressTypeIPv6) != v6 {
			continue
		}
		for _, e := range s.Endpoints {
			if len(e.Addresses) == 0 {
				continue
			}
			ip, err := netip.ParseAddr(e.Addresses[0]) // one address an endpoint, says the API
			if err != nil || ip.Is6() != v6 || ip.Is4In6() || toItself(ip) {
				continue
			}
			found := candidate{to: netip.AddrPortFrom(ip, number), hints: e.Hints, local: e.NodeName != nil && *e.NodeName == at.Node}
			switch c := e.Conditions; {
			case isTrue(c.Ready, true) || svc.Spec.PublishNotReadyAddresses:
				ready = append(ready, found)
			case isTrue(c.Serving, false) && isTrue(c.Terminating, false):
				ending = append(ending, found)
			}
		}
	}
	return ready, ending
}

// toItself says that an address leads a node to itself, or to whoever is on its link.
// The API refuses such endpoints; who may write them all the same must not get at what
// listens there.
func toItself(ip netip.Addr) bool {
	return ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() || ip.IsMulticast()
}

// Serving are the endpoints behind one port of a service, wherever they are: what
// choose finds for traffic policy Cluster, without hints, in the service's first family
// or, if that has none, in the other one.
func Serving(svc *corev1.Service, port corev1.ServicePort, endpointSlices []*discoveryv1.EndpointSlice) []netip.AddrPort {
	first := FirstIsIPv6(svc)
	ready, ending := candidates(Place{}, svc, port, endpointSlices, first)
	if len(ready)+len(ending) == 0 {
		ready, ending = candidates(Place{}, svc, port, endpointSlices, !first)
	}
	return addresses(ready, ending)
}

func isTrue(b *bool, unset bool) bool {
	if b == nil {
		return unset
	}
	return *b
}

// targetPort finds the service's port in the slice by name.
func targetPort(s *discoveryv1.EndpointSlice, port corev1.ServicePort) (uint16, bool) {
	for _, p := range s.Ports {
		name := ""
		if p.Name != nil {
			name = *p.Name
		}
		if name == port.Name && p.Port != nil && *p.Port > 0 && *p.Port <= 65535 {
			return uint16(*p.Port), true
		}
	}
	return 0, false
}
