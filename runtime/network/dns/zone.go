// Package dns answers the names of the cluster on a node, as the Kubernetes DNS
// specification says (github.com/kubernetes/dns, docs/specification.md, 1.1.0), and
// passes on the rest. In: Services and EndpointSlices by watch (follow). A name is
// looked up in what the watch has brought when it is asked for: nothing is stored
// longer than it is true.
package dns

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Zone is the names of a cluster. Safe for concurrent use.
type Zone struct {
	domain string
	own    []netip.Prefix

	mu       sync.RWMutex
	services map[name]*corev1.Service
	slices   map[name]map[string]*discoveryv1.EndpointSlice // by service, then by their own name
	// given is the service of a slice, by the slice's name: its label may change.
	given map[name]name
	// byAddress are the services that have an address, as their own or as that of an
	// endpoint.
	byAddress map[netip.Addr]map[name]int
	// namespaces counts services.
	namespaces map[string]int
}

// name of a service.
type name struct{ namespace, name string }

// NewZone returns a zone without names below a domain such as "cluster.local". The
// addresses of own are the cluster's: nobody else is asked whose they are.
func NewZone(domain string, own ...netip.Prefix) *Zone {
	return &Zone{
		domain: strings.ToLower(strings.Trim(domain, ".")) + ".", own: own,
		services: map[name]*corev1.Service{}, slices: map[name]map[string]*discoveryv1.EndpointSlice{}, given: map[name]name{},
		byAddress: map[netip.Addr]map[name]int{}, namespaces: map[string]int{},
	}
}

// SetService adds or replaces a service.
func (z *Zone) SetService(s *corev1.Service) {
	z.mu.Lock()
	defer z.mu.Unlock()
	n := name{s.Namespace, s.Name}
	z.dropService(n)
	z.services[n] = s
	z.namespaces[n.namespace]++
	for _, a := range clusterIPs(s) {
		z.count(a, n, 1)
	}
}

// DeleteService removes a service.
func (z *Zone) DeleteService(s *corev1.Service) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.dropService(name{s.Namespace, s.Name})
}

func (z *Zone) dropService(n name) {
	s := z.services[n]
	if s == nil {
		return
	}
	delete(z.services, n)
	if z.namespaces[n.namespace]--; z.namespaces[n.namespace] == 0 {
		delete(z.namespaces, n.namespace)
	}
	for _, a := range clusterIPs(s) {
		z.count(a, n, -1)
	}
}

// SetSlice adds or replaces a slice of a service's endpoints.
func (z *Zone) SetSlice(s *discoveryv1.EndpointSlice) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.dropSlice(s)
	n := serviceOf(s)
	if z.slices[n] == nil {
		z.slices[n] = map[string]*discoveryv1.EndpointSlice{}
	}
	z.slices[n][s.Name] = s
	z.given[name{s.Namespace, s.Name}] = n
	for _, a := range addressesOf(s) {
		z.count(a, n, 1)
	}
}

// DeleteSlice removes a slice.
func (z *Zone) DeleteSlice(s *discoveryv1.EndpointSlice) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.dropSlice(s)
}

// dropSlice forgets a slice as it was known, whatever it says now.
func (z *Zone) dropSlice(s *discoveryv1.EndpointSlice) {
	n := z.given[name{s.Namespace, s.Name}]
	old := z.slices[n][s.Name]
	if old == nil {
		return
	}
	delete(z.given, name{s.Namespace, s.Name})
	if delete(z.slices[n], s.Name); len(z.slices[n]) == 0 {
		delete(z.slices, n)
	}
	for _, a := range addressesOf(old) {
		z.count(a, n, -1)
	}
}

func (z *Zone) count(a netip.Addr, n name, by int) {
	if z.byAddress[a] == nil {
		z.byAddress[a] = map[name]int{}
	}
	if z.byAddress[a][n] += by; z.byAddress[a][n] == 0 {
		delete(z.byAddress[a], n)
	}
	if len(z.byAddress[a]) == 0 {
		delete(z.byAddress, a)
	}
}

func serviceOf(s *discoveryv1.EndpointSlice) name {
	return name{s.Namespace, s.Labels[discoveryv1.LabelServiceName]}
}

// clusterIPs are a service's own addresses; a headless one has none.
func clusterIPs(s *corev1.Service) (out []netip.Addr) {
	all := s.Spec.ClusterIPs
	if len(all) == 0 {
		all = []string{s.Spec.ClusterIP}
	}
	for _, text := range all {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a)
		}
	}
	return out
}

func headless(s *corev1.Service) bool {
	return s.Spec.ClusterIP == corev1.ClusterIPNone && s.Spec.Type != corev1.ServiceTypeExternalName
}

func addressesOf(s *discoveryv1.EndpointSlice) (out []netip.Addr) {
	for _, e := range s.Endpoints {
		for _, text := range e.Addresses {
			if a, err := netip.ParseAddr(text); err == nil {
				out = append(out, a)
			}
		}
	}
	return out
}

// endpoint is an address of a headless service, with the name that it has below the
// service's.
type endpoint struct {
	host string
	addr netip.Addr
}

// endpoints are the ready ones, each address once, in no order.
func (z *Zone) endpoints(n name) []endpoint {
	found := map[endpoint]bool{}
	z.eachReady(n, func(e endpoint, _ *discoveryv1.EndpointSlice) { found[e] = true })
	return slices.Collect(maps.Keys(found))
}

// eachReady calls f for each address of each ready endpoint. Those that are not
// ready and are to be told nevertheless are ready in their slice
// (publishNotReadyAddresses).
func (z *Zone) eachReady(n name, f func(endpoint, *discoveryv1.EndpointSlice)) {
	for _, s := range z.slices[n] {
		for _, e := range s.Endpoints {
			if e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			for _, text := range e.Addresses {
				a, err := netip.ParseAddr(text)
				if err != nil {
					continue
				}
				host := dashed(a)
				if e.Hostname != nil && *e.Hostname != "" {
					host = *e.Hostname
				}
				f(endpoint{host, a}, s)
			}
		}
	}
}

// dashed is an address as a label of a name.
func dashed(a netip.Addr) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(a.String())
}
