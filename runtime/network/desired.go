package network

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Desired computes what the proxy of a node has to do from the API's objects: the
// cluster addresses of all services. Services without an address of their own
// (headless, ExternalName) and protocols other than TCP and UDP are left out.
func Desired(node string, services []*corev1.Service, slices []*discoveryv1.EndpointSlice) State {
	byService := map[string][]*discoveryv1.EndpointSlice{}
	for _, s := range slices {
		if s.AddressType == discoveryv1.AddressTypeIPv4 {
			key := s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
			byService[key] = append(byService[key], s)
		}
	}
	var out State
	for _, svc := range services {
		ip, err := netip.ParseAddr(svc.Spec.ClusterIP)
		if err != nil || !ip.Is4() || svc.Spec.Type == corev1.ServiceTypeExternalName {
			continue
		}
		for _, port := range svc.Spec.Ports {
			proto, ok := protocol(port.Protocol)
			if !ok || port.Port < 1 || port.Port > 65535 {
				continue
			}
			out.Services = append(out.Services, Service{
				IP: ip, Port: uint16(port.Port), Proto: proto, Local: ip == DNSIP,
				Affinity:  svc.Spec.SessionAffinity == corev1.ServiceAffinityClientIP,
				Endpoints: endpoints(node, svc, port, byService[svc.Namespace+"/"+svc.Name]),
			})
		}
	}
	return out
}

func protocol(p corev1.Protocol) (Protocol, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return TCP, true
	case corev1.ProtocolUDP:
		return UDP, true
	default:
		return 0, false
	}
}

// endpoints follows KEP-1669 (proxy terminating endpoints): the ready ones, or if
// there are none those that still serve while they end. With
// publishNotReadyAddresses all count as ready. internalTrafficPolicy Local takes
// those of this node alone.
func endpoints(node string, svc *corev1.Service, port corev1.ServicePort, slices []*discoveryv1.EndpointSlice) []netip.AddrPort {
	local := svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	var ready, ending []netip.AddrPort
	for _, s := range slices {
		number, ok := targetPort(s, port)
		if !ok {
			continue
		}
		for _, e := range s.Endpoints {
			if len(e.Addresses) == 0 || (local && (e.NodeName == nil || *e.NodeName != node)) {
				continue
			}
			ip, err := netip.ParseAddr(e.Addresses[0]) // one address an endpoint, says the API
			if err != nil || !ip.Is4() {
				continue
			}
			to := netip.AddrPortFrom(ip, number)
			c := e.Conditions
			switch {
			case isTrue(c.Ready, true) || svc.Spec.PublishNotReadyAddresses:
				ready = append(ready, to)
			case isTrue(c.Serving, false) && isTrue(c.Terminating, false):
				ending = append(ending, to)
			}
		}
	}
	if len(ready) > 0 {
		return ready
	}
	return ending
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
