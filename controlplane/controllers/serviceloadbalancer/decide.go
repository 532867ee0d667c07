package serviceloadbalancer

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"
)

const (
	// Class is the loadBalancerClass of this controller. Services without a class are
	// its own as well.
	Class = "gitk8s.dev/load-balancer"
	// Finalizer keeps a load balancer until it is taken down, as Kubernetes has it.
	Finalizer = "service.kubernetes.io/load-balancer-cleanup"
	// AnnouncedBy names the node that has the address of a pool on its link.
	AnnouncedBy = "gitk8s.dev/announced-by"
)

// Config of the controller.
type Config struct {
	// Pool has the addresses to give out. Without one, load balancers share the nodes'
	// addresses.
	Pool Pool
	// Reserved are the TCP ports of the nodes' addresses that are something else's.
	Reserved []int32
}

// Snapshot is all that is decided from.
type Snapshot struct {
	Services []*corev1.Service
	Nodes    []*corev1.Node
	Slices   []*discoveryv1.EndpointSlice
}

// Outcome is what a load balancer should be.
type Outcome struct {
	Ingress []corev1.LoadBalancerIngress
	// Node announces the address, empty without a pool.
	Node string
	// Problem is why there is no address.
	Problem string
}

// wants tells whether a service is a load balancer that is this controller's.
func wants(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer && svc.DeletionTimestamp == nil &&
		(svc.Spec.LoadBalancerClass == nil || *svc.Spec.LoadBalancerClass == Class)
}

// Decide computes what every load balancer should be, by namespace/name. Those that
// have an address keep it as long as it suits; then the oldest come first.
func Decide(cfg Config, s Snapshot) map[string]Outcome {
	d := &decision{Config: cfg, nodes: usable(s.Nodes), ports: map[portKey]string{}, taken: map[netip.Addr]bool{}, load: map[string]int{}, ready: readyOn(s.Slices)}
	var mine []*corev1.Service
	for _, svc := range s.Services {
		if wants(svc) {
			mine = append(mine, svc)
		}
		d.reserve(svc)
	}
	slices.SortFunc(mine, func(a, b *corev1.Service) int {
		return cmp.Or(cmp.Compare(d.rank(a), d.rank(b)), a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
			cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	out := map[string]Outcome{}
	for _, svc := range mine {
		if len(cfg.Pool) == 0 {
			out[key(svc)] = d.shared(svc)
		} else {
			out[key(svc)] = d.own(svc)
		}
	}
	return out
}

func key(svc *corev1.Service) string { return svc.Namespace + "/" + svc.Name }

func hasIngress(svc *corev1.Service) bool { return len(svc.Status.LoadBalancer.Ingress) > 0 }

// rank is lower for a service that has an address which it may keep.
func (d *decision) rank(svc *corev1.Service) int {
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if ip, err := netip.ParseAddr(in.IP); len(d.Pool) == 0 || (err == nil && d.Pool.Contains(ip)) {
			return 0
		}
	}
	return 1
}

// portKey is a port of the nodes' addresses.
type portKey struct {
	protocol corev1.Protocol
	port     int32
}

type decision struct {
	Config
	nodes []node
	ports map[portKey]string  // who has which port, where addresses are shared
	taken map[netip.Addr]bool // addresses of the pool
	load  map[string]int      // how many addresses each node announces
	ready map[string]map[string]bool
}

type node struct {
	name string
	ips  []netip.Addr
}

func (n node) equal(o node) bool { return n.name == o.name && slices.Equal(n.ips, o.ips) }

// of are the node's addresses of a service's families, one of each, those of its first
// family first.
func (n node) of(svc *corev1.Service) (out []netip.Addr) {
	families := svc.Spec.IPFamilies
	if len(families) == 0 {
		families = []corev1.IPFamily{corev1.IPv4Protocol}
	}
	for _, f := range families {
		if i := slices.IndexFunc(n.ips, func(ip netip.Addr) bool { return ip.Is6() == (f == corev1.IPv6Protocol) }); i >= 0 {
			out = append(out, n.ips[i])
		}
	}
	return out
}

// usable are the nodes that can carry traffic from outside, by name.
func usable(nodes []*corev1.Node) []node {
	var out []node
	for _, n := range nodes {
		_, excluded := n.Labels[corev1.LabelNodeExcludeBalancers]
		isReady := slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		})
		if excluded || !isReady || n.DeletionTimestamp != nil {
			continue
		}
		it := node{name: n.Name}
		for _, a := range n.Status.Addresses {
			if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
				it.ips = append(it.ips, ip)
			}
		}
		if len(it.ips) > 0 {
			out = append(out, it)
		}
	}
	slices.SortFunc(out, func(a, b node) int { return cmp.Compare(a.name, b.name) })
	return out
}

