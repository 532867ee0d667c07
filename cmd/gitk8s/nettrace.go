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
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/policy"
)

func newNetTrace(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "trace POD TO:PORT[/udp|/sctp]",
		Short: "Say whether services and NetworkPolicies let a pod connect, and which rules do",
		Long: "Say whether services and NetworkPolicies let a pod connect, and which rules of them\n" +
			"do. TO is a pod or a service, of another namespace as NAMESPACE/NAME, or an IP\n" +
			"address ([of IPv6]), of a service, too; PORT a number, or the name of a port. Whether something\n" +
			"answers there is not asked.",
		Args: exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := e.clientset()
			if err != nil {
				return err
			}
			s, err := policy.Fetch(cmd.Context(), client)
			if err != nil {
				return hint(err)
			}
			v, err := fetchNetView(cmd.Context(), client, metav1.NamespaceAll)
			if err != nil {
				return hint(err)
			}
			trace, err := traceNet(s, v, e.namespace(), args[0], args[1])
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
	From string `json:"from"`
	To   string `json:"to"`
	// Service says which one To is the address of.
	Service string `json:"service,omitempty"`
	// Allowed: all of Paths are, and there is one.
	Allowed bool `json:"allowed"`
	// Paths are the ways that a connection may take: one, or one for each endpoint of the
	// service from which the pod's node chooses.
	Paths []netPath `json:"paths"`
}

type netPath struct {
	To      string        `json:"to"`
	Allowed bool          `json:"allowed"`
	Steps   []policy.Step `json:"steps"`
}

func traceNet(s policy.Snapshot, v *netView, namespace, from, target string) (*netTrace, error) {
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
	out := &netTrace{From: source.Namespace + "/" + source.Name}
	to, ends, err := v.destination(s, source, namespace, host, portText, proto)
	if err != nil {
		return nil, err
	}
	out.To, out.Service, out.Allowed = to.Address, to.From, len(ends) > 0
	for _, end := range ends {
		start := network.Same(end.Addr(), source.IPs)
		if !start.IsValid() {
			return nil, fmt.Errorf("pod %s has no address of the family of %s", out.From, end.Addr())
		}
		path := netPath{To: end.String(), Allowed: true, Steps: policy.Trace(s, start, end.Addr(), proto, end.Port())}
		for _, step := range path.Steps {
			path.Allowed = path.Allowed && step.Allowed
		}
		out.Paths = append(out.Paths, path)
		out.Allowed = out.Allowed && path.Allowed
	}
	return out, nil
}

// destination is where a connection of a pod is addressed to, and where it may arrive.
func (v *netView) destination(s policy.Snapshot, from *policy.Pod, namespace, host, port string, proto policy.Protocol) (netRoute, []netip.AddrPort, error) {
	ip, err := netip.ParseAddr(host)
	isAddress := err == nil
	var ports []policy.Port
	svc := v.service(namespace, host, ip)
	pod, err := findPod(s, namespace, host)
	switch {
	case err == nil:
		if ip = network.Same(from.IPs[0], pod.IPs); !ip.IsValid() {
			ip = pod.IPs[0]
		}
		ports, svc = pod.Ports, nil
	case svc == nil && !isAddress:
		return netRoute{}, nil, fmt.Errorf("%w, and no service either", err)
	}
	if svc == nil {
		number, err := portNumber(ports, port, proto)
		if err != nil {
			return netRoute{}, nil, err
		}
		at := netip.AddrPortFrom(ip, number)
		return netRoute{Address: at.String()}, []netip.AddrPort{at}, nil
	}
	name := svc.Namespace + "/" + svc.Name
	one := *svc
	one.Spec.Ports = slices.DeleteFunc(slices.Clone(svc.Spec.Ports), func(p corev1.ServicePort) bool {
		return policy.ProtocolOf(p.Protocol) != proto || p.Name != port && fmt.Sprint(p.Port) != port
	})
	if len(one.Spec.Ports) == 0 {
		return netRoute{}, nil, fmt.Errorf("service %s has no port %s/%s", name, port, network.Protocol(proto))
	}
	fronts := network.Desired(v.placeOf(from), []*corev1.Service{&one}, v.slices).Services
	i := slices.IndexFunc(fronts, func(f network.Service) bool {
		return f.IP == ip || !isAddress && network.Same(f.IP, from.IPs).IsValid()
	})
	if i < 0 {
		return netRoute{}, nil, fmt.Errorf("service %s has no address: ask for one of its pods", name)
	}
	front := fronts[i]
	to := netRoute{From: name, Address: netip.AddrPortFrom(front.IP, front.Port).String()}
	switch {
	case front.Local: // the node itself
		return to, []netip.AddrPort{netip.AddrPortFrom(front.IP, front.Port)}, nil
	case front.NodeLocal:
		return to, front.Inside, nil
	}
	return to, front.Endpoints, nil
}

// service finds one by its address, or by its name, or namespace/name.
func (v *netView) service(namespace, name string, ip netip.Addr) *corev1.Service {
	if ns, rest, ok := strings.Cut(name, "/"); ok {
		namespace, name = ns, rest
	}
	for _, s := range v.services {
		addresses := append(slices.Clone(s.Spec.ClusterIPs), s.Spec.ExternalIPs...)
		for _, i := range s.Status.LoadBalancer.Ingress {
			addresses = append(addresses, i.IP)
		}
		if s.Namespace == namespace && s.Name == name || ip.IsValid() && slices.Contains(addresses, ip.String()) {
			return s
		}
	}
	return nil
}

// placeOf is the node of a pod.
func (v *netView) placeOf(pod *policy.Pod) network.Place {
	for _, p := range v.pods {
		if p.Namespace != pod.Namespace || p.Name != pod.Name {
			continue
		}
		for _, n := range v.nodes {
			if n.Node == p.Spec.NodeName {
				return n.Place
			}
		}
	}
	return network.Place{}
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
	to, open := trace.To, 0
	if trace.Service != "" {
		to = trace.Service + " at " + to
	}
	for _, p := range trace.Paths {
		if p.Allowed {
			open++
		}
	}
	result := verdict(trace.Allowed)
	switch {
	case len(trace.Paths) == 0:
		result = "refused: no endpoint is ready"
	case open > 0 && open < len(trace.Paths):
		result = fmt.Sprintf("allowed by %d of %d endpoints", open, len(trace.Paths))
	}
	fmt.Fprintf(t, "%s to %s: %s\n", trace.From, to, result)
	for i, p := range trace.Paths {
		if i == 0 {
			fmt.Fprintln(t, "\nTO\tPOD\tDIRECTION\tVERDICT\tWHY")
		}
		for _, s := range p.Steps {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", p.To, s.Pod, s.Direction, verdict(s.Allowed), why(&s))
		}
	}
	return t.Flush()
}

func why(s *policy.Step) string {
	out := "selected by " + strings.Join(s.SelectedBy, ", ") + "; "
	switch {
	case len(s.SelectedBy) == 0:
		return "no policy selects it"
	case len(s.AllowedBy) > 0:
		return out + "allowed by " + strings.Join(s.AllowedBy, ", ")
	case s.Allowed:
		return out + "a pod reaches itself"
	}
	return out + "none of them allows it"
}

func verdict(allowed bool) string {
	if allowed {
		return "allowed"
	}
	return "denied"
}
