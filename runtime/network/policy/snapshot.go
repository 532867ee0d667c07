package policy

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"gitk8s.dev/gitk8s/runtime/network"
)

// started are the pods of this node whose network has been made, with the addresses
// that they have there. The API hears of these later than the node knows.
type started map[types.UID]*Pod

// add records a pod. Another one that had one of the addresses before is gone.
func (s started) add(pod *corev1.Pod, ips []netip.Addr) {
	for uid, other := range s {
		if uid != pod.UID && slices.ContainsFunc(other.IPs, func(a netip.Addr) bool { return slices.Contains(ips, a) }) {
			delete(s, uid)
		}
	}
	s[pod.UID] = podOf(pod, ips, true)
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
		for _, ip := range p.IPs {
			taken[ip] = true
		}
	}
	seen := make(map[types.UID]bool, len(here))
	for _, p := range pods {
		if own, ok := here[p.UID]; ok {
			seen[p.UID] = true
			s.Pods = append(s.Pods, podOf(p, own.IPs, true))
			continue
		}
		ips := network.PodIPs(&p.Status)
		if len(ips) == 0 || slices.ContainsFunc(ips, func(a netip.Addr) bool { return taken[a] }) || p.Spec.HostNetwork || ended(p) {
			continue
		}
		s.Pods = append(s.Pods, podOf(p, ips, p.Spec.NodeName == node))
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

func podOf(p *corev1.Pod, ips []netip.Addr, local bool) *Pod {
	out := &Pod{Namespace: p.Namespace, Name: p.Name, Labels: p.Labels, IPs: ips, Local: local}
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
