package ingress

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayfeatures "sigs.k8s.io/gateway-api/pkg/features"
	"sigs.k8s.io/yaml"
)

// gatewayWorld makes a snapshot of manifests; each is a second younger than the one
// before. Services web, v1 and v2 of every namespace have port 80.
func gatewayWorld(t testing.TB, certs map[string]*tls.Certificate, manifests ...string) Snapshot {
	t.Helper()
	s := Snapshot{
		Gateways: GatewaySnapshot{
			Labels: func(namespace string) labels.Set { return labels.Set{"name": namespace} },
			Service: func(_, name string) *corev1.Service {
				if !slices.Contains([]string{"web", "v1", "v2"}, name) {
					return nil
				}
				return &corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}
			},
		},
		Certificate: func(ns, name string) (*tls.Certificate, error) {
			if c := certs[ns+"/"+name]; c != nil {
				return c, nil
			}
			return nil, errors.New("it does not exist")
		},
	}
	g := &s.Gateways
	ours := &gatewayv1.GatewayClass{}
	ours.Name, ours.Spec.ControllerName = "gitk8s", GatewayController
	foreign := &gatewayv1.GatewayClass{}
	foreign.Name, foreign.Spec.ControllerName = "other", "other.example/gateway"
	g.Classes = []*gatewayv1.GatewayClass{ours, foreign}
	for i, m := range manifests {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(m), &kind); err != nil {
			t.Fatal(m, err)
		}
		obj := map[string]func() runtime.Object{
			"Gateway": func() runtime.Object {
				o := &gatewayv1.Gateway{}
				g.Gateways = append(g.Gateways, o)
				return o
			},
			"HTTPRoute": func() runtime.Object {
				o := &gatewayv1.HTTPRoute{}
				g.HTTPRoutes = append(g.HTTPRoutes, o)
				return o
			},
			"GRPCRoute": func() runtime.Object {
				o := &gatewayv1.GRPCRoute{}
				g.GRPCRoutes = append(g.GRPCRoutes, o)
				return o
			},
			"ReferenceGrant": func() runtime.Object {
				o := &gatewayv1.ReferenceGrant{}
				g.Grants = append(g.Grants, o)
				return o
			},
		}[kind.Kind]()
		if err := yaml.UnmarshalStrict([]byte(m), obj); err != nil {
			t.Fatal(m, err)
		}
		of, err := meta.Accessor(obj)
		if err != nil {
			t.Fatal(err)
		}
		if of.GetNamespace() == "" {
			of.SetNamespace("shop")
		}
		of.SetGeneration(7)
		of.SetCreationTimestamp(metav1.Unix(int64(1000+i), 0))
	}
	return s
}

// gatewayOf is a Gateway; listeners are YAML, as {name: http, port: 80, protocol: HTTP}.
func gatewayOf(name string, listeners ...string) string {
	return fmt.Sprintf("{kind: Gateway, metadata: {name: %s}, spec: {gatewayClassName: gitk8s, listeners: [%s]}}", name, strings.Join(listeners, ", "))
}

// routeOf is a HTTPRoute to Gateway gw; rules are YAML, and so is what else the spec has.
func routeOf(name, spec string, rules ...string) string {
	if spec != "" {
		spec = ", " + spec
	}
	if !strings.Contains(spec, "parentRefs") {
		spec += ", parentRefs: [{name: gw}]"
	}
	return fmt.Sprintf("{kind: HTTPRoute, metadata: {name: %s}, spec: {rules: [%s]%s}}", name, strings.Join(rules, ", "), spec)
}

// to is a rule to service web that matches; routes are told apart by their name.
func to(match string) string {
	return "{matches: [" + match + "], backendRefs: [{name: web, port: 80}]}"
}

const (
	httpListener  = "{name: http, port: 80, protocol: HTTP}"
	httpsListener = "{name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}"
)

