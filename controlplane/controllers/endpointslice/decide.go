package endpointslice

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// maxEndpoints is the number of endpoints in one slice, Kubernetes' own default.
const maxEndpoints = 100

// managedBy marks the slices that this controller owns.
const managedBy = "endpointslice-controller.gitk8s.dev"

// Decision is what brings a Service's slices and Endpoints up to date.
type Decision struct {
	Create []*discoveryv1.EndpointSlice
	Update []*discoveryv1.EndpointSlice
	Delete []*discoveryv1.EndpointSlice
	// Endpoints is the older form of the same, for clients that read it.
	Endpoints *corev1.Endpoints //nolint:staticcheck // served for old clients
	// Allotted has an entry for each family, of a Service that wants its endpoints
	// allotted to zones.
	Allotted []Allotment
}

// group is a set of pods that listen on the same numeric ports.
type group struct {
	ports     []discoveryv1.EndpointPort
	endpoints []discoveryv1.Endpoint
}

// Decide computes the slices of a Service from the pods it selects, for each family of
// addresses that it has, reusing the existing slices so that one pod's change writes one
// slice of each.
func Decide(svc *corev1.Service, pods []*corev1.Pod, places Places, existing []*discoveryv1.EndpointSlice) Decision {
	families := svc.Spec.IPFamilies
	if len(families) == 0 {
		families = []corev1.IPFamily{corev1.IPv4Protocol}
	}
	slices.SortFunc(existing, func(a, b *discoveryv1.EndpointSlice) int { return cmp.Compare(a.Name, b.Name) })
	var d Decision
	for i, f := range families {
		own := slices.DeleteFunc(slices.Clone(existing), func(s *discoveryv1.EndpointSlice) bool { return s.AddressType != discoveryv1.AddressType(f) })
		groups := d.family(svc, f, pods, places, own)
		if i == 0 {
			d.Endpoints = legacy(svc, groups)
		}
	}
	for _, s := range existing {
		if !slices.Contains(families, corev1.IPFamily(s.AddressType)) {
			d.Delete = append(d.Delete, s)
		}
	}
	return d
}

// family decides the slices of one family.
func (d *Decision) family(svc *corev1.Service, f corev1.IPFamily, pods []*corev1.Pod, places Places, existing []*discoveryv1.EndpointSlice) map[string]*group {
	groups := map[string]*group{}
	for _, p := range pods {
		ip := address(p, f)
		if !belongs(p) || ip == "" {
			continue
		}
		ports := resolvePorts(svc, p)
		key := portsKey(ports)
		g := groups[key]
		if g == nil {
			g = &group{ports: ports}
			groups[key] = g
		}
		g.endpoints = append(g.endpoints, endpoint(svc, p, ip, places.Zones[p.Spec.NodeName]))
	}
	for _, g := range groups {
		slices.SortFunc(g.endpoints, func(a, b discoveryv1.Endpoint) int { return cmp.Compare(a.TargetRef.Name, b.TargetRef.Name) })
	}
	if Auto(svc) {
		d.Allotted = append(d.Allotted, Allotment{f, allot(places.Capacity, readyOf(groups), hinted(existing))})
	}
	if len(groups) == 0 {
		groups[""] = &group{} // an empty slice says that there are no endpoints
	}
	byPorts := map[string][]*discoveryv1.EndpointSlice{}
	for _, s := range existing {
		key := portsKey(s.Ports)
		byPorts[key] = append(byPorts[key], s)
	}
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		d.place(svc, f, groups[key], byPorts[key])
		delete(byPorts, key)
	}
	for _, key := range slices.Sorted(maps.Keys(byPorts)) {
		d.Delete = append(d.Delete, byPorts[key]...)
	}
	return groups
}

