package ingress

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// GatewayController is what a GatewayClass says that is served here.
const GatewayController = "gitk8s.dev/gateway"

// Ports that listeners share with Ingresses: they stand for those at which the node, or
// with `up` the machine, serves these. portWorker is the worker's own.
const (
	portHTTP   = 80
	portHTTPS  = 443
	portWorker = 10250
)

// GatewaySnapshot is what the part of a Table is made of that Gateways have.
type GatewaySnapshot struct {
	Classes    []*gatewayv1.GatewayClass
	Gateways   []*gatewayv1.Gateway
	HTTPRoutes []*gatewayv1.HTTPRoute
	GRPCRoutes []*gatewayv1.GRPCRoute
	Grants     []*gatewayv1.ReferenceGrant
	// Labels returns those of a namespace.
	Labels func(namespace string) labels.Set
	// Service returns a service, nil if there is none.
	Service func(namespace, name string) *corev1.Service
}

// OurGateways returns the Gateways whose class is served here, the oldest first.
func OurGateways(classes []*gatewayv1.GatewayClass, all []*gatewayv1.Gateway) []*gatewayv1.Gateway {
	ours := map[gatewayv1.ObjectName]bool{}
	for _, c := range classes {
		ours[gatewayv1.ObjectName(c.Name)] = c.Spec.ControllerName == GatewayController && c.Spec.ParametersRef == nil
	}
	var out []*gatewayv1.Gateway
	for _, g := range all {
		if ours[g.Spec.GatewayClassName] && g.DeletionTimestamp == nil {
			out = append(out, g)
		}
	}
	slices.SortFunc(out, func(a, b *gatewayv1.Gateway) int { return older(a, b) })
	return out
}

func older(a, b metav1.Object) int {
	at, bt := a.GetCreationTimestamp(), b.GetCreationTimestamp()
	return cmp.Or(at.Compare(bt.Time), cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
}

// gateways adds what the Gateways and their routes say.
func (t *Table) gateways(s *GatewaySnapshot, certificate func(namespace, name string) (*tls.Certificate, error)) {
	for _, c := range s.Classes {
		if c.Spec.ControllerName == GatewayController {
			t.status.classes = append(t.status.classes, classStatus{c, acceptedClass(c)})
		}
	}
	c := &compiler{
		s: s, table: t, certificate: certificate, gateways: map[types.NamespacedName]*gateway{},
		protocols: map[gatewayv1.PortNumber]gatewayv1.ProtocolType{portHTTP: gatewayv1.HTTPProtocolType, portHTTPS: gatewayv1.HTTPSProtocolType},
	}
	t.ports = map[int32]*portTable{}
	ours := OurGateways(s.Classes, s.Gateways)
	for _, g := range ours {
		c.gateways[types.NamespacedName{Namespace: g.Namespace, Name: g.Name}] = c.gateway(g)
	}
	c.routes()
	for _, p := range t.ports {
		p.hosts.values(func(all []*match) { slices.SortFunc(all, (*match).before) })
	}
	for _, g := range ours {
		t.status.gateways = append(t.status.gateways, c.gateways[types.NamespacedName{Namespace: g.Namespace, Name: g.Name}].status())
	}
}

func acceptedClass(c *gatewayv1.GatewayClass) []metav1.Condition {
	if c.Spec.ParametersRef != nil {
		return []metav1.Condition{condition("Accepted", false, "InvalidParameters", "the class takes no parameters")}
	}
	return []metav1.Condition{condition("Accepted", true, "Accepted", "Gateways of the class are served at every node")}
}

// condition is one whose time is not known yet.
func condition(kind string, is bool, reason, message string) metav1.Condition {
	c := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reason, Message: message}
	if is {
		c.Status = metav1.ConditionTrue
	}
	return c
}

// compiler makes a table of one snapshot.
type compiler struct {
	s           *GatewaySnapshot
	table       *Table
	certificate func(namespace, name string) (*tls.Certificate, error)
	gateways    map[types.NamespacedName]*gateway
	protocols   map[gatewayv1.PortNumber]gatewayv1.ProtocolType
}