// found is the name of the route that a request is for.
func found(t *Table, method, url string, headers ...string) string {
	r := httptest.NewRequest(method, url, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	port := int32(80)
	if r.TLS != nil {
		port = 443
	}
	if p, err := strconv.Atoi(r.URL.Port()); err == nil {
		port = int32(p)
	}
	got, _ := t.route(port, r, r.Header, hostOf(r.Host), cleanPath(r.URL.Path))
	if got == nil {
		return ""
	}
	return got.ingress.Name
}

func TestGatewayRoute(t *testing.T) {
	table := Compile(gatewayWorld(t, map[string]*tls.Certificate{"shop/cert": certificate(t, "secure.example")},
		gatewayOf("gw", httpListener, httpsListener, "{name: own, port: 80, protocol: HTTP, hostname: own.example.com}", "{name: wild, port: 80, protocol: HTTP, hostname: '*.wild.example'}"),
		routeOf("all", "parentRefs: [{name: gw, sectionName: http}]", to("{path: {type: PathPrefix, value: /}}")),
		routeOf("exact", "parentRefs: [{name: gw, sectionName: http}], hostnames: [a.example]", to("{path: {type: Exact, value: /cart}}")),
		routeOf("prefix", "parentRefs: [{name: gw, sectionName: http}], hostnames: [a.example]", to("{path: {type: PathPrefix, value: /cart/}}")),
		routeOf("expression", "parentRefs: [{name: gw, sectionName: http}], hostnames: [a.example]", to("{path: {type: RegularExpression, value: '/cart/[0-9]+'}}")),
		routeOf("method", "parentRefs: [{name: gw, sectionName: http}], hostnames: [a.example]", to("{path: {type: PathPrefix, value: /cart}, method: POST}")),
		routeOf("header", "parentRefs: [{name: gw, sectionName: http}], hostnames: [a.example]", to("{headers: [{name: x-canary, value: always}]}")),
		routeOf("headers", "parentRefs: [{name: gw, sectionName: http}], hostnames: [a.example]", to("{headers: [{name: x-canary, value: always}, {name: x-user, type: RegularExpression, value: 'b.*b'}]}")),
		routeOf("query", "parentRefs: [{name: gw, sectionName: http}], hostnames: [a.example]", to("{queryParams: [{name: debug, value: '1'}]}")),
		routeOf("wild", "parentRefs: [{name: gw, sectionName: http}], hostnames: ['*.example']", to("{path: {value: /w}}")),
		routeOf("own", "parentRefs: [{name: gw, sectionName: own}]", to("{path: {value: /}}")),
		routeOf("inwild", "parentRefs: [{name: gw, sectionName: wild}], hostnames: [x.wild.example, other.example, '*.y.wild.example']", to("{path: {value: /}}")),
		routeOf("secure", "parentRefs: [{name: gw, sectionName: https}]", to("{path: {value: /}}")),
		routeOf("second", "parentRefs: [{name: gw, sectionName: http}], hostnames: [a.example]", to("{path: {type: Exact, value: /cart}}")),
		gatewayOf("second", "{name: other, port: 8080, protocol: HTTP}"), routeOf("other", "parentRefs: [{name: second}]", to("{path: {value: /}}")),
		"{kind: GRPCRoute, metadata: {name: calls}, spec: {parentRefs: [{name: gw}], hostnames: [a.example], rules: [{matches: [{method: {service: s.V1, method: Get}}, {method: {service: s.V2}}, {method: {method: Ping}}], backendRefs: [{name: web, port: 80}]}]}}",
	))
	for _, tt := range []struct {
		method, url string
		headers     []string
		want        string
	}{
		{"GET", "http://any.test/x", nil, "all"},
		{"GET", "http://a.example/cart", nil, "exact"},
		{"POST", "http://a.example/cart", nil, "exact"},
		{"GET", "http://a.example/cart/x", nil, "prefix"},
		{"GET", "http://a.example/cart/12", nil, "expression"},
		{"GET", "http://a.example/cart/12x", nil, "prefix"},
		{"GET", "http://a.example/cart/../x", nil, "all"},
		{"POST", "http://a.example/cart/x", nil, "method"},
		{"GET", "http://a.example/cartoon", nil, "all"},
		{"GET", "http://a.example/x", []string{"X-Canary", "always"}, "header"},
		{"GET", "http://a.example/x", []string{"X-Canary", "sometimes"}, "all"},
		{"GET", "http://a.example/x", []string{"X-Canary", "always", "X-User", "bob"}, "headers"},
		{"GET", "http://a.example/x", []string{"X-Canary", "always", "X-User", "bobby"}, "header"},
		{"GET", "http://a.example/x", []string{"X-Canary", "always", "X-Canary", "always"}, "all"},
		{"GET", "http://a.example/x?debug=1&debug=2", nil, "query"},
		{"GET", "http://a.example/x?debug=2", nil, "all"},
		{"GET", "http://A.EXAMPLE:80/cart", nil, "exact"},
		{"GET", "http://a.example:8080/cart", nil, "other"},
		{"GET", "http://a.example:8081/cart", nil, ""},
		{"GET", "http://a.example/w", nil, "wild"}, // the route of a.example does not match
		{"GET", "http://a.b.example/w", nil, "wild"},
		{"GET", "http://example/w", nil, "all"},
		{"GET", "http://own.example.com/w", nil, "own"},
		{"GET", "http://x.wild.example/w", nil, "inwild"},
		{"GET", "http://z.y.wild.example/w", nil, "inwild"},
		{"GET", "http://y.wild.example/w", nil, ""}, // the listener has the host, and no route
		{"GET", "http://other.example/", nil, "all"},
		{"GET", "https://any.test/x", nil, "secure"},
		{"GET", "https://a.example/cart", nil, "secure"},
		{"POST", "http://a.example/s.V1/Get", []string{"Content-Type", "application/grpc"}, "calls"},
		{"POST", "http://a.example/s.V1/Put", []string{"Content-Type", "application/grpc"}, "all"},
		{"POST", "http://a.example/s.V2/Put", []string{"Content-Type", "application/grpc+proto"}, "calls"},
		{"POST", "http://a.example/any/Ping", []string{"Content-Type", "application/grpc"}, "calls"},
		{"POST", "http://a.example/s.V1/Get", nil, "all"},
	} {
		if got := found(table, tt.method, tt.url, tt.headers...); got != tt.want {
			t.Errorf("%s %s %v is for %q, want %q", tt.method, tt.url, tt.headers, got, tt.want)
		}
	}
}

// TestGatewayBesideIngress: the more specific hostname has a request, and of the same
// one the route.
func TestGatewayBesideIngress(t *testing.T) {
	s := gatewayWorld(t, nil, gatewayOf("gw", httpListener),
		routeOf("route", "hostnames: [both.example, '*.wild.example']", to("{path: {value: /r}}")),
		routeOf("any", "", to("{path: {value: /any}}")))
	s.Classes = classes
	s.Ingresses = ingresses(t, rule("ingress", "both.example", "Prefix", "/"), rule("wild", "*.wild.example", "Prefix", "/"), rule("rest", "", "Prefix", "/"))
	table := Compile(s)
	for url, want := range map[string]string{
		"http://both.example/r": "route", "http://both.example/x": "ingress", "http://both.example/any": "ingress",
		"http://a.wild.example/r": "route", "http://a.wild.example/x": "wild", "http://a.b.wild.example/r": "route",
		"http://a.b.wild.example/x": "rest", "http://none.example/any": "any", "http://none.example/x": "rest",
	} {
		if got := found(table, "GET", url); got != want {
			t.Errorf("%s is for %q, want %q", url, got, want)
		}
	}
	if !Compile(gatewayWorld(t, nil)).empty() || !Compile(gatewayWorld(t, nil, gatewayOf("gw", "{name: x, port: 8080, protocol: HTTP}"))).empty() ||
		Compile(gatewayWorld(t, nil, gatewayOf("gw", httpListener))).empty() {
		t.Error("the ports are not open as they should be")
	}
}

func TestGatewayCertificates(t *testing.T) {
	certs := map[string]*tls.Certificate{
		"shop/a": certificate(t, "a.example"), "shop/b": certificate(t, "b.example"), "shop/wild": certificate(t, "*.wild.example"), "vault/far": certificate(t, "far.example"),
	}
	listener := func(name, hostname, refs string) string {
		return fmt.Sprintf("{name: %s, hostname: %q, port: 443, protocol: HTTPS, tls: {certificateRefs: [%s]}}", name, hostname, refs)
	}
	far := "{name: far, namespace: vault}"
	gw := gatewayOf("gw", listener("two", "", "{name: a}, {name: b}"), listener("wild", "*.wild.example", "{name: wild}"), listener("far", "far.example", far), listener("gone", "gone.example", "{name: gone}"))
	s := gatewayWorld(t, certs, gw)
	s.Classes = classes
	s.Ingresses = ingresses(t, `{metadata: {name: i}, spec: {tls: [{hosts: [b.example], secretName: b}], rules: [{host: b.example}]}}`)
	for granted, table := range map[bool]*Table{
		false: Compile(s),
		true: Compile(gatewayWorld(t, certs, gw,
			"{kind: ReferenceGrant, metadata: {name: g, namespace: vault}, spec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}], to: [{group: '', kind: Secret, name: far}]}}")),
	} {
		farCert := "shop/a" // the listener for all names
		if granted {
			farCert = "vault/far"
		}
		for name, want := range map[string]string{
			"a.example": "shop/a", "b.example": "shop/b", "B.Example.": "shop/b", "x.wild.example": "shop/wild", "x.y.wild.example": "shop/wild",
			"far.example": farCert, "other.example": "shop/a", "": "shop/a", "gone.example": "shop/a",
		} {
			hello := &tls.ClientHelloInfo{
				ServerName: name, SupportedVersions: []uint16{tls.VersionTLS13}, SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256},
				CipherSuites: []uint16{tls.TLS_AES_128_GCM_SHA256}, SupportedCurves: []tls.CurveID{tls.X25519},
			}
			if got := table.certificate(443, hello); got != certs[want] {
				t.Errorf("granted %v: %q gets %v, want %s", granted, name, got, want)
			}
		}
		l := table.status.gateways[0].listeners
		reasons := []string{"ResolvedRefs", "ResolvedRefs", map[bool]string{false: "RefNotPermitted", true: "ResolvedRefs"}[granted], "InvalidCertificateRef"}
		for i, want := range reasons {
			if c := meta.FindStatusCondition(l[i].Conditions, "ResolvedRefs"); c.Reason != want {
				t.Errorf("granted %v: listener %s: %+v, want %s", granted, l[i].Name, c, want)
			}
		}
	}
	keys := map[secretKey]bool{}
	certificateSecrets(keys, OurGateways(s.Gateways.Classes, s.Gateways.Gateways), nil)
	if keys[secretKey{"vault", "far"}] || !keys[secretKey{"shop", "a"}] || len(keys) != 4 {
		t.Errorf("the Secrets are %v", keys)
	}
}