// place puts the endpoints of a group into its slices: what is in one stays there,
// what is new goes where there is room, and only the rest makes new slices.
func (d *Decision) place(svc *corev1.Service, f corev1.IPFamily, g *group, existing []*discoveryv1.EndpointSlice) {
	want := make(map[string]discoveryv1.Endpoint, len(g.endpoints))
	for _, e := range g.endpoints {
		want[e.TargetRef.Name] = e
	}
	kept := make([][]discoveryv1.Endpoint, len(existing))
	for i, s := range existing {
		for _, e := range s.Endpoints {
			if e.TargetRef == nil {
				continue
			}
			if now, ok := want[e.TargetRef.Name]; ok {
				kept[i] = append(kept[i], now)
				delete(want, e.TargetRef.Name)
			}
		}
	}
	fresh := slices.DeleteFunc(slices.Clone(g.endpoints), func(e discoveryv1.Endpoint) bool {
		_, isNew := want[e.TargetRef.Name]
		return !isNew
	})
	for i := range kept {
		if room := min(maxEndpoints-len(kept[i]), len(fresh)); room > 0 && len(kept[i]) > 0 {
			kept[i] = append(kept[i], fresh[:room]...)
			fresh = fresh[room:]
		}
	}
	used := false
	for i, s := range existing {
		if len(kept[i]) == 0 && len(fresh) > 0 { // an empty one is filled before another is made
			n := min(maxEndpoints, len(fresh))
			kept[i], fresh = fresh[:n:n], fresh[n:]
		}
		if len(kept[i]) == 0 && (used || len(g.endpoints) > 0 || i < len(existing)-1) {
			d.Delete = append(d.Delete, s)
			continue
		}
		used = true
		if next := newSlice(svc, f, g.ports, kept[i]); !sameSlice(s, next) {
			update := s.DeepCopy()
			update.Endpoints, update.Ports, update.Labels = next.Endpoints, next.Ports, next.Labels
			d.Update = append(d.Update, update)
		}
	}
	for len(fresh) > 0 || !used {
		n := min(maxEndpoints, len(fresh))
		d.Create = append(d.Create, newSlice(svc, f, g.ports, fresh[:n:n]))
		fresh, used = fresh[n:], true
	}
}

// belongs says whether a pod is in its Services' endpoints at all: it has an
// address and has not ended. Deleting pods stay, as terminating, until they end.
func belongs(p *corev1.Pod) bool {
	return p.Status.PodIP != "" && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

// address is the one of a family that a pod has, or empty.
func address(p *corev1.Pod, f corev1.IPFamily) string {
	all := p.Status.PodIPs
	if len(all) == 0 {
		all = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	for _, ip := range all {
		if strings.Contains(ip.IP, ":") == (f == corev1.IPv6Protocol) {
			return ip.IP
		}
	}
	return ""
}

// endpoint follows the table of the page "EndpointSlices", section "Conditions":
// a terminating pod is never ready, and publishNotReadyAddresses makes every pod
// so.
func endpoint(svc *corev1.Service, p *corev1.Pod, ip, zone string) discoveryv1.Endpoint {
	serving := controller.PodReady(p) || svc.Spec.PublishNotReadyAddresses
	terminating := p.DeletionTimestamp != nil
	ready := svc.Spec.PublishNotReadyAddresses || (serving && !terminating)
	e := discoveryv1.Endpoint{
		Addresses:  []string{ip},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
	}
	if p.Spec.NodeName != "" {
		node := p.Spec.NodeName
		e.NodeName = &node
	}
	if zone != "" {
		e.Zone = &zone
	}
	if ready {
		e.Hints = hints(svc, e.NodeName, e.Zone)
	}
	if p.Spec.Hostname != "" && p.Spec.Subdomain == svc.Name && p.Namespace == svc.Namespace {
		host := p.Spec.Hostname
		e.Hostname = &host
	}
	return e
}

// hints say for whom an endpoint is, by the Service's trafficDistribution (page
// "Service", section "Traffic distribution", and KEP-3015): for its own zone, or its
// own node and then its zone. Where zones are allotted by the older annotation, that says
// it alone.
func hints(svc *corev1.Service, node, zone *string) *discoveryv1.EndpointHints {
	if svc.Spec.TrafficDistribution == nil || Auto(svc) {
		return nil
	}
	out := &discoveryv1.EndpointHints{}
	if zone != nil {
		out.ForZones = []discoveryv1.ForZone{{Name: *zone}}
	}
	if *svc.Spec.TrafficDistribution == corev1.ServiceTrafficDistributionPreferSameNode && node != nil {
		out.ForNodes = []discoveryv1.ForNode{{Name: *node}}
	}
	if len(out.ForZones)+len(out.ForNodes) == 0 {
		return nil
	}
	return out
}

// readyOf are the ready endpoints of all groups, in the order of their names.
func readyOf(groups map[string]*group) []*discoveryv1.Endpoint {
	var out []*discoveryv1.Endpoint
	for _, g := range groups {
		for i := range g.endpoints {
			if *g.endpoints[i].Conditions.Ready {
				out = append(out, &g.endpoints[i])
			}
		}
	}
	slices.SortFunc(out, func(a, b *discoveryv1.Endpoint) int { return cmp.Compare(a.TargetRef.Name, b.TargetRef.Name) })
	return out
}

// hinted are the zones that endpoints are for now, by pod.
func hinted(existing []*discoveryv1.EndpointSlice) map[string]string {
	out := map[string]string{}
	for _, s := range existing {
		for _, e := range s.Endpoints {
			if e.TargetRef != nil && e.Hints != nil && len(e.Hints.ForZones) == 1 {
				out[e.TargetRef.Name] = e.Hints.ForZones[0].Name
			}
		}
	}
	return out
}

// resolvePorts looks the Service's target ports up in one pod. A name that the
// pod does not have leaves that port out for it.
func resolvePorts(svc *corev1.Service, p *corev1.Pod) []discoveryv1.EndpointPort {
	var out []discoveryv1.EndpointPort
	for _, sp := range svc.Spec.Ports {
		number, ok := targetPort(sp, p)
		if !ok {
			continue
		}
		name, protocol := sp.Name, cmp.Or(sp.Protocol, corev1.ProtocolTCP)
		out = append(out, discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &number, AppProtocol: sp.AppProtocol})
	}
	return out
}

func targetPort(sp corev1.ServicePort, p *corev1.Pod) (int32, bool) {
	if sp.TargetPort.Type == 0 { // a number
		if sp.TargetPort.IntVal == 0 {
			return sp.Port, true
		}
		return sp.TargetPort.IntVal, true
	}
	for _, c := range p.Spec.Containers {
		for _, cp := range c.Ports {
			if cp.Name == sp.TargetPort.StrVal && cmp.Or(cp.Protocol, corev1.ProtocolTCP) == cmp.Or(sp.Protocol, corev1.ProtocolTCP) {
				return cp.ContainerPort, true
			}
		}
	}
	return 0, false
}

func portsKey(ports []discoveryv1.EndpointPort) string {
	var b strings.Builder
	for _, p := range ports {
		b.WriteString(*p.Name + "/" + string(*p.Protocol) + "/" + strconv.Itoa(int(*p.Port)) + ";")
	}
	return b.String()
}

func newSlice(svc *corev1.Service, f corev1.IPFamily, ports []discoveryv1.EndpointPort, endpoints []discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	labels := map[string]string{}
	for k, v := range svc.Labels {
		labels[k] = v
	}
	labels[discoveryv1.LabelServiceName] = svc.Name
	labels[discoveryv1.LabelManagedBy] = managedBy
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		labels[corev1.IsHeadlessService] = ""
	}
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: svc.Name + "-", Namespace: svc.Namespace, Labels: labels,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(svc, kind)},
		},
		AddressType: discoveryv1.AddressType(f),
		Ports:       ports,
		Endpoints:   endpoints,
	}
}

