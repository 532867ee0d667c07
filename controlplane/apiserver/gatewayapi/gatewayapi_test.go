package gatewayapi

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"
)

var newObject = map[Kind]func() runtime.Object{
	"GatewayClass":   func() runtime.Object { return &gatewayv1.GatewayClass{} },
	"Gateway":        func() runtime.Object { return &gatewayv1.Gateway{} },
	"HTTPRoute":      func() runtime.Object { return &gatewayv1.HTTPRoute{} },
	"GRPCRoute":      func() runtime.Object { return &gatewayv1.GRPCRoute{} },
	"ReferenceGrant": func() runtime.Object { return &gatewayv1.ReferenceGrant{} },
}

func parse(t *testing.T, kind Kind, text string) runtime.Object {
	t.Helper()
	obj := newObject[kind]()
	if err := yaml.UnmarshalStrict([]byte(text), obj); err != nil {
		t.Fatal(err)
	}
	kind.Default(obj)
	return obj
}

func TestDefault(t *testing.T) {
	r := parse(t, "HTTPRoute", `{metadata: {name: x}, spec: {parentRefs: [{name: g}], rules: [{backendRefs: [{name: a, port: 80}], filters: [{type: RequestRedirect, requestRedirect: {}}]}]}}`).(*gatewayv1.HTTPRoute)
	rule := r.Spec.Rules[0]
	if len(rule.Matches) != 1 || *rule.Matches[0].Path.Type != gatewayv1.PathMatchPathPrefix || *rule.Matches[0].Path.Value != "/" ||
		*rule.BackendRefs[0].Weight != 1 || *rule.BackendRefs[0].Kind != "Service" || *rule.Filters[0].RequestRedirect.StatusCode != 302 || *r.Spec.ParentRefs[0].Kind != "Gateway" {
		t.Errorf("defaults are missing: %+v", r.Spec)
	}
	again := r.DeepCopy()
	Kind("HTTPRoute").Default(again)
	if !equality.Semantic.DeepEqual(r, again) {
		t.Errorf("a second time makes another object: %+v", again)
	}
	g := parse(t, "Gateway", `{metadata: {name: x}, spec: {gatewayClassName: c, listeners: [{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c}]}}]}}`).(*gatewayv1.Gateway)
	if l := g.Spec.Listeners[0]; *l.TLS.Mode != gatewayv1.TLSModeTerminate || *l.AllowedRoutes.Namespaces.From != gatewayv1.NamespacesFromSame || *l.TLS.CertificateRefs[0].Kind != "Secret" {
		t.Errorf("defaults are missing: %+v", l)
	}
}