// line says a condition shortly.
func line(all []metav1.Condition, kind string) string {
	c := meta.FindStatusCondition(all, kind)
	if c == nil {
		return "none"
	}
	return string(c.Status) + " " + c.Reason
}

func TestGatewayStatus(t *testing.T) {
	for _, tt := range []struct {
		name, gateway                string
		accepted, programmed         string
		listenerAccepted, listenerOK string
		kinds                        int
	}{
		{"plain", gatewayOf("gw", httpListener), "True Accepted", "True Programmed", "True Accepted", "True ResolvedRefs", 2},
		{"no certificate", gatewayOf("gw", httpsListener), "True Accepted", "False Invalid", "True Accepted", "False InvalidCertificateRef", 2},
		{"a port of its own", gatewayOf("gw", "{name: x, port: 8080, protocol: HTTP}"), "True Accepted", "True Programmed", "True Accepted", "True ResolvedRefs", 2},
		{"the workers' port", gatewayOf("gw", "{name: x, port: 10250, protocol: HTTP}"), "False ListenersNotValid", "False Invalid", "False PortUnavailable", "True ResolvedRefs", 2},
		{"one of two", gatewayOf("gw", "{name: x, port: 443, protocol: HTTP}", httpListener), "True ListenersNotValid", "True Programmed", "False PortUnavailable", "True ResolvedRefs", 2},
		{"TCP", gatewayOf("gw", "{name: x, port: 80, protocol: TCP}"), "False ListenersNotValid", "False Invalid", "False UnsupportedProtocol", "True ResolvedRefs", 0},
		{"other kinds", gatewayOf("gw", "{name: x, port: 80, protocol: HTTP, allowedRoutes: {kinds: [{kind: TCPRoute}, {kind: HTTPRoute}]}}"), "True Accepted", "True Programmed", "True Accepted", "False InvalidRouteKinds", 1},
		{
			"an address", strings.Replace(gatewayOf("gw", httpListener), "spec: {", "spec: {addresses: [{value: 1.2.3.4}], ", 1),
			"False UnsupportedAddress", "False Invalid", "True Accepted", "True ResolvedRefs", 2,
		},
		{
			"clients' certificates", strings.Replace(gatewayOf("gw", strings.Replace(httpsListener, "name: cert", "name: there", 1)), "spec: {", "spec: {tls: {frontend: {default: {validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}}}}, ", 1),
			"False ListenersNotValid", "False Invalid", "False UnsupportedValue", "True ResolvedRefs", 2,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := Compile(gatewayWorld(t, map[string]*tls.Certificate{"shop/there": certificate(t, "x")}, tt.gateway))
			g := table.status.gateways[0].next([]string{"10.41.0.11"})
			l := g.Status.Listeners[0]
			for what, pair := range map[string][2]string{
				"Accepted": {line(g.Status.Conditions, "Accepted"), tt.accepted}, "Programmed": {line(g.Status.Conditions, "Programmed"), tt.programmed},
				"a listener's Accepted": {line(l.Conditions, "Accepted"), tt.listenerAccepted}, "a listener's ResolvedRefs": {line(l.Conditions, "ResolvedRefs"), tt.listenerOK},
				"Conflicted": {line(l.Conditions, "Conflicted"), map[bool]string{false: "False NoConflicts", true: "True ProtocolConflict"}[tt.name == "one of two"]},
			} {
				if pair[0] != pair[1] {
					t.Errorf("%s is %q, want %q", what, pair[0], pair[1])
				}
			}
			if len(l.SupportedKinds) != tt.kinds || g.Status.Addresses[0].Value != "10.41.0.11" || g.Status.Conditions[0].ObservedGeneration != 7 {
				t.Errorf("the status is %+v", g.Status)
			}
			if (len(table.ports) == 0) != (tt.programmed != "True Programmed") {
				t.Error("the ports are not open as they should be")
			}
			if many := table.status.gateways[0].next(slices.Repeat([]string{"10.41.0.11"}, 40)); len(many.Status.Addresses) != 16 {
				t.Errorf("%d addresses, the API takes 16", len(many.Status.Addresses))
			}
			again := &gatewayStatus{gateway: g, conditions: table.status.gateways[0].conditions, listeners: table.status.gateways[0].listeners}
			if next := again.next([]string{"10.41.0.11"}); !equality.Semantic.DeepEqual(next.Status, g.Status) {
				t.Errorf("a second time says something else:\n%+v\n%+v", next.Status, g.Status)
			}
			if p := line(table.status.gateways[0].next(nil).Status.Conditions, "Programmed"); tt.programmed == "True Programmed" && p != "False AddressNotAssigned" {
				t.Errorf("without an address Programmed is %q", p)
			}
		})
	}
}