// readyOn are the nodes with ready endpoints of each service.
func readyOn(endpointSlices []*discoveryv1.EndpointSlice) map[string]map[string]bool {
	out := map[string]map[string]bool{}
	for _, s := range endpointSlices {
		of := s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
		for _, e := range s.Endpoints {
			if e.NodeName == nil || !ptr.Deref(e.Conditions.Ready, true) {
				continue
			}
			if out[of] == nil {
				out[of] = map[string]bool{}
			}
			out[of][*e.NodeName] = true
		}
	}
	return out
}

// reserve takes the node ports of a service out of what balancers may have.
func (d *decision) reserve(svc *corev1.Service) {
	for _, p := range svc.Spec.Ports {
		if p.NodePort != 0 {
			d.ports[portKey{p.Protocol, p.NodePort}] = key(svc)
		}
	}
	if svc.Spec.HealthCheckNodePort != 0 {
		d.ports[portKey{corev1.ProtocolTCP, svc.Spec.HealthCheckNodePort}] = key(svc)
	}
}

// serving are the nodes that would answer for a service: with
// externalTrafficPolicy Local those that have an endpoint.
func (d *decision) serving(svc *corev1.Service) []node {
	if svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		return d.nodes
	}
	return slices.DeleteFunc(slices.Clone(d.nodes), func(n node) bool { return !d.ready[key(svc)][n.name] })
}

// shared gives a service the addresses of all nodes that answer for it, if nobody
// else has its ports there.
func (d *decision) shared(svc *corev1.Service) Outcome {
	for _, p := range svc.Spec.Ports {
		if p.Protocol == corev1.ProtocolTCP && slices.Contains(d.Reserved, p.Port) {
			return Outcome{Problem: fmt.Sprintf("port %d/%s of the nodes is in use by the node itself", p.Port, p.Protocol)}
		}
		if has, ok := d.ports[portKey{p.Protocol, p.Port}]; ok {
			return Outcome{Problem: fmt.Sprintf("port %d/%s of the nodes is in use by service %s", p.Port, p.Protocol, has)}
		}
	}
	var out Outcome
	wanted := svc.Spec.LoadBalancerIP
	for _, n := range d.serving(svc) {
		for _, ip := range n.of(svc) {
			if wanted == "" || wanted == ip.String() {
				out.Ingress = append(out.Ingress, ingress(ip))
			}
		}
	}
	has := func(n node) bool {
		return slices.ContainsFunc(n.of(svc), func(ip netip.Addr) bool { return ip.String() == wanted })
	}
	if wanted != "" && !slices.ContainsFunc(d.nodes, has) {
		return Outcome{Problem: fmt.Sprintf("loadBalancerIP %s is not the address of a node that is ready", wanted)}
	}
	for _, p := range svc.Spec.Ports {
		d.ports[portKey{p.Protocol, p.Port}] = key(svc)
	}
	return out
}

// own gives a service an IPv4 address of the pool and a node that announces it.
func (d *decision) own(svc *corev1.Service) Outcome {
	if len(svc.Spec.IPFamilies) > 0 && !slices.Contains(svc.Spec.IPFamilies, corev1.IPv4Protocol) {
		return Outcome{Problem: "the pool has IPv4 addresses alone, and the service none of that family"}
	}
	ip, problem := d.address(svc)
	if problem != "" {
		return Outcome{Problem: problem}
	}
	d.taken[ip] = true
	out := Outcome{Ingress: []corev1.LoadBalancerIngress{ingress(ip)}}
	has := svc.Annotations[AnnouncedBy]
	for _, n := range d.serving(svc) {
		if n.name == has {
			out.Node = has
			break
		}
		if out.Node == "" || d.load[n.name] < d.load[out.Node] {
			out.Node = n.name
		}
	}
	d.load[out.Node]++
	return out
}

func (d *decision) address(svc *corev1.Service) (ip netip.Addr, problem string) {
	if wanted := svc.Spec.LoadBalancerIP; wanted != "" {
		ip, err := netip.ParseAddr(wanted)
		switch {
		case err != nil || !d.Pool.Contains(ip):
			return ip, fmt.Sprintf("loadBalancerIP %s is not in the pool", wanted)
		case d.taken[ip]:
			return ip, fmt.Sprintf("loadBalancerIP %s is in use by another service", wanted)
		}
		return ip, ""
	}
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if ip, err := netip.ParseAddr(in.IP); err == nil && d.Pool.Contains(ip) && !d.taken[ip] {
			return ip, ""
		}
	}
	ip, ok := d.Pool.free(d.taken)
	if !ok {
		return ip, "no address of the pool is free"
	}
	return ip, ""
}

func ingress(ip netip.Addr) corev1.LoadBalancerIngress {
	return corev1.LoadBalancerIngress{IP: ip.String(), IPMode: ptr.To(corev1.LoadBalancerIPModeVIP)}
}
