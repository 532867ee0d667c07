package policy

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// started are the pods of this node whose network has been made, with the addresses
// that they have there. The API hears of these later than the node knows.
type started map[types.UID]*Pod

// add records a pod. Another one that had the address before is gone.
func (s started) add(pod *corev1.Pod, ip netip.Addr) {
	for uid, other := range s {
		if other.IP == ip && uid != pod.UID {
			delete(s, uid)
		}
	}
	s[pod.UID] = podOf(pod, ip, true)
}

// snapshot is what the API and a node know together. The node knows better which of its
// pods has which address; labels are those of the API, where they are newer.
func snapshot(node string, here started, policies []*networkingv1.NetworkPolicy, pods []*corev1.Pod, namespaces []*corev1.Namespace) Snapshot {
	s := Snapshot{Policies: policies, Namespaces: make(map[string]labels.Set, len(namespaces))}
	for _, ns := range namespaces {
		s.Namespaces[ns.Name] = ns.Labels
	}
	taken := make(map[netip.Addr]bool, len(here))
	for _, p := range here {
		taken[p.IP] = true
	}
	seen := make(map[types.UID]bool, len(here))
	for _, p := range pods {
		if own, ok := here[p.UID]; ok {
			seen[p.UID] = true
			s.Pods = append(s.Pods, podOf(p, own.IP, true))
			continue
		}
		ip, err := netip.ParseAddr(p.Status.PodIP)
		if err != nil || taken[ip] || p.Spec.HostNetwork || ended(p) {
			continue
		}
		s.Pods = append(s.Pods, podOf(p, ip, p.Spec.NodeName == node))
	}
	for uid, p := range here {
		if !seen[uid] {
			s.Pods = append(s.Pods, p)
		}
	}
	return s
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func podOf(p *corev1.Pod, ip netip.Addr, local bool) *Pod {
	out := &Pod{Namespace: p.Namespace, Name: p.Name, Labels: p.Labels, IP: ip, Local: local}
	add := func(c *corev1.Container) {
		for _, port := range c.Ports {
			if port.Name != "" {
				out.Ports = append(out.Ports, Port{port.Name, ProtocolOf(port.Protocol), uint16(port.ContainerPort)})
			}
		}
	}
	for i := range p.Spec.Containers {
		add(&p.Spec.Containers[i])
	}
	for i := range p.Spec.InitContainers {
		if sidecar(&p.Spec.InitContainers[i]) {
			add(&p.Spec.InitContainers[i])
		}
	}
	return out
}

func sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}