func TestRouteStatus(t *testing.T) {
	grant := "{kind: ReferenceGrant, metadata: {name: g, namespace: far}, spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service%s}]}}"
	far := "{backendRefs: [{name: web, namespace: far, port: 80}]}"
	inOther := func(s string) string { return strings.Replace(s, "metadata: {", "metadata: {namespace: other, ", 1) }
	fromOther := "parentRefs: [{name: gw, namespace: shop}]"
	for _, tt := range []struct {
		name, listener, route string
		more                  []string
		accepted, resolved    string
		attached              int32
	}{
		{"plain", httpListener, routeOf("r", "", to("{path: {value: /}}")), nil, "True Accepted", "True ResolvedRefs", 1},
		{"no such listener", httpListener, routeOf("r", "parentRefs: [{name: gw, sectionName: x}]", to("{}")), nil, "False NoMatchingParent", "True ResolvedRefs", 0},
		{"no such port", httpListener, routeOf("r", "parentRefs: [{name: gw, port: 81}]", to("{}")), nil, "False NoMatchingParent", "True ResolvedRefs", 0},
		{"its port", httpListener, routeOf("r", "parentRefs: [{name: gw, port: 80}]", to("{}")), nil, "True Accepted", "True ResolvedRefs", 1},
		{"another Gateway", httpListener, routeOf("r", "parentRefs: [{name: x}]", to("{}")), nil, "", "", 0},
		{"another hostname", "{name: http, port: 80, protocol: HTTP, hostname: a.example}", routeOf("r", "hostnames: [b.example]", to("{}")), nil, "False NoMatchingListenerHostname", "True ResolvedRefs", 0},
		{"another namespace", httpListener, inOther(routeOf("r", fromOther, to("{}"))), nil, "False NotAllowedByListeners", "True ResolvedRefs", 0},
		{"every namespace", "{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}", inOther(routeOf("r", fromOther, to("{}"))), nil, "True Accepted", "True ResolvedRefs", 1},
		{
			"a namespace that is selected", "{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {name: other}}}}}",
			inOther(routeOf("r", fromOther, to("{}"))), nil, "True Accepted", "True ResolvedRefs", 1,
		},
		{
			"a namespace that is not", "{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {name: third}}}}}",
			inOther(routeOf("r", fromOther, to("{}"))), nil, "False NotAllowedByListeners", "True ResolvedRefs", 0,
		},
		{"only gRPC", "{name: http, port: 80, protocol: HTTP, allowedRoutes: {kinds: [{kind: GRPCRoute}]}}", routeOf("r", "", to("{}")), nil, "False NotAllowedByListeners", "True ResolvedRefs", 0},
		{"an expression that is none", httpListener, routeOf("r", "", to("{path: {type: RegularExpression, value: '/('}}")), nil, "False UnsupportedValue", "True ResolvedRefs", 0},
		{
			"a mirror", httpListener, routeOf("r", "", "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: web, port: 80}}}], backendRefs: [{name: web, port: 80}]}"), nil,
			"False UnsupportedValue", "True ResolvedRefs", 0,
		},
		{
			"a rewrite for a backend", httpListener, routeOf("r", "", "{backendRefs: [{name: web, port: 80, filters: [{type: URLRewrite, urlRewrite: {hostname: x}}]}]}"), nil,
			"False UnsupportedValue", "True ResolvedRefs", 0,
		},
		{
			"a prefix of an expression", httpListener, routeOf("r", "", "{matches: [{path: {type: RegularExpression, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}}}], backendRefs: [{name: web, port: 80}]}"), nil,
			"False UnsupportedValue", "True ResolvedRefs", 0,
		},
		{"no such service", httpListener, routeOf("r", "", "{backendRefs: [{name: gone, port: 80}]}"), nil, "True Accepted", "False BackendNotFound", 1},
		{"no such port of it", httpListener, routeOf("r", "", "{backendRefs: [{name: web, port: 81}]}"), nil, "True Accepted", "False BackendNotFound", 1},
		{"no service", httpListener, routeOf("r", "", "{backendRefs: [{name: web, kind: Thing, group: x.example}]}"), nil, "True Accepted", "False InvalidKind", 1},
		{"far, not granted", httpListener, routeOf("r", "", far), nil, "True Accepted", "False RefNotPermitted", 1},
		{"far, granted", httpListener, routeOf("r", "", far), []string{fmt.Sprintf(grant, "")}, "True Accepted", "True ResolvedRefs", 1},
		{"far, granted by name", httpListener, routeOf("r", "", far), []string{fmt.Sprintf(grant, ", name: web")}, "True Accepted", "True ResolvedRefs", 1},
		{"far, another granted", httpListener, routeOf("r", "", far), []string{fmt.Sprintf(grant, ", name: v1")}, "True Accepted", "False RefNotPermitted", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := Compile(gatewayWorld(t, nil, append([]string{gatewayOf("gw", tt.listener), tt.route}, tt.more...)...))
			if tt.accepted == "" {
				if len(table.status.routes) != 0 {
					t.Fatalf("a route of others has a status: %+v", table.status.routes)
				}
				return
			}
			status := table.status.routes[0].next()
			p := status.Parents[0]
			if a, r := line(p.Conditions, "Accepted"), line(p.Conditions, "ResolvedRefs"); a != tt.accepted || r != tt.resolved || p.ControllerName != GatewayController {
				t.Errorf("Accepted is %q, ResolvedRefs is %q: %+v", a, r, p)
			}
			if n := table.status.gateways[0].listeners[0].AttachedRoutes; n != tt.attached {
				t.Errorf("%d routes are attached", n)
			}
			if served := found(table, "GET", "http://b.example/") != ""; served != (tt.accepted == "True Accepted") {
				t.Errorf("it is served: %v", served)
			}
		})
	}
}

