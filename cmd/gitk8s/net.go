package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/policy"
)

func newNet(e *env) *cobra.Command {
	cmd := &cobra.Command{Use: "net", Short: "Ask about the network of pods"}
	cmd.AddCommand(newNetTrace(e))
	return cmd
}

func newNetTrace(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "trace POD TO:PORT[/udp|/sctp]",
		Short: "Say whether NetworkPolicies let a pod connect, and which of them do",
		Long: "Say whether NetworkPolicies let a pod connect, and which of them do. TO is a pod,\n" +
			"of another namespace as NAMESPACE/POD, or an address, [of IPv6]; PORT a number, or the\n" +
			"name of a port of the pod. Whether something answers there is not asked.",
		Args: exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := e.restConfig()
			if err != nil {
				return err
			}
			client, err := kubernetes.NewForConfig(cfg)
			if err != nil {
				return err
			}
			s, err := policy.Fetch(cmd.Context(), client)
			if err != nil {
				return hint(err)
			}
			trace, err := traceNet(s, e.namespace(), args[0], args[1])
			if err != nil {
				return err
			}
			return e.print(e.v.GetString("output"), trace, func(w io.Writer) error { return writeTrace(w, trace) })
		},
	}
	outputFlag(cmd)
	cmd.Flags().StringP("namespace", "n", metav1.NamespaceDefault, "namespace of the pod")
	return cmd
}

// netTrace is what `net trace` prints.
type netTrace struct {
	From    string        `json:"from"`
	To      string        `json:"to"`
	Allowed bool          `json:"allowed"`
	Steps   []policy.Step `json:"steps"`
}

func traceNet(s policy.Snapshot, namespace, from, target string) (*netTrace, error) {
	source, err := findPod(s, namespace, from)
	if err != nil {
		return nil, err
	}
	host, portText, err := net.SplitHostPort(target)
	if err != nil {
		return nil, usageError("to where? TO:PORT: %w", err)
	}
	portText, protoText, _ := strings.Cut(portText, "/")
	proto, ok := map[string]policy.Protocol{"": policy.TCP, "tcp": policy.TCP, "udp": policy.UDP, "sctp": policy.SCTP}[strings.ToLower(protoText)]
	if !ok {
		return nil, usageError("protocol %q is none of tcp, udp and sctp", protoText)
	}
	var ports []policy.Port
	to, err := netip.ParseAddr(host)
	if err != nil {
		pod, err := findPod(s, namespace, host)
		if err != nil {
			return nil, err
		}
		if to = network.Same(source.IPs[0], pod.IPs); !to.IsValid() {
			to = pod.IPs[0]
		}
		ports = pod.Ports
	}
	start := network.Same(to, source.IPs)
	if !start.IsValid() {
		return nil, fmt.Errorf("pod %s/%s has no address of the family of %s", source.Namespace, source.Name, to)
	}
	port, err := portNumber(ports, portText, proto)
	if err != nil {
		return nil, err
	}
	out := &netTrace{
		From: source.Namespace + "/" + source.Name, To: netip.AddrPortFrom(to, port).String(), Allowed: true,
		Steps: policy.Trace(s, start, to, proto, port),
	}
	for _, step := range out.Steps {
		out.Allowed = out.Allowed && step.Allowed
	}
	return out, nil
}

// findPod finds one by its name, or namespace/name.
func findPod(s policy.Snapshot, namespace, name string) (*policy.Pod, error) {
	if ns, rest, ok := strings.Cut(name, "/"); ok {
		namespace, name = ns, rest
	}
	i := slices.IndexFunc(s.Pods, func(p *policy.Pod) bool { return p.Namespace == namespace && p.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("there is no pod %s/%s with an address of the pod network", namespace, name)
	}
	return s.Pods[i], nil
}

// portNumber is the number of a port that may be named.
func portNumber(ports []policy.Port, text string, proto policy.Protocol) (uint16, error) {
	if n, err := strconv.ParseUint(text, 10, 16); err == nil {
		return uint16(n), nil
	}
	i := slices.IndexFunc(ports, func(p policy.Port) bool { return p.Name == text && p.Protocol == proto })
	if i < 0 {
		return 0, fmt.Errorf("port %q is no number and no port of the pod", text)
	}
	return ports[i].Number, nil
}

func writeTrace(w io.Writer, trace *netTrace) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "%s to %s: %s\n\n", trace.From, trace.To, verdict(trace.Allowed))
	fmt.Fprintln(t, "POD\tDIRECTION\tVERDICT\tWHY")
	for _, s := range trace.Steps {
		why := "selected by " + strings.Join(s.SelectedBy, ", ") + "; "
		switch {
		case len(s.SelectedBy) == 0:
			why = "no policy selects it"
		case len(s.AllowedBy) > 0:
			why += "allowed by " + strings.Join(s.AllowedBy, ", ")
		case s.Allowed:
			why += "a pod reaches itself"
		default:
			why += "none of them allows it"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", s.Pod, s.Direction, verdict(s.Allowed), why)
	}
	return t.Flush()
}

func verdict(allowed bool) string {
	if allowed {
		return "allowed"
	}
	return "denied"
}
