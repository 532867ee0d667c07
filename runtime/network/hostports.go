package network

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// WithHostPorts adds the host ports of this node's pods, which come before node ports
// and external addresses with the same number. A port is served at every address of
// the node, or at its hostIP alone, and leads to the pod; the pod sees its client's
// address. Pods that use the node's network have their ports by themselves. The
// scheduler sees to it that no two pods of a node want the same.
func (s State) WithHostPorts(pods []*corev1.Pod) State {
	taken := map[portKey]bool{}
	var ports []Service
	for _, p := range pods {
		if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		for _, ip := range PodIPs(&p.Status) {
			for _, port := range hostPorts(p, ip) {
				if key := (portKey{port.IP, port.Proto, port.Port}); !taken[key] {
					taken[key] = true
					ports = append(ports, port)
				}
			}
		}
	}
	if len(ports) == 0 {
		return s
	}
	s.Services = slices.DeleteFunc(slices.Clone(s.Services), func(svc Service) bool { return taken[portKey{svc.IP, svc.Proto, svc.Port}] })
	s.Services = append(s.Services, ports...)
	return s
}

// PodIPs are the addresses that a pod's status has, at most one of each family.
func PodIPs(status *corev1.PodStatus) []netip.Addr {
	all := status.PodIPs
	if len(all) == 0 {
		all = []corev1.PodIP{{IP: status.PodIP}}
	}
	var out []netip.Addr
	for _, text := range all {
		if ip, err := netip.ParseAddr(text.IP); err == nil && !Same(ip, out).IsValid() {
			out = append(out, ip)
		}
	}
	return out
}

// hostPorts are those of a pod's containers and sidecars.
func hostPorts(p *corev1.Pod, ip netip.Addr) []Service {
	var out []Service
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		for _, port := range c.Ports {
			proto, ok := protocol(port.Protocol)
			if !ok || port.HostPort <= 0 || port.HostPort > 65535 || port.ContainerPort <= 0 || port.ContainerPort > 65535 {
				continue
			}
			at := anyNodeAddress(ip.Is6())
			if port.HostIP != "" {
				var err error
				if at, err = netip.ParseAddr(port.HostIP); err != nil || at.Is6() != ip.Is6() {
					continue
				}
			}
			out = append(out, Service{
				IP: at, Port: uint16(port.HostPort), Proto: proto, Endpoints: []netip.AddrPort{netip.AddrPortFrom(ip, uint16(port.ContainerPort))},
			})
		}
	}
	return out
}