// TestRouteStatusOfOthers: what other controllers say of a route stays, and what this
// one has said goes when the route has no parent here any more.
func TestRouteStatusOfOthers(t *testing.T) {
	s := gatewayWorld(t, nil, gatewayOf("gw", httpListener), routeOf("r", "parentRefs: [{name: x}]", to("{}")))
	s.Gateways.HTTPRoutes[0].Status.Parents = []gatewayv1.RouteParentStatus{
		{ControllerName: GatewayController, ParentRef: gatewayv1.ParentReference{Name: "gw"}}, {ControllerName: "other.example/gateway", ParentRef: gatewayv1.ParentReference{Name: "x"}},
	}
	if got := Compile(s).status.routes[0].next(); len(got.Parents) != 1 || got.Parents[0].ControllerName != "other.example/gateway" {
		t.Errorf("the status is %+v", got)
	}
}

// TestSplit: requests are shared out by weight, and a backend that is not valid keeps
// its share.
func TestSplit(t *testing.T) {
	table := Compile(gatewayWorld(t, nil, gatewayOf("gw", httpListener),
		routeOf("r", "", "{backendRefs: [{name: v1, port: 80, weight: 90}, {name: v2, port: 80, weight: 9}, {name: web, port: 80, weight: 0}, {name: gone, port: 80, weight: 1}]}"),
		routeOf("none", "hostnames: [none.example]", "{backendRefs: [{name: v1, port: 80, weight: 0}]}"),
		routeOf("empty", "hostnames: [empty.example]", "{}")))
	r := httptest.NewRequest("GET", "http://x/", nil)
	count := map[string]int{}
	const n = 100_000
	for range n {
		to, _ := table.route(80, r, r.Header, "x", "/")
		count[to.backend.service.Name]++
	}
	// Six standard deviations and more.
	for name, want := range map[string]int{"v1": 90_000, "v2": 9_000, "web": 0, "": 1_000} {
		if got := count[name]; got < want-600 || got > want+600 || want == 0 && got != 0 {
			t.Errorf("%q had %d of %d requests, want %d", name, got, n, want)
		}
	}
	for _, host := range []string{"none.example", "empty.example"} {
		if to, _ := table.route(80, r, r.Header, host, "/"); to == nil || to.action.refused == "" {
			t.Errorf("%s: %+v", host, to)
		}
	}
}

