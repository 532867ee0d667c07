package policy

import (
	"context"
	"fmt"
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
	// AllowedBy are those of them that let the connection through.
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
			if slices.ContainsFunc(boxes(c.rules(pol, p, end.t, end.peer.Is6())), func(b Box) bool { return b.has(end.peer, proto, port) }) {
				step.AllowedBy = append(step.AllowedBy, pol.name)
			}
		}
		// A pod reaches itself whatever its policies say.
		step.Allowed = from == to || len(step.SelectedBy) == 0 || len(step.AllowedBy) > 0
		out = append(out, step)
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
