package defaults

import (
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// IngressClass looks for its parameters in the cluster, not in a namespace.
func IngressClass(c *networkingv1.IngressClass) {
	if p := c.Spec.Parameters; p != nil {
		missing(&p.Scope, networkingv1.IngressClassParametersReferenceScopeCluster)
	}
}

// NetworkPolicy is about what comes in, and about what goes out if it has rules for
// that; ports are TCP.
func NetworkPolicy(p *networkingv1.NetworkPolicy) {
	if len(p.Spec.PolicyTypes) == 0 {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(p.Spec.Egress) != 0 {
			p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	for i := range p.Spec.Ingress {
		policyPorts(p.Spec.Ingress[i].Ports)
	}
	for i := range p.Spec.Egress {
		policyPorts(p.Spec.Egress[i].Ports)
	}
}

func policyPorts(ports []networkingv1.NetworkPolicyPort) {
	for i := range ports {
		missing(&ports[i].Protocol, corev1.ProtocolTCP)
	}
}