// TestRouteAllocates: looking a route up costs no memory, unless its query is asked for.
func TestRouteAllocates(t *testing.T) {
	table := Compile(gatewayWorld(t, nil, gatewayOf("gw", httpListener),
		routeOf("r", "hostnames: ['*.example']", to("{path: {value: /a}, headers: [{name: x, value: y}]}"), "{backendRefs: [{name: v1, port: 80, weight: 90}, {name: v2, port: 80}]}")))
	r := httptest.NewRequest("GET", "http://a.b.c.example/x", nil)
	if n := testing.AllocsPerRun(1000, func() { table.route(80, r, r.Header, "a.b.c.example", "/x") }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestTimeouts(t *testing.T) {
	for text, want := range map[string]options{
		"": {timeout: defaultTimeout}, "timeouts: {request: 5s}": {timeout: 5 * time.Second, whole: true},
		"timeouts: {request: 5s, backendRequest: 2s}": {timeout: 2 * time.Second, whole: true},
		"timeouts: {backendRequest: 2s}":              {timeout: 2 * time.Second, whole: true},
		"timeouts: {request: 0s}":                     {timeout: 0, whole: true},
		"timeouts: {request: 0s, backendRequest: 2s}": {timeout: 2 * time.Second, whole: true},
		"timeouts: {request: 2s, backendRequest: 0s}": {timeout: 2 * time.Second, whole: true},
	} {
		table := Compile(gatewayWorld(t, nil, gatewayOf("gw", httpListener), routeOf("r", "", "{backendRefs: [{name: web, port: 80}], "+text+"}")))
		if got := *table.routes[0].options; got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}

// TestFeatures: what the class says that it can do has the names of the Gateway API.
func TestFeatures(t *testing.T) {
	known := map[gatewayv1.FeatureName]bool{}
	for f := range gatewayfeatures.AllFeatures {
		known[gatewayv1.FeatureName(f.Name)] = true
	}
	for _, name := range features {
		if !known[name] {
			t.Error(name)
		}
	}
	if !slices.IsSorted(features) {
		t.Error("they are not in their order")
	}
}