// gateway is a Gateway with its listeners in their order.
type gateway struct {
	*gatewayv1.Gateway
	refused   *metav1.Condition // why nothing of it is served
	listeners []*listener
}

// listener is a listener of a Gateway.
type listener struct {
	*gatewayv1.Listener
	namespace          string
	hostname           string
	kinds              []gatewayv1.RouteGroupKind
	accepted, resolved metav1.Condition
	conflicted         metav1.Condition
	certificates       []*tls.Certificate
	served             bool
	attached           map[string]bool // routes by kind, namespace and name
}

func (c *compiler) gateway(g *gatewayv1.Gateway) *gateway {
	out := &gateway{Gateway: g}
	switch spec := &g.Spec; {
	case slices.ContainsFunc(spec.Addresses, func(a gatewayv1.GatewaySpecAddress) bool { return a.Value != "" }):
		out.refused = ptr.To(condition("Accepted", false, "UnsupportedAddress", "the addresses are those of the nodes; none can be asked for"))
	case spec.Infrastructure != nil && spec.Infrastructure.ParametersRef != nil:
		out.refused = ptr.To(condition("Accepted", false, "InvalidParameters", "a Gateway takes no parameters"))
	}
	for i := range g.Spec.Listeners {
		l := c.listener(g, &g.Spec.Listeners[i])
		l.served = out.refused == nil && l.accepted.Status == metav1.ConditionTrue &&
			(l.Protocol == gatewayv1.HTTPProtocolType || len(l.certificates) > 0)
		if l.served {
			c.open(l)
		}
		out.listeners = append(out.listeners, l)
	}
	return out
}

// open adds a listener to those of its port.
func (c *compiler) open(l *listener) {
	withTLS := l.Protocol == gatewayv1.HTTPSProtocolType
	p := c.table.ports[l.Port]
	if p == nil {
		p = &portTable{tls: withTLS}
		c.table.ports[l.Port] = p
	}
	if withTLS {
		p.certs.change(l.hostname, func(all []*tls.Certificate) []*tls.Certificate { return append(all, l.certificates...) })
	}
}

// protocolAt returns what a port is for: the first listener that asks for it says.
func (c *compiler) protocolAt(port gatewayv1.PortNumber, asked gatewayv1.ProtocolType) gatewayv1.ProtocolType {
	if c.protocols[port] == "" {
		c.protocols[port] = asked
	}
	return c.protocols[port]
}

func (c *compiler) listener(g *gatewayv1.Gateway, spec *gatewayv1.Listener) *listener {
	l := &listener{
		Listener: spec, namespace: g.Namespace, hostname: strings.ToLower(string(ptr.Deref(spec.Hostname, ""))), attached: map[string]bool{},
		accepted:   condition("Accepted", true, "Accepted", "the listener is valid"),
		resolved:   condition("ResolvedRefs", true, "ResolvedRefs", "all references are resolved"),
		conflicted: condition("Conflicted", false, "NoConflicts", "no other listener has its port and hostname"),
	}
	l.allowedKinds()
	switch validated := frontend(g.Spec.TLS, spec.Port); {
	case spec.Protocol != gatewayv1.HTTPProtocolType && spec.Protocol != gatewayv1.HTTPSProtocolType:
		l.accepted = condition("Accepted", false, "UnsupportedProtocol", "only HTTP and HTTPS are served")
		l.kinds = nil
	case spec.Port == portWorker:
		l.accepted = condition("Accepted", false, "PortUnavailable", "the workers themselves have the port")
	case c.protocolAt(spec.Port, spec.Protocol) != spec.Protocol:
		l.accepted = condition("Accepted", false, "PortUnavailable", fmt.Sprintf("the port is for %s", c.protocols[spec.Port]))
		l.conflicted = condition("Conflicted", true, "ProtocolConflict", l.accepted.Message)
	case spec.Protocol == gatewayv1.HTTPSProtocolType && validated:
		l.accepted = condition("Accepted", false, "UnsupportedValue", "certificates of clients are not checked (spec.tls.frontend)")
	}
	if spec.Protocol == gatewayv1.HTTPSProtocolType && spec.TLS != nil {
		for _, ref := range spec.TLS.CertificateRefs {
			cert, reason, message := c.certificateOf(g, &ref)
			if reason != "" {
				l.resolved = condition("ResolvedRefs", false, reason, message)
				continue
			}
			l.certificates = append(l.certificates, cert)
		}
	}
	return l
}

