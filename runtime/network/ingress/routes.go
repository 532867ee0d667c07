package ingress

import (
	"cmp"
	"fmt"
	"net/textproto"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

const (
	kindHTTPRoute gatewayv1.Kind = "HTTPRoute"
	kindGRPCRoute gatewayv1.Kind = "GRPCRoute"
)

// source is a HTTPRoute or a GRPCRoute.
type source struct {
	kind      gatewayv1.Kind
	object    runtime.Object
	meta      *metav1.ObjectMeta
	spec      *gatewayv1.CommonRouteSpec
	hostnames []gatewayv1.Hostname
	status    *gatewayv1.RouteStatus
	compile   func(*routeCompiler) []*match
}

// routeCompiler makes the matches of one route, and notes what is wrong with it.
type routeCompiler struct {
	c   *compiler
	src *source
	// unsupported is what keeps the whole route from being served; empty for nothing.
	unsupported string
	resolved    metav1.Condition
}

// routes takes all routes of our Gateways, the oldest first.
func (c *compiler) routes() {
	var all []*source
	for _, r := range c.s.HTTPRoutes {
		all = append(all, &source{kindHTTPRoute, r, &r.ObjectMeta, &r.Spec.CommonRouteSpec, r.Spec.Hostnames, &r.Status.RouteStatus, func(rc *routeCompiler) []*match { return rc.http(r.Spec.Rules) }})
	}
	for _, r := range c.s.GRPCRoutes {
		all = append(all, &source{kindGRPCRoute, r, &r.ObjectMeta, &r.Spec.CommonRouteSpec, r.Spec.Hostnames, &r.Status.RouteStatus, func(rc *routeCompiler) []*match { return rc.grpc(r.Spec.Rules) }})
	}
	slices.SortFunc(all, func(a, b *source) int { return cmp.Or(older(a.meta, b.meta), cmp.Compare(a.kind, b.kind)) })
	for _, src := range all {
		if src.meta.DeletionTimestamp == nil {
			c.route(src)
		}
	}
}

// route attaches a route to the listeners of its parents.
func (c *compiler) route(src *source) {
	out := routeStatus{src: src}
	var matches []*match
	var rc *routeCompiler
	for _, ref := range src.spec.ParentRefs {
		if ptr.Deref(ref.Group, gatewayv1.GroupName) != gatewayv1.GroupName || ptr.Deref(ref.Kind, "Gateway") != "Gateway" {
			continue
		}
		g := c.gateways[types.NamespacedName{Namespace: string(ptr.Deref(ref.Namespace, gatewayv1.Namespace(src.meta.Namespace))), Name: string(ref.Name)}]
		if g == nil {
			continue
		}
		if rc == nil { // it is made once, however many parents it has
			rc = &routeCompiler{c: c, src: src, resolved: condition("ResolvedRefs", true, "ResolvedRefs", "all references are resolved")}
			matches = src.compile(rc)
		}
		accepted := c.attach(src, rc, g, &ref, matches)
		out.parents = append(out.parents, gatewayv1.RouteParentStatus{
			ParentRef: ref, ControllerName: GatewayController, Conditions: []metav1.Condition{accepted, rc.resolved},
		})
	}
	ours := slices.ContainsFunc(src.status.Parents, func(p gatewayv1.RouteParentStatus) bool { return p.ControllerName == GatewayController })
	if len(out.parents) > 0 || ours {
		c.table.status.routes = append(c.table.status.routes, out)
	}
}

// attach adds a route's matches to those listeners of a Gateway that it names and that
// take it, and returns its condition Accepted.
func (c *compiler) attach(src *source, rc *routeCompiler, g *gateway, ref *gatewayv1.ParentReference, matches []*match) metav1.Condition {
	named, allowed, attached := false, false, false
	hostnames := []string{""}
	if len(src.hostnames) > 0 {
		hostnames = nil
		for _, h := range src.hostnames {
			hostnames = append(hostnames, strings.ToLower(string(h)))
		}
	}
	for _, l := range g.listeners {
		if ref.SectionName != nil && *ref.SectionName != l.Name || ref.Port != nil && *ref.Port != l.Port {
			continue
		}
		named = true
		if !c.allows(l, src.kind, src.meta.Namespace) {
			continue
		}
		allowed = true
		id := string(src.kind) + " " + src.meta.Namespace + "/" + src.meta.Name
		again := l.attached[id]
		for _, h := range hostnames {
			common, ok := intersection(l.hostname, h)
			if !ok {
				continue
			}
			attached = true
			if rc.unsupported != "" {
				continue
			}
			l.attached[id] = true
			if l.served && !again {
				c.serve(g, l, common, matches)
			}
		}
	}
	switch {
	case !named:
		return condition("Accepted", false, "NoMatchingParent", "the Gateway has no such listener")
	case !allowed:
		return condition("Accepted", false, "NotAllowedByListeners", "no listener takes routes of this kind from this namespace")
	case !attached:
		return condition("Accepted", false, "NoMatchingListenerHostname", "no listener has a hostname in common with the route")
	case rc.unsupported != "":
		return condition("Accepted", false, "UnsupportedValue", rc.unsupported)
	}
	return condition("Accepted", true, "Accepted", "the route is served")
}

// serve adds the matches for a hostname of a listener.
func (c *compiler) serve(g *gateway, l *listener, hostname string, matches []*match) {
	except := g.except(l, hostname)
	c.table.ports[l.Port].hosts.change(hostname, func(all []*match) []*match {
		for _, m := range matches {
			of := *m
			of.except = except
			all = append(all, &of)
		}
		return all
	})
}

// newMatch begins a match of the route.
func (rc *routeCompiler) newMatch(r *split, position int) *match {
	return &match{
		to: r, created: rc.src.meta.CreationTimestamp.Time, position: position,
		name: rc.src.meta.Namespace + "/" + rc.src.meta.Name,
	}
}

func (rc *routeCompiler) refuse(format string, args ...any) {
	if rc.unsupported == "" {
		rc.unsupported = fmt.Sprintf(format, args...)
	}
}

// unresolved notes a reference that leads nowhere; the first is told of.
func (rc *routeCompiler) unresolved(reason, format string, args ...any) {
	if rc.resolved.Status == metav1.ConditionTrue {
		rc.resolved = condition("ResolvedRefs", false, reason, fmt.Sprintf(format, args...))
	}
}

// whole compiles a regular expression that a whole value must fit (RE2).
func (rc *routeCompiler) whole(expression string) *regexp.Regexp {
	re, err := regexp.Compile("^(?:" + expression + ")$")
	if err != nil {
		rc.refuse("regular expression %q: %v", expression, err)
	}
	return re
}

func (rc *routeCompiler) http(rules []gatewayv1.HTTPRouteRule) []*match {
	var out []*match
	for i := range rules {
		spec := &rules[i]
		r := rc.httpRule(spec, i)
		matches := spec.Matches
		if len(matches) == 0 {
			matches = []gatewayv1.HTTPRouteMatch{{}}
		}
		for j := range matches {
			m := rc.newMatch(r, len(out))
			rc.httpMatch(m, &matches[j])
			out = append(out, m)
		}
	}
	return out
}

func (rc *routeCompiler) httpMatch(m *match, spec *gatewayv1.HTTPRouteMatch) {
	if p := spec.Path; p != nil {
		value := ptr.Deref(p.Value, "/")
		switch kind := ptr.Deref(p.Type, gatewayv1.PathMatchPathPrefix); kind {
		case gatewayv1.PathMatchExact:
			m.kind, m.path = pathExact, value
		case gatewayv1.PathMatchPathPrefix:
			m.kind, m.path = pathPrefix, strings.TrimRight(value, "/")
		case gatewayv1.PathMatchRegularExpression:
			m.kind, m.path, m.re = pathRegexp, value, rc.whole(value)
		default:
			rc.refuse("path matches of type %s are not served", kind)
		}
	}
	for _, h := range spec.Headers {
		rc.value(&m.headers, textproto.CanonicalMIMEHeaderKey(string(h.Name)), h.Value, string(ptr.Deref(h.Type, gatewayv1.HeaderMatchExact)))
	}
	for _, q := range spec.QueryParams {
		rc.value(&m.params, string(q.Name), q.Value, string(ptr.Deref(q.Type, gatewayv1.QueryParamMatchExact)))
	}
	m.method = string(ptr.Deref(spec.Method, ""))
}

// value adds the comparison of a header or parameter; of several for one name the
// first counts.
func (rc *routeCompiler) value(to *[]valueMatch, name, value, kind string) {
	if slices.ContainsFunc(*to, func(v valueMatch) bool { return v.name == name }) {
		return
	}
	v := valueMatch{name: name, value: value}
	switch kind {
	case "Exact":
	case "RegularExpression":
		v.re = rc.whole(value)
	default:
		rc.refuse("matches of type %s are not served", kind)
	}
	*to = append(*to, v)
}

func (rc *routeCompiler) httpRule(spec *gatewayv1.HTTPRouteRule, position int) *split {
	opts := &options{timeout: defaultTimeout}
	if t := spec.Timeouts; t != nil {
		rc.timeouts(opts, t)
	}
	a := rc.filters(action{}, spec.Filters, position)
	if a.rewrite != nil && prefixOnly(a.rewrite.Path, spec.Matches) || a.redirect != nil && prefixOnly(a.redirect.Path, spec.Matches) {
		rc.refuse("rule %d: only the path of a PathPrefix match can have its prefix replaced", position)
	}
	r := &split{}
	if a.redirect != nil {
		r.add(rc.newRoute(opts, &a), 1)
		return r
	}
	for i := range spec.BackendRefs {
		b := &spec.BackendRefs[i]
		own := a
		own.request, own.response = slices.Clone(a.request), slices.Clone(a.response)
		if slices.ContainsFunc(b.Filters, func(f gatewayv1.HTTPRouteFilter) bool { return f.RequestRedirect != nil || f.URLRewrite != nil }) {
			rc.refuse("rule %d: filters of a backend may change headers, and no more", position)
		}
		own = rc.filters(own, b.Filters, position)
		r.add(rc.backend(&b.BackendRef, opts, &own), ptr.Deref(b.Weight, 1))
	}
	rc.nowhere(r, opts)
	return r
}

// prefixOnly says whether a filter replaces a prefix where no prefix matches.
func prefixOnly(f *gatewayv1.HTTPPathModifier, matches []gatewayv1.HTTPRouteMatch) bool {
	return f != nil && f.Type == gatewayv1.PrefixMatchHTTPPathModifier && slices.ContainsFunc(matches, func(m gatewayv1.HTTPRouteMatch) bool {
		return m.Path != nil && ptr.Deref(m.Path.Type, gatewayv1.PathMatchPathPrefix) != gatewayv1.PathMatchPathPrefix
	})
}

// nowhere answers for a rule without a backend that has weight.
func (rc *routeCompiler) nowhere(r *split, opts *options) {
	if r.total == 0 {
		r.add(rc.newRoute(opts, &action{refused: "the route has no backend"}), 1)
	}
}

// timeouts reads those of a rule; both are for the whole of a request, since nothing
// that a pod works on is sent twice.
func (rc *routeCompiler) timeouts(opts *options, t *gatewayv1.HTTPRouteTimeouts) {
	for _, d := range []*gatewayv1.Duration{t.Request, t.BackendRequest} {
		if d == nil {
			continue
		}
		limit, err := time.ParseDuration(string(*d))
		if err != nil {
			rc.refuse("timeout %q: %v", *d, err)
			continue
		}
		if !opts.whole {
			opts.timeout = limit // 0 is none
		} else if limit > 0 {
			opts.timeout = min(cmp.Or(opts.timeout, limit), limit)
		}
		opts.whole = true
	}
}

func (rc *routeCompiler) filters(a action, filters []gatewayv1.HTTPRouteFilter, position int) action {
	for i := range filters {
		switch f := &filters[i]; {
		case f.Type == gatewayv1.HTTPRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
			a.request.append(f.RequestHeaderModifier)
		case f.Type == gatewayv1.HTTPRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
			a.response.append(f.ResponseHeaderModifier)
		case f.Type == gatewayv1.HTTPRouteFilterRequestRedirect && f.RequestRedirect != nil:
			a.redirect = f.RequestRedirect
		case f.Type == gatewayv1.HTTPRouteFilterURLRewrite && f.URLRewrite != nil:
			a.rewrite = f.URLRewrite
		default:
			rc.refuse("rule %d: filters of type %s are not served", position, f.Type)
		}
	}
	return a
}

// newRoute makes one that goes nowhere yet.
func (rc *routeCompiler) newRoute(opts *options, a *action) *route {
	r := &route{
		kind:    string(rc.src.kind),
		ingress: types.NamespacedName{Namespace: rc.src.meta.Namespace, Name: rc.src.meta.Name},
		options: opts, action: a,
	}
	rc.c.table.routes = append(rc.c.table.routes, r)
	return r
}

// backend makes the route to a service. One that cannot be resolved keeps its share of
// the requests, which are answered with 500.
func (rc *routeCompiler) backend(ref *gatewayv1.BackendRef, opts *options, a *action) *route {
	namespace := string(ptr.Deref(ref.Namespace, gatewayv1.Namespace(rc.src.meta.Namespace)))
	fail := func(reason, format string, args ...any) *route {
		rc.unresolved(reason, format, args...)
		return rc.newRoute(opts, &action{refused: "the route's backend is not valid"})
	}
	if ptr.Deref(ref.Group, "") != "" || ptr.Deref(ref.Kind, "Service") != "Service" {
		return fail("InvalidKind", "%s %q is no Service", ptr.Deref(ref.Kind, "Service"), ref.Name)
	}
	if !granted(rc.c.s.Grants, rc.src.kind, rc.src.meta.Namespace, "Service", namespace, string(ref.Name)) {
		return fail("RefNotPermitted", "no ReferenceGrant in namespace %s lets %ss of namespace %s use Service %q", namespace, rc.src.kind, rc.src.meta.Namespace, ref.Name)
	}
	svc := rc.c.s.Service(namespace, string(ref.Name))
	if svc == nil {
		return fail("BackendNotFound", "Service %s/%s does not exist", namespace, ref.Name)
	}
	i := slices.IndexFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == ptr.Deref(ref.Port, 0) })
	if i < 0 {
		return fail("BackendNotFound", "Service %s/%s has no port %d", namespace, ref.Name, ptr.Deref(ref.Port, 0))
	}
	if rc.src.kind == kindGRPCRoute && protocolOf(svc.Spec.Ports[i].AppProtocol) != encrypted {
		h2c := *opts
		h2c.protocol = ptr.To(cleartext)
		opts = &h2c
	}
	r := rc.newRoute(opts, a)
	r.backend = backend{types.NamespacedName{Namespace: namespace, Name: string(ref.Name)}, networkingv1.ServiceBackendPort{Number: *ref.Port}}
	return r
}

