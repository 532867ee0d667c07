package serviceloadbalancer

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

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
	// AnnouncedBy names the node that has the addresses of a pool on its link.
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
	// Node announces the addresses, empty without a pool.
	Node string
	// Problem is why there is no address, or none of a family that the service must have.
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
	d := &decision{Config: cfg, nodes: usable(s.Nodes), ports: map[portKey]string{}, taken: map[netip.Addr]string{}, load: map[string]int{}, ready: readyOn(s.Slices)}
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
	for _, svc := range mine {
		d.keep(svc)
	}
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
	ports map[portKey]string    // who has which port, where addresses are shared
	taken map[netip.Addr]string // who has which address of the pool
	load  map[string]int        // how many addresses each node announces
	ready map[string]map[string]bool
}

type node struct {
	name string
	ips  []netip.Addr
}

func (n node) equal(o node) bool { return n.name == o.name && slices.Equal(n.ips, o.ips) }

func families(svc *corev1.Service) []corev1.IPFamily {
	if len(svc.Spec.IPFamilies) == 0 {
		return []corev1.IPFamily{corev1.IPv4Protocol}
	}
	return svc.Spec.IPFamilies
}

// of are the node's addresses of a service's families, one of each, those of its first
// family first.
func (n node) of(svc *corev1.Service) (out []netip.Addr) {
	for _, f := range families(svc) {
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

// own gives a service an address of the pool of each of its families, and a node that
// announces them. One family is enough for a service that only prefers to have both.
func (d *decision) own(svc *corev1.Service) Outcome {
	var out Outcome
	var problems []string
	for _, f := range families(svc) {
		ip, problem := d.address(svc, f == corev1.IPv6Protocol)
		if problem != "" {
			problems = append(problems, problem)
			continue
		}
		d.taken[ip] = key(svc)
		out.Ingress = append(out.Ingress, ingress(ip))
	}
	if len(out.Ingress) == 0 || ptr.Deref(svc.Spec.IPFamilyPolicy, "") != corev1.IPFamilyPolicyPreferDualStack {
		out.Problem = strings.Join(problems, "; ")
	}
	if len(out.Ingress) == 0 {
		return out
	}
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

// keep takes the addresses that a service has and may keep, before others get new ones.
func (d *decision) keep(svc *corev1.Service) {
	for _, f := range families(svc) {
		v6 := f == corev1.IPv6Protocol
		wanted, err := netip.ParseAddr(svc.Spec.LoadBalancerIP)
		for _, in := range svc.Status.LoadBalancer.Ingress {
			ip, bad := netip.ParseAddr(in.IP)
			if bad != nil || ip.Is6() != v6 || !d.Pool.Contains(ip) || d.taken[ip] != "" || err == nil && wanted.Is6() == v6 && wanted != ip {
				continue
			}
			d.taken[ip] = key(svc)
			break
		}
	}
}

// address is the one of a family that a service is to have.
func (d *decision) address(svc *corev1.Service, v6 bool) (ip netip.Addr, problem string) {
	if wanted := svc.Spec.LoadBalancerIP; wanted != "" {
		ip, err := netip.ParseAddr(wanted)
		switch {
		case err != nil || !d.Pool.Contains(ip):
			return ip, fmt.Sprintf("loadBalancerIP %s is not in the pool", wanted)
		case ip.Is6() != v6 && len(families(svc)) == 1:
			return ip, fmt.Sprintf("loadBalancerIP %s is not of the service's family %s", wanted, families(svc)[0])
		case ip.Is6() != v6: // that of the other family may be any
		case d.taken[ip] != "" && d.taken[ip] != key(svc):
			return ip, fmt.Sprintf("loadBalancerIP %s is in use by another service", wanted)
		default:
			return ip, ""
		}
	}
	if !d.Pool.has(v6) {
		return ip, fmt.Sprintf("the pool has no %s addresses", familyName(v6))
	}
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if ip, err := netip.ParseAddr(in.IP); err == nil && ip.Is6() == v6 && d.taken[ip] == key(svc) {
			return ip, ""
		}
	}
	ip, ok := d.Pool.free(v6, d.taken)
	if !ok {
		return ip, fmt.Sprintf("no %s address of the pool is free", familyName(v6))
	}
	return ip, ""
}

func familyName(v6 bool) corev1.IPFamily {
	if v6 {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

func ingress(ip netip.Addr) corev1.LoadBalancerIngress {
	return corev1.LoadBalancerIngress{IP: ip.String(), IPMode: ptr.To(corev1.LoadBalancerIPModeVIP)}
}
