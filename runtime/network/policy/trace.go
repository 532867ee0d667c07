package policy

import (
	"context"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Step is what the policies of one pod say about a connection.
type Step struct {
	// Pod is the one whose policies are asked, and Direction which of them.
	Pod       string                  `json:"pod"`
	Direction networkingv1.PolicyType `json:"direction"`
	// SelectedBy are the policies that hold the pod back; without any, all is allowed.
	SelectedBy []string `json:"selectedBy,omitempty"`
	// AllowedBy are the rules of them that let the connection through, as
	// "namespace/name spec.ingress[0]".
	AllowedBy []string `json:"allowedBy,omitempty"`
	Allowed   bool     `json:"allowed"`
}

// Trace says for a connection what the policies at both ends say about it: those of from
// about what goes out, those of the pod at to about what comes in. An end that is no pod
// of the snapshot has none. Both addresses are of one family.
func Trace(s Snapshot, from, to netip.Addr, proto Protocol, port uint16) []Step {
	c := newCompiler(s)
	var out []Step
	for _, end := range []struct {
		t         networkingv1.PolicyType
		pod, peer netip.Addr
	}{{networkingv1.PolicyTypeEgress, from, to}, {networkingv1.PolicyTypeIngress, to, from}} {
		i := slices.IndexFunc(s.Pods, func(p *Pod) bool { return slices.Contains(p.IPs, end.pod) })
		if i < 0 {
			continue
		}
		p := s.Pods[i]
		step := Step{Pod: p.Namespace + "/" + p.Name, Direction: end.t}
		for _, pol := range c.selecting(p, end.t) {
			step.SelectedBy = append(step.SelectedBy, pol.name)
			for path, one := range pol.single(end.t) {
				if slices.ContainsFunc(boxes(c.rules(one, p, end.t, end.peer.Is6())), func(b Box) bool { return b.has(end.peer, proto, port) }) {
					step.AllowedBy = append(step.AllowedBy, pol.name+" "+path)
				}
			}
		}
		// A pod reaches itself whatever its policies say.
		step.Allowed = from == to || len(step.SelectedBy) == 0 || len(step.AllowedBy) > 0
		out = append(out, step)
	}
	return out
}

// single are the rules of a policy in one direction, each as a policy that has only it,
// by the path of the rule.
func (p policy) single(t networkingv1.PolicyType) iter.Seq2[string, policy] {
	return func(yield func(string, policy) bool) {
		spec := &p.obj.Spec
		n, field := len(spec.Ingress), "ingress"
		if t == networkingv1.PolicyTypeEgress {
			n, field = len(spec.Egress), "egress"
		}
		for i := range n {
			one := p
			one.obj = &networkingv1.NetworkPolicy{ObjectMeta: p.obj.ObjectMeta}
			if t == networkingv1.PolicyTypeEgress {
				one.obj.Spec.Egress = spec.Egress[i : i+1]
			} else {
				one.obj.Spec.Ingress = spec.Ingress[i : i+1]
			}
			if !yield(fmt.Sprintf("spec.%s[%d]", field, i), one) {
				return
			}
		}
	}
}

// Holding is what the policies of a pod come to in one direction.
type Holding struct {
	Pod       *Pod
	Direction networkingv1.PolicyType
	// SelectedBy are the policies; there is at least one.
	SelectedBy []string
	// Allowed are the boxes that they allow between them.
	Allowed []Box
}

// Holdings are those of all pods that policies hold back, in the order of the pods.
func Holdings(s Snapshot) []Holding {
	c := newCompiler(s)
	var out []Holding
	for _, p := range s.Pods {
		for _, t := range []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress} {
			h := Holding{Pod: p, Direction: t}
			selecting := c.selecting(p, t)
			for _, pol := range selecting {
				h.SelectedBy = append(h.SelectedBy, pol.name)
			}
			for _, ip := range p.IPs {
				var rules []rule
				for _, pol := range selecting {
					rules = append(rules, c.rules(pol, p, t, ip.Is6())...)
				}
				h.Allowed = append(h.Allowed, boxes(rules)...)
			}
			if len(h.SelectedBy) > 0 {
				out = append(out, h)
			}
		}
	}
	return out
}

func (b Box) has(peer netip.Addr, proto Protocol, port uint16) bool {
	return b.From.Compare(peer) <= 0 && peer.Compare(b.To) <= 0 && b.FirstProto <= proto && proto <= b.Proto && b.FirstPort <= port && port <= b.LastPort
}

// Fetch makes a snapshot of the whole cluster as it is now.
func Fetch(ctx context.Context, client kubernetes.Interface) (Snapshot, error) {
	policies, err := client.NetworkingV1().NetworkPolicies(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return Snapshot{}, fmt.Errorf("list network policies: %w", err)
	}
	pods, err := client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return Snapshot{}, fmt.Errorf("list pods: %w", err)
	}
	namespaces, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return Snapshot{}, fmt.Errorf("list namespaces: %w", err)
	}
	return snapshot("", nil, pointers(policies.Items), pointers(pods.Items), pointers(namespaces.Items)), nil
}

func pointers[T any](list []T) []*T {
	out := make([]*T, len(list))
	for i := range list {
		out[i] = &list[i]
	}
	return out
}