func sameSlice(a, b *discoveryv1.EndpointSlice) bool {
	return apiequality.Semantic.DeepEqual(a.Endpoints, b.Endpoints) &&
		apiequality.Semantic.DeepEqual(a.Ports, b.Ports) && maps.Equal(a.Labels, b.Labels)
}

// legacy is the Endpoints object of a Service: one subset for each set of ports.
func legacy(svc *corev1.Service, groups map[string]*group) *corev1.Endpoints { //nolint:staticcheck // served for old clients
	ep := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{ //nolint:staticcheck // served for old clients
		Name: svc.Name, Namespace: svc.Namespace, Labels: maps.Clone(svc.Labels),
		OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(svc, kind)},
	}}
	if ep.Labels == nil {
		ep.Labels = map[string]string{}
	}
	// The slices come from the Service's own pods: mirroring these would double them.
	ep.Labels[discoveryv1.LabelSkipMirror] = "true"
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		g := groups[key]
		var sub corev1.EndpointSubset //nolint:staticcheck // served for old clients
		for _, e := range g.endpoints {
			a := corev1.EndpointAddress{IP: e.Addresses[0], NodeName: e.NodeName, TargetRef: e.TargetRef} //nolint:staticcheck // served for old clients
			switch {
			case *e.Conditions.Ready:
				sub.Addresses = append(sub.Addresses, a)
			case !*e.Conditions.Terminating:
				sub.NotReadyAddresses = append(sub.NotReadyAddresses, a)
			}
		}
		for _, p := range g.ports {
			sub.Ports = append(sub.Ports, corev1.EndpointPort{Name: *p.Name, Port: *p.Port, Protocol: *p.Protocol}) //nolint:staticcheck // served for old clients
		}
		if len(sub.Addresses)+len(sub.NotReadyAddresses) > 0 {
			ep.Subsets = append(ep.Subsets, sub)
		}
	}
	return ep
}
