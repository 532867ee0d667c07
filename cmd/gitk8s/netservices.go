package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"gitk8s.dev/gitk8s/runtime/network"
)

// askNode bounds a question to one worker.
const askNode = 5 * time.Second

func newNetServices(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "services [NAME]",
		Aliases: []string{"service", "svc"},
		Short:   "Show where the nodes lead the addresses of services, and whether their kernels do",
		Long: "Show where the nodes lead the addresses of services, node ports and host ports, and\n" +
			"whether their kernels do. The endpoints are those that a node chooses from; where\n" +
			"nodes differ each has its own line.",
		Args: maxArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := e.clientset()
			if err != nil {
				return err
			}
			namespace := e.namespace()
			if e.v.GetBool("all-namespaces") {
				namespace = metav1.NamespaceAll
			}
			view, err := fetchNetView(cmd.Context(), client, namespace)
			if err != nil {
				return hint(err)
			}
			if node := e.v.GetString("node"); node != "" {
				view.nodes = slices.DeleteFunc(view.nodes, func(n netNode) bool { return n.Node != node })
				if len(view.nodes) == 0 {
					return fmt.Errorf("there is no node %s", node)
				}
			}
			askNodes(cmd.Context(), client, view.nodes)
			if len(args) > 0 {
				view.services = slices.DeleteFunc(view.services, func(s *corev1.Service) bool { return s.Name != args[0] })
				if view.pods = nil; len(view.services) == 0 {
					return fmt.Errorf("there is no service %s", args[0])
				}
			}
			out := view.routes()
			return e.print(e.v.GetString("output"), out, func(w io.Writer) error { return writeRoutes(w, out) })
		},
	}
	outputFlag(cmd)
	f := cmd.Flags()
	f.StringP("namespace", "n", metav1.NamespaceDefault, "namespace of the services")
	f.BoolP("all-namespaces", "A", false, "services of all namespaces")
	f.String("node", "", "this node alone")
	return cmd
}

// netView is what the routes of services are worked out from.
type netView struct {
	services []*corev1.Service
	slices   []*discoveryv1.EndpointSlice
	pods     []*corev1.Pod
	nodes    []netNode
}

// netNode is a node with what its kernel does, or why that is not known.
type netNode struct {
	network.Place
	state *networkState
	err   error
}

func fetchNetView(ctx context.Context, client kubernetes.Interface, namespace string) (*netView, error) {
	var v netView
	services, err := client.CoreV1().Services(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	endpoints, err := client.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	pods, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	dns, err := client.CoreV1().Services(metav1.NamespaceSystem).Get(ctx, "kube-dns", metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, err
	}
	names := addressesOf(dns.Spec.ClusterIPs)
	v.services, v.slices, v.pods = pointers(services.Items), pointers(endpoints.Items), pointers(pods.Items)
	for _, n := range nodes.Items {
		v.nodes = append(v.nodes, netNode{Place: network.Place{Node: n.Name, Zone: n.Labels[corev1.LabelTopologyZone], Names: names}})
	}
	return &v, nil
}

func addressesOf(texts []string) (out []netip.Addr) {
	for _, t := range texts {
		if a, err := netip.ParseAddr(t); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// askNodes asks the workers, all at once.
func askNodes(ctx context.Context, client kubernetes.Interface, nodes []netNode) {
	var wg sync.WaitGroup
	for i := range nodes {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askNode)
			defer cancel()
			nodes[i].state, nodes[i].err = fetchNetworkState(ctx, client, nodes[i].Node)
		})
	}
	wg.Wait()
}

func pointers[T any](list []T) []*T {
	out := make([]*T, len(list))
	for i := range list {
		out[i] = &list[i]
	}
	return out
}

// netRoute is where one port of one address leads.
type netRoute struct {
	// From is "namespace/service:port", or "namespace/pod" for host ports.
	From    string `json:"from"`
	Address string `json:"address"`
	// Endpoints that a connection may go to; Inside are those for the node itself and
	// its pods where they are others.
	Endpoints []string `json:"endpoints"`
	Inside    []string `json:"inside,omitempty"`
	Notes     []string `json:"notes,omitempty"`
	// Kernel says whether the kernels of Nodes do so, and otherwise what they do.
	Kernel string   `json:"kernel"`
	Nodes  []string `json:"nodes"`
}

const inPlace = "in place"