// grpc makes the matches of a GRPCRoute: a method is a path.
func (rc *routeCompiler) grpc(rules []gatewayv1.GRPCRouteRule) []*match {
	var out []*match
	for i := range rules {
		spec := &rules[i]
		opts := &options{timeout: defaultTimeout}
		a := rc.grpcFilters(action{}, spec.Filters, i)
		r := &split{}
		for j := range spec.BackendRefs {
			b := &spec.BackendRefs[j]
			own := a
			own.request, own.response = slices.Clone(a.request), slices.Clone(a.response)
			own = rc.grpcFilters(own, b.Filters, i)
			r.add(rc.backend(&b.BackendRef, opts, &own), ptr.Deref(b.Weight, 1))
		}
		rc.nowhere(r, opts)
		matches := spec.Matches
		if len(matches) == 0 {
			matches = []gatewayv1.GRPCRouteMatch{{}}
		}
		for j := range matches {
			m := rc.newMatch(r, len(out))
			m.grpc = true
			rc.grpcMatch(m, &matches[j])
			out = append(out, m)
		}
	}
	return out
}

func (rc *routeCompiler) grpcMatch(m *match, spec *gatewayv1.GRPCRouteMatch) {
	if p := spec.Method; p != nil {
		service, method := ptr.Deref(p.Service, ""), ptr.Deref(p.Method, "")
		exact := ptr.Deref(p.Type, gatewayv1.GRPCMethodMatchExact) == gatewayv1.GRPCMethodMatchExact
		switch {
		case exact && service != "" && method != "":
			m.kind, m.path = pathExact, "/"+service+"/"+method
		case exact && method == "":
			m.path = "/" + service
		case exact:
			m.kind, m.path, m.re = pathRegexp, method, rc.whole("/[^/]+/"+regexp.QuoteMeta(method))
		default:
			m.kind, m.path = pathRegexp, service+method
			m.re = rc.whole("/(?:" + cmp.Or(service, "[^/]+") + ")/(?:" + cmp.Or(method, "[^/]+") + ")")
		}
	}
	for _, h := range spec.Headers {
		rc.value(&m.headers, textproto.CanonicalMIMEHeaderKey(string(h.Name)), h.Value, string(ptr.Deref(h.Type, gatewayv1.GRPCHeaderMatchExact)))
	}
}

func (rc *routeCompiler) grpcFilters(a action, filters []gatewayv1.GRPCRouteFilter, position int) action {
	for i := range filters {
		switch f := &filters[i]; {
		case f.Type == gatewayv1.GRPCRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
			a.request.append(f.RequestHeaderModifier)
		case f.Type == gatewayv1.GRPCRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
			a.response.append(f.ResponseHeaderModifier)
		default:
			rc.refuse("rule %d: filters of type %s are not served", position, f.Type)
		}
	}
	return a
}