func TestValidate(t *testing.T) {
	tests := []struct {
		name      string
		kind      Kind
		obj, old  string
		path      string
		errorType field.ErrorType
		text      string
	}{
		{"class", "GatewayClass", `{metadata: {name: x}, spec: {controllerName: a.example/b}}`, "", "", "", ""},
		{"class without a domain", "GatewayClass", `{metadata: {name: x}, spec: {controllerName: b}}`, "", "spec.controllerName", field.ErrorTypeInvalid, "should match"},
		{
			"class given to another", "GatewayClass", `{metadata: {name: x}, spec: {controllerName: a.example/b}}`, `{metadata: {name: x}, spec: {controllerName: a.example/c}}`,
			"spec.controllerName", field.ErrorTypeInvalid, "Value is immutable",
		},
		{"gateway", "Gateway", `{spec: {gatewayClassName: c, listeners: [{name: a, port: 80, protocol: HTTP}]}}`, "", "", "", ""},
		{"gateway without listeners", "Gateway", `{spec: {gatewayClassName: c}}`, "", "spec.listeners", field.ErrorTypeRequired, ""},
		{"gateway's port", "Gateway", `{spec: {gatewayClassName: c, listeners: [{name: a, port: 70000, protocol: HTTP}]}}`, "", "spec.listeners[0].port", field.ErrorTypeInvalid, "less than or equal to 65535"},
		{
			"two listeners of a name", "Gateway", `{spec: {gatewayClassName: c, listeners: [{name: a, port: 80, protocol: HTTP}, {name: a, port: 81, protocol: HTTP}]}}`, "",
			"spec.listeners[1]", field.ErrorTypeDuplicate, "",
		},
		{
			"two listeners of a host", "Gateway", `{spec: {gatewayClassName: c, listeners: [{name: a, port: 80, protocol: HTTP}, {name: b, port: 80, protocol: HTTP}]}}`, "",
			"spec.listeners", field.ErrorTypeInvalid, "Combination of port, protocol and hostname must be unique for each listener",
		},
		{
			"TLS for HTTP", "Gateway", `{spec: {gatewayClassName: c, listeners: [{name: a, port: 80, protocol: HTTP, tls: {certificateRefs: [{name: c}]}}]}}`, "",
			"spec.listeners", field.ErrorTypeInvalid, "tls must not be specified for protocols ['HTTP', 'TCP', 'UDP']",
		},
		{"route", "HTTPRoute", `{spec: {parentRefs: [{name: g}], rules: [{matches: [{path: {value: /a}}], backendRefs: [{name: a, port: 80}]}]}}`, "", "", "", ""},
		{
			"route's path", "HTTPRoute", `{spec: {rules: [{matches: [{path: {value: a}}]}]}}`, "",
			"spec.rules[0].matches[0].path", field.ErrorTypeInvalid, "value must be an absolute path and start with '/'",
		},
		{
			"redirect with backends", "HTTPRoute", `{spec: {rules: [{filters: [{type: RequestRedirect, requestRedirect: {}}], backendRefs: [{name: a, port: 80}]}]}}`, "",
			"spec.rules[0]", field.ErrorTypeInvalid, "RequestRedirect filter must not be used together with backendRefs",
		},
		{
			"service without a port", "HTTPRoute", `{spec: {rules: [{backendRefs: [{name: a}]}]}}`, "",
			"spec.rules[0].backendRefs[0]", field.ErrorTypeInvalid, "Must have port for Service reference",
		},
		{
			"route's timeouts", "HTTPRoute", `{spec: {rules: [{timeouts: {request: 1s, backendRequest: 2s}}]}}`, "",
			"spec.rules[0].timeouts", field.ErrorTypeInvalid, "backendRequest timeout cannot be longer than request timeout",
		},
		{"hostname", "HTTPRoute", `{spec: {hostnames: [A_b]}}`, "", "spec.hostnames[0]", field.ErrorTypeInvalid, "should match"},
		{"gRPC method", "GRPCRoute", `{spec: {rules: [{matches: [{method: {type: Exact}}]}]}}`, "", "spec.rules[0].matches[0].method", field.ErrorTypeInvalid, "One or both of 'service' or 'method' must be specified"},
		{"grant", "ReferenceGrant", `{spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}], to: [{group: "", kind: Service}]}}`, "", "", "", ""},
		{"grant to nothing", "ReferenceGrant", `{spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}], to: []}}`, "", "spec.to", field.ErrorTypeInvalid, "at least 1 items"},
		{
			"what was wrong already", "HTTPRoute", `{metadata: {labels: {a: b}}, spec: {hostnames: [A_b]}}`, `{spec: {hostnames: [A_b]}}`,
			"", "", "",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var old runtime.Object
			if tt.old != "" {
				old = parse(t, tt.kind, tt.old)
			}
			errs := tt.kind.Validate(parse(t, tt.kind, tt.obj), old)
			if tt.path == "" {
				if len(errs) > 0 {
					t.Fatalf("refused: %v", errs)
				}
				return
			}
			if len(errs) == 0 || errs[0].Field != tt.path || errs[0].Type != tt.errorType || !strings.Contains(errs[0].Detail, tt.text) {
				t.Fatalf("got %v, want %s at %s: %s", errs, tt.errorType, tt.path, tt.text)
			}
		})
	}
}