// routes are those of all services and host ports; nodes where one is alike share it.
func (v *netView) routes() []*netRoute {
	out := []*netRoute{}
	seen := map[string]*netRoute{}
	add := func(n *netNode, from string, s network.Service) {
		r := route(from, s)
		r.Kernel = n.kernel(s)
		key := fmt.Sprint(r)
		if seen[key] == nil {
			seen[key] = r
			out = append(out, r)
		}
		seen[key].Nodes = append(seen[key].Nodes, n.Node)
	}
	for _, svc := range slices.SortedFunc(slices.Values(v.services), func(a, b *corev1.Service) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	}) {
		if r := nameOnly(svc); r != nil {
			out = append(out, r)
			continue
		}
		for _, port := range svc.Spec.Ports {
			one := *svc
			one.Spec.Ports = []corev1.ServicePort{port}
			for i := range v.nodes {
				for _, s := range network.Desired(v.nodes[i].Place, []*corev1.Service{&one}, v.slices).Services {
					add(&v.nodes[i], svc.Namespace+"/"+svc.Name+":"+cmp.Or(port.Name, fmt.Sprint(port.Port)), s)
				}
			}
		}
	}
	for _, p := range v.pods {
		for i := range v.nodes {
			if p.Spec.NodeName != v.nodes[i].Node {
				continue
			}
			for _, s := range (network.State{}).WithHostPorts([]*corev1.Pod{p}).Services {
				add(&v.nodes[i], p.Namespace+"/"+p.Name, s)
			}
		}
	}
	return out
}

// nameOnly is a service that has no address of its own: its name leads elsewhere.
func nameOnly(svc *corev1.Service) *netRoute {
	r := &netRoute{From: svc.Namespace + "/" + svc.Name, Address: "none", Endpoints: []string{}, Kernel: "-", Nodes: []string{}}
	switch {
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		r.Notes = []string{"its name stands for " + svc.Spec.ExternalName}
	case svc.Spec.ClusterIP == corev1.ClusterIPNone:
		r.Notes = []string{"its name leads to the pods themselves"}
	default:
		return nil
	}
	return r
}

func route(from string, s network.Service) *netRoute {
	address := netip.AddrPortFrom(s.IP, s.Port).String()
	if s.IP.IsUnspecified() {
		address = fmt.Sprintf("*:%d", s.Port)
	}
	r := &netRoute{From: from, Address: fmt.Sprintf("%s/%s", address, s.Proto), Endpoints: texts(s.Endpoints), Nodes: []string{}}
	note := func(on bool, format string, args ...any) {
		if on {
			r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
		}
	}
	if s.NodeLocal {
		r.Inside = texts(s.Inside)
	}
	note(s.Local, "the node answers itself")
	note(s.NodeLocal, "from outside to this node's endpoints alone")
	note(s.Affinity > 0, "a client keeps its endpoint for %s", s.Affinity)
	note(s.Masquerade, "clients are seen as the node")
	note(len(s.Sources) > 0, "only from %v", s.Sources)
	note(len(s.Endpoints) == 0 && !s.Local && !s.NodeLocal, "refused: no endpoint is ready")
	note(len(s.Endpoints) == 0 && s.NodeLocal, "dropped: no endpoint on this node")
	return r
}

// texts are addresses in order, each once: as the kernel has them.
func texts(list []netip.AddrPort) []string {
	out := []string{}
	for _, a := range slices.Compact(slices.SortedFunc(slices.Values(list), netip.AddrPort.Compare)) {
		out = append(out, a.String())
	}
	return out
}

// kernel compares a port with what the node's kernel has.
func (n *netNode) kernel(s network.Service) string {
	if n.err != nil {
		return "unknown: " + n.err.Error()
	}
	var have network.Installed
	for _, i := range n.state.Services {
		if i.IP == s.IP && i.Port == s.Port && i.Proto == s.Proto {
			have = i
		}
	}
	want := route("", s)
	if s.Local {
		want.Endpoints = nil
	}
	switch {
	case slices.Equal(texts(have.Endpoints), want.Endpoints) && slices.Equal(texts(have.Inside), want.Inside),
		len(have.Endpoints)+len(have.Inside)+len(want.Endpoints)+len(want.Inside) == 0:
		return inPlace
	case len(have.Endpoints)+len(have.Inside) == 0:
		return "leads nowhere"
	}
	return "leads to " + strings.Join(texts(slices.Concat(have.Endpoints, have.Inside)), ", ")
}

func writeRoutes(w io.Writer, routes []*netRoute) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SERVICE\tADDRESS\tENDPOINTS\tNODES\tKERNEL\tNOTES")
	dash := func(list []string, sep string) string { return cmp.Or(strings.Join(list, sep), "-") }
	for _, r := range routes {
		endpoints := dash(r.Endpoints, ",")
		if r.Inside != nil && !slices.Equal(r.Inside, r.Endpoints) {
			endpoints += " (inside: " + dash(r.Inside, ",") + ")"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", r.From, r.Address, endpoints, dash(r.Nodes, ","), r.Kernel, dash(r.Notes, "; "))
	}
	return t.Flush()
}
