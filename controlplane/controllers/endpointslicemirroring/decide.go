package endpointslicemirroring

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

const (
	// maxEndpoints of a subset are mirrored, as in Kubernetes; so one slice holds them.
	maxEndpoints = 1000
	// managedBy marks the slices that this controller owns.
	managedBy = "endpointslicemirroring-controller.gitk8s.dev"
	// leaderAnnotation marks Endpoints that are a lock of a leader election.
	leaderAnnotation = "control-plane.alpha.kubernetes.io/leader"
)

// notMirrored are annotations that speak of the Endpoints object itself.
var notMirrored = []string{corev1.LastAppliedConfigAnnotation, corev1.EndpointsLastChangeTriggerTime}

// Decision is what brings the slices up to date.
type Decision struct {
	Create, Update, Delete []*discoveryv1.EndpointSlice
}

// mirrored tells whether the Endpoints of a Service are to be mirrored: they were
// made by hand (page "EndpointSlices", section "EndpointSlice mirroring").
func mirrored(svc *corev1.Service, e *corev1.Endpoints) bool { //nolint:staticcheck // what is mirrored
	if svc == nil || e == nil || e.DeletionTimestamp != nil || len(svc.Spec.Selector) > 0 {
		return false
	}
	_, isLock := e.Annotations[leaderAnnotation]
	return !isLock && e.Labels[discoveryv1.LabelSkipMirror] != "true"
}

// Decide computes the slices that mirror Endpoints, one for each set of ports and
// family. svc or e is nil when there is none.
func Decide(svc *corev1.Service, e *corev1.Endpoints, existing []*discoveryv1.EndpointSlice) Decision { //nolint:staticcheck // what is mirrored
	var d Decision
	if !mirrored(svc, e) {
		d.Delete = existing
		return d
	}
	want := mirrors(e)
	have := map[string]*discoveryv1.EndpointSlice{}
	for _, s := range slices.SortedFunc(slices.Values(existing), func(a, b *discoveryv1.EndpointSlice) int { return cmp.Compare(a.Name, b.Name) }) {
		k := sliceKey(s)
		if want[k] == nil || have[k] != nil {
			d.Delete = append(d.Delete, s)
			continue
		}
		have[k] = s
	}
	for _, k := range slices.Sorted(maps.Keys(want)) {
		next, s := want[k], have[k]
		switch {
		case s == nil:
			d.Create = append(d.Create, next)
		case !apiequality.Semantic.DeepEqual(s.Endpoints, next.Endpoints) || !apiequality.Semantic.DeepEqual(s.Ports, next.Ports) ||
			!maps.Equal(s.Labels, next.Labels) || !maps.Equal(s.Annotations, next.Annotations):
			update := s.DeepCopy()
			update.Endpoints, update.Ports, update.Labels, update.Annotations = next.Endpoints, next.Ports, next.Labels, next.Annotations
			d.Update = append(d.Update, update)
		}
	}
	return d
}

func sliceKey(s *discoveryv1.EndpointSlice) string {
	var b strings.Builder
	b.WriteString(string(s.AddressType))
	for _, p := range s.Ports {
		b.WriteString(";" + ptr.Deref(p.Name, "") + "/" + string(ptr.Deref(p.Protocol, "")) + "/" + strconv.Itoa(int(ptr.Deref(p.Port, 0))))
	}
	return b.String()
}

// mirrors are the slices by their keys. Subsets with the same ports share one.
func mirrors(e *corev1.Endpoints) map[string]*discoveryv1.EndpointSlice { //nolint:staticcheck // what is mirrored
	out := map[string]*discoveryv1.EndpointSlice{}
	add := func(ports []discoveryv1.EndpointPort, a corev1.EndpointAddress, ready bool) { //nolint:staticcheck // what is mirrored
		s := newSlice(e, ports)
		if ip, err := netip.ParseAddr(a.IP); err == nil && ip.Is6() {
			s.AddressType = discoveryv1.AddressTypeIPv6
		}
		k := sliceKey(s)
		if out[k] == nil {
			out[k] = s
		}
		s = out[k]
		twice := slices.ContainsFunc(s.Endpoints, func(x discoveryv1.Endpoint) bool { return x.Addresses[0] == a.IP })
		if twice || len(s.Endpoints) >= maxEndpoints {
			return
		}
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{a.IP}, NodeName: a.NodeName, TargetRef: a.TargetRef, Hostname: hostname(a),
			Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		})
	}
	for _, sub := range e.Subsets {
		ports := slicePorts(sub.Ports)
		for _, a := range sub.Addresses {
			add(ports, a, true)
		}
		for _, a := range sub.NotReadyAddresses {
			add(ports, a, false)
		}
	}
	return out
}

func hostname(a corev1.EndpointAddress) *string { //nolint:staticcheck // what is mirrored
	if a.Hostname == "" {
		return nil
	}
	return &a.Hostname
}

func slicePorts(ports []corev1.EndpointPort) []discoveryv1.EndpointPort { //nolint:staticcheck // what is mirrored
	out := make([]discoveryv1.EndpointPort, 0, len(ports))
	for _, p := range ports {
		out = append(out, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: ptr.To(cmp.Or(p.Protocol, corev1.ProtocolTCP)), AppProtocol: p.AppProtocol})
	}
	slices.SortFunc(out, func(a, b discoveryv1.EndpointPort) int { return cmp.Compare(*a.Name, *b.Name) })
	return out
}

func newSlice(e *corev1.Endpoints, ports []discoveryv1.EndpointPort) *discoveryv1.EndpointSlice { //nolint:staticcheck // what is mirrored
	labels, annotations := map[string]string{}, map[string]string{}
	maps.Copy(labels, e.Labels)
	labels[discoveryv1.LabelServiceName], labels[discoveryv1.LabelManagedBy] = e.Name, managedBy
	maps.Copy(annotations, e.Annotations)
	for _, k := range notMirrored {
		delete(annotations, k)
	}
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: e.Name + "-", Namespace: e.Namespace, Labels: labels, Annotations: annotations,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(e, kind)},
		},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: ports,
	}
}