// frontend says whether a Gateway wants certificates of its clients at a port.
func frontend(c *gatewayv1.GatewayTLSConfig, port gatewayv1.PortNumber) bool {
	if c == nil || c.Frontend == nil {
		return false
	}
	for _, p := range c.Frontend.PerPort {
		if p.Port == port {
			return p.TLS.Validation != nil
		}
	}
	return c.Frontend.Default.Validation != nil
}

// allowedKinds reads which kinds of routes a listener takes.
func (l *listener) allowedKinds() {
	group := ptr.To(gatewayv1.Group(gatewayv1.GroupName))
	can := []gatewayv1.RouteGroupKind{{Group: group, Kind: kindHTTPRoute}, {Group: group, Kind: kindGRPCRoute}}
	if l.AllowedRoutes == nil || len(l.AllowedRoutes.Kinds) == 0 {
		l.kinds = can
		return
	}
	for _, k := range l.AllowedRoutes.Kinds {
		k.Group = ptr.To(ptr.Deref(k.Group, gatewayv1.GroupName))
		if !slices.ContainsFunc(can, func(c gatewayv1.RouteGroupKind) bool { return *c.Group == *k.Group && c.Kind == k.Kind }) {
			l.resolved = condition("ResolvedRefs", false, "InvalidRouteKinds", fmt.Sprintf("routes of kind %s are not served", k.Kind))
			continue
		}
		l.kinds = append(l.kinds, k)
	}
}

// certificateOf resolves a reference of a listener; reason says why it cannot.
func (c *compiler) certificateOf(g *gatewayv1.Gateway, ref *gatewayv1.SecretObjectReference) (cert *tls.Certificate, reason, message string) {
	key, ok := secretOf(g, ref)
	switch {
	case !ok:
		return nil, "InvalidCertificateRef", fmt.Sprintf("%s %q is no Secret", ptr.Deref(ref.Kind, "Secret"), ref.Name)
	case !granted(c.s.Grants, "Gateway", g.Namespace, "Secret", key.namespace, key.name):
		return nil, "RefNotPermitted", fmt.Sprintf("no ReferenceGrant in namespace %s lets Gateways of namespace %s use Secret %q", key.namespace, g.Namespace, key.name)
	}
	cert, err := c.certificate(key.namespace, key.name)
	if err != nil {
		return nil, "InvalidCertificateRef", fmt.Sprintf("Secret %q: %v", key.name, err)
	}
	return cert, "", ""
}

// secretOf is the Secret that a reference of a Gateway means, if it means one.
func secretOf(g *gatewayv1.Gateway, ref *gatewayv1.SecretObjectReference) (secretKey, bool) {
	key := secretKey{string(ptr.Deref(ref.Namespace, gatewayv1.Namespace(g.Namespace))), string(ref.Name)}
	return key, ptr.Deref(ref.Group, "") == "" && ptr.Deref(ref.Kind, "Secret") == "Secret"
}

// certificateSecrets adds the Secrets that Gateways may use as certificates.
func certificateSecrets(to map[secretKey]bool, ours []*gatewayv1.Gateway, grants []*gatewayv1.ReferenceGrant) {
	for _, g := range ours {
		for i := range g.Spec.Listeners {
			l := &g.Spec.Listeners[i]
			if l.TLS == nil || l.Protocol != gatewayv1.HTTPSProtocolType {
				continue
			}
			for _, ref := range l.TLS.CertificateRefs {
				if key, ok := secretOf(g, &ref); ok && granted(grants, "Gateway", g.Namespace, "Secret", key.namespace, key.name) {
					to[key] = true
				}
			}
		}
	}
}

