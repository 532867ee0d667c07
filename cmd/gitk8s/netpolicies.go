package main

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/policy"
)

func newNetPolicies(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "policies [POD]",
		Aliases: []string{"policy", "netpol"},
		Short:   "Show which NetworkPolicies hold which pods back, what they allow, and whether the node enforces it",
		Args:    maxArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := e.clientset()
			if err != nil {
				return err
			}
			s, err := policy.Fetch(cmd.Context(), client)
			if err != nil {
				return hint(err)
			}
			pods, err := client.CoreV1().Pods(metav1.NamespaceAll).List(cmd.Context(), metav1.ListOptions{})
			if err != nil {
				return hint(err)
			}
			wanted := func(p *policy.Pod) bool {
				return (e.v.GetBool("all-namespaces") || p.Namespace == e.namespace()) && (len(args) == 0 || p.Name == args[0])
			}
			if len(args) > 0 && !slices.ContainsFunc(s.Pods, wanted) {
				return fmt.Errorf("there is no pod %s/%s with an address of the pod network", e.namespace(), args[0])
			}
			var nodes []netNode
			for _, name := range nodesOf(pods.Items) {
				nodes = append(nodes, netNode{Place: network.Place{Node: name}})
			}
			askNodes(cmd.Context(), client, nodes)
			out := heldPods(s, wanted, pods.Items, nodes)
			return e.print(e.v.GetString("output"), out, func(w io.Writer) error { return writeHeldPods(w, out) })
		},
	}
	outputFlag(cmd)
	f := cmd.Flags()
	f.StringP("namespace", "n", metav1.NamespaceDefault, "namespace of the pods")
	f.BoolP("all-namespaces", "A", false, "pods of all namespaces")
	return cmd
}

func nodesOf(pods []corev1.Pod) []string {
	var out []string
	for i := range pods {
		if n := pods[i].Spec.NodeName; n != "" && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// heldPod is what policies come to for one pod in one direction.
type heldPod struct {
	Pod        string   `json:"pod"`
	Node       string   `json:"node"`
	Direction  string   `json:"direction"`
	SelectedBy []string `json:"selectedBy"`
	// Allowed are peers with ports; nothing else gets through.
	Allowed []string `json:"allowed"`
	// Enforced says whether the node's kernel does so: yes, no, or unknown and why.
	Enforced string `json:"enforced"`
}

func heldPods(s policy.Snapshot, wanted func(*policy.Pod) bool, pods []corev1.Pod, nodes []netNode) []heldPod {
	names := map[netip.Addr]string{}
	for _, p := range s.Pods {
		for _, ip := range p.IPs {
			names[ip] = p.Namespace + "/" + p.Name
		}
	}
	out := []heldPod{}
	for _, h := range policy.Holdings(s) {
		if !wanted(h.Pod) {
			continue
		}
		held := heldPod{Pod: h.Pod.Namespace + "/" + h.Pod.Name, Direction: string(h.Direction), SelectedBy: h.SelectedBy, Allowed: []string{}, Enforced: "unknown"}
		for _, b := range h.Allowed {
			held.Allowed = append(held.Allowed, boxText(b, names))
		}
		for i := range pods {
			if pods[i].Namespace == h.Pod.Namespace && pods[i].Name == h.Pod.Name {
				held.Node = pods[i].Spec.NodeName
			}
		}
		for i := range nodes {
			switch n := &nodes[i]; {
			case n.Node != held.Node:
			case n.err != nil:
				held.Enforced = "unknown: " + n.err.Error()
			default:
				held.Enforced = "yes"
				for _, ip := range h.Pod.IPs {
					if !n.state.Policies.Has(ip, h.Direction) {
						held.Enforced = "no"
					}
				}
			}
		}
		out = append(out, held)
	}
	return out
}

// boxText is a box in words: a pod's name where it is one pod.
func boxText(b policy.Box, names map[netip.Addr]string) string {
	peer := b.From.String()
	switch {
	case b.From.IsUnspecified() && !b.To.Next().IsValid():
		peer = "anywhere"
	case b.From != b.To:
		peer += "-" + b.To.String()
	case names[b.From] != "":
		peer = names[b.From]
	}
	if b.FirstProto != b.Proto {
		return peer
	}
	proto := network.Protocol(b.Proto)
	switch {
	case b.FirstPort == 0 && b.LastPort == 65535:
		return fmt.Sprintf("%s any port/%s", peer, proto)
	case b.FirstPort != b.LastPort:
		return fmt.Sprintf("%s %d-%d/%s", peer, b.FirstPort, b.LastPort, proto)
	}
	return fmt.Sprintf("%s %d/%s", peer, b.FirstPort, proto)
}

func writeHeldPods(w io.Writer, pods []heldPod) error {
	if len(pods) == 0 {
		_, err := fmt.Fprintln(w, "No policy holds a pod back: everything is allowed.")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "POD\tNODE\tDIRECTION\tPOLICIES\tALLOWED\tENFORCED")
	for _, p := range pods {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", p.Pod, cmp.Or(p.Node, "-"), p.Direction, strings.Join(p.SelectedBy, ","), cmp.Or(strings.Join(p.Allowed, ", "), "nothing"), p.Enforced)
	}
	return t.Flush()
}