// granted says whether objects of a kind of the Gateway API in one namespace may refer
// to an object of the core group in another ("ReferenceGrant").
func granted(grants []*gatewayv1.ReferenceGrant, kind gatewayv1.Kind, from string, toKind gatewayv1.Kind, namespace, name string) bool {
	if from == namespace {
		return true
	}
	return slices.ContainsFunc(grants, func(g *gatewayv1.ReferenceGrant) bool {
		return g.Namespace == namespace &&
			slices.Contains(g.Spec.From, gatewayv1.ReferenceGrantFrom{Group: gatewayv1.GroupName, Kind: kind, Namespace: gatewayv1.Namespace(from)}) &&
			slices.ContainsFunc(g.Spec.To, func(to gatewayv1.ReferenceGrantTo) bool {
				return to.Group == "" && to.Kind == toKind && (to.Name == nil || string(*to.Name) == name)
			})
	})
}

// allows says whether a listener takes routes of a kind from a namespace.
func (c *compiler) allows(l *listener, kind gatewayv1.Kind, namespace string) bool {
	if !slices.ContainsFunc(l.kinds, func(k gatewayv1.RouteGroupKind) bool { return k.Kind == kind }) {
		return false
	}
	var from *gatewayv1.RouteNamespaces
	if l.AllowedRoutes != nil {
		from = l.AllowedRoutes.Namespaces
	}
	if from == nil {
		return namespace == l.namespace
	}
	switch ptr.Deref(from.From, gatewayv1.NamespacesFromSame) {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSame:
		return namespace == l.namespace
	case gatewayv1.NamespacesFromSelector:
		selector, err := metav1.LabelSelectorAsSelector(from.Selector)
		return err == nil && selector.Matches(c.s.Labels(namespace))
	}
	return false
}

// except are the hosts of a hostname of the listener that are another listener's of
// the same Gateway: a request is for the listener with the most specific hostname.
func (g *gateway) except(l *listener, hostname string) []string {
	var out []string
	for _, o := range g.listeners {
		if o == l || o.Protocol != l.Protocol || o.Port != l.Port || o.hostname == l.hostname || o.accepted.Status != metav1.ConditionTrue || !includes(l.hostname, o.hostname) {
			continue
		}
		if _, ok := intersection(o.hostname, hostname); ok {
			out = append(out, o.hostname)
		}
	}
	return out
}

// status is what the API is told of the Gateway, but for its addresses.
func (g *gateway) status() gatewayStatus {
	out := gatewayStatus{gateway: g.Gateway}
	valid, served := 0, 0
	for _, l := range g.listeners {
		programmed := condition("Programmed", l.served, "Programmed", "the listener is served")
		if !l.served {
			programmed.Reason, programmed.Message = "Invalid", "the listener is not served: see the other conditions"
		}
		if l.accepted.Status == metav1.ConditionTrue {
			valid++
		}
		if l.served {
			served++
		}
		kinds := l.kinds
		if kinds == nil {
			kinds = []gatewayv1.RouteGroupKind{}
		}
		out.listeners = append(out.listeners, gatewayv1.ListenerStatus{
			Name: l.Name, SupportedKinds: kinds, AttachedRoutes: int32(len(l.attached)),
			Conditions: []metav1.Condition{l.accepted, l.conflicted, l.resolved, programmed},
		})
	}
	accepted := condition("Accepted", valid > 0, "Accepted", "the Gateway is served")
	if valid < len(g.listeners) {
		accepted.Reason, accepted.Message = "ListenersNotValid", fmt.Sprintf("%d of %d listeners are not valid", len(g.listeners)-valid, len(g.listeners))
	}
	if g.refused != nil {
		accepted = *g.refused
	}
	programmed := condition("Programmed", served > 0, "Programmed", "the Gateway is served")
	if served == 0 {
		programmed.Reason, programmed.Message = "Invalid", "no listener can be served"
	}
	out.conditions = []metav1.Condition{accepted, programmed}
	return out
}
