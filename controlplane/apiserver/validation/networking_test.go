package validation

import (
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

// faults parses a manifest and checks that its first fault is the one wanted, which
// ends in … where the message goes on.
func faults[T any](t *testing.T, cases map[string]string, check func(*T) field.ErrorList) {
	t.Helper()
	for manifest, want := range cases {
		obj := new(T)
		if err := yaml.UnmarshalStrict([]byte(manifest), obj); err != nil {
			t.Fatal(manifest, err)
		}
		got := ""
		if errs := check(obj); len(errs) > 0 {
			got = errs[0].Error()
		}
		start, more := strings.CutSuffix(want, "…")
		if got != want && !(more && strings.HasPrefix(got, start)) {
			t.Errorf("%s\n got %s\nwant %s", manifest, got, want)
		}
	}
}

func TestIngress(t *testing.T) {
	faults(t, map[string]string{
		`spec: {}`: "spec: Invalid value: null: either `defaultBackend` or `rules` must be specified",
		`spec: {defaultBackend: {service: {name: web, port: {number: 80}}}}`:             "",
		`spec: {defaultBackend: {}}`:                                                     "spec.defaultBackend: Required value: service or resource backend is required",
		`spec: {defaultBackend: {service: {name: web}}}`:                                 "spec.defaultBackend: Required value: port name or number is required",
		`spec: {defaultBackend: {service: {name: web, port: {number: 80, name: http}}}}`: `spec.defaultBackend: Invalid value: "": cannot set both port name & port number`,
		`spec: {rules: [{host: 10.0.0.1}]}`:                                              `spec.rules[0].host: Invalid value: "10.0.0.1": must be a DNS name, not an IP address`,
		`spec: {rules: [{host: "*.example.com", http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}]}}]}`: "",
		`spec: {rules: [{host: "a.*.com"}]}`:   `spec.rules[0].host: Invalid value: "a.*.com": a wildcard DNS-1123 subdomain must start…`,
		`spec: {rules: [{http: {paths: []}}]}`: "spec.rules[0].http.paths: Required value",
		`spec: {rules: [{http: {paths: [{path: /, backend: {service: {name: web, port: {number: 80}}}}]}}]}`:                                            "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified",
		`spec: {rules: [{http: {paths: [{path: a, pathType: Exact, backend: {service: {name: web, port: {number: 80}}}}]}}]}`:                           `spec.rules[0].http.paths[0].path: Invalid value: "a": must be an absolute path`,
		`spec: {rules: [{http: {paths: [{path: /a//b, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}`:                      `spec.rules[0].http.paths[0].path: Invalid value: "/a//b": must not contain '//'`,
		`spec: {rules: [{http: {paths: [{path: /a/.., pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}`:                      `spec.rules[0].http.paths[0].path: Invalid value: "/a/..": cannot end with '/..'`,
		`spec: {rules: [{http: {paths: [{path: "", pathType: ImplementationSpecific, backend: {service: {name: web, port: {number: 80}}}}]}}]}`:         "",
		`spec: {rules: [{http: {paths: [{path: /, pathType: Regex, backend: {service: {name: web, port: {number: 80}}}}]}}]}`:                           `spec.rules[0].http.paths[0].pathType: Unsupported value: "Regex": supported values: "Exact", "ImplementationSpecific", "Prefix"`,
		`spec: {rules: [{http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80000}}}}]}}]}`:                       "spec.rules[0].http.paths[0].backend.service.port.number: Invalid value: 80000: must be between 1 and 65535, inclusive",
		`{metadata: {annotations: {kubernetes.io/ingress.class: a}}, spec: {ingressClassName: b, defaultBackend: {resource: {kind: Bucket, name: b}}}}`: "annotations.kubernetes.io/ingress.class: Invalid value: \"a\": must match `ingressClassName` when both are specified",
		`spec: {tls: [{hosts: ["*"]}], defaultBackend: {resource: {kind: Bucket, name: b}}}`:                                                            `spec.tls[0].hosts[0]: Invalid value: "*": a wildcard DNS-1123 subdomain must start…`,
	}, func(i *networkingv1.Ingress) field.ErrorList { return Ingress(i, nil) })
}

func TestIngressClass(t *testing.T) {
	faults(t, map[string]string{
		`spec: {controller: gitk8s.dev/ingress}`: "",
		`spec: {}`:                               "spec.controller: Required value",
		`spec: {controller: nginx}`:              `spec.controller: Invalid value: "nginx": must be a domain-prefixed path (such as "acme.io/foo")`,
		`spec: {controller: a.b/c, parameters: {kind: K, name: n, scope: Namespace}}`:             "spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'",
		`spec: {controller: a.b/c, parameters: {kind: K, name: n, scope: Cluster, namespace: x}}`: "spec.parameters.namespace: Forbidden: `parameters.scope` is set to 'Cluster'",
	}, func(c *networkingv1.IngressClass) field.ErrorList { return IngressClass(c, nil) })
	is := func(name string) *networkingv1.IngressClass {
		return &networkingv1.IngressClass{Spec: networkingv1.IngressClassSpec{Controller: name}}
	}
	if got := IngressClass(is("a.b/d"), is("a.b/c")).ToAggregate(); got == nil || got.Error() != `spec.controller: Invalid value: "a.b/d": field is immutable` {
		t.Error(got)
	}
}

func TestNetworkPolicy(t *testing.T) {
	faults(t, map[string]string{
		`spec: {podSelector: {}}`: "",
		`spec: {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {}, namespaceSelector: {}}], ports: [{port: http}, {port: 1, endPort: 9}]}]}`: "",
		`spec: {podSelector: {}, policyTypes: [Both]}`:                                                          `spec.policyTypes[0]: Unsupported value: "Both": supported values: "Egress", "Ingress"`,
		`spec: {podSelector: {}, ingress: [{from: [{}]}]}`:                                                      "spec.ingress[0].from[0]: Required value: must specify a peer",
		`spec: {podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}`:             "spec.egress[0].to[0]: Forbidden: may not specify both ipBlock and another peer",
		`spec: {podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]}`:       "",
		`spec: {podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}`:       "spec.egress[0].to[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
		`spec: {podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}`:        "spec.egress[0].to[0].ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`",
		`spec: {podSelector: {}, egress: [{to: [{ipBlock: {cidr: all}}]}]}`:                                     `spec.egress[0].to[0].ipBlock.cidr: Invalid value: "all": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)`,
		`spec: {podSelector: {}, ingress: [{ports: [{port: 90, endPort: 80}]}]}`:                                "spec.ingress[0].ports[0].endPort: Invalid value: 80: must be greater than or equal to `port`",
		`spec: {podSelector: {}, ingress: [{ports: [{port: http, endPort: 80}]}]}`:                              "spec.ingress[0].ports[0].endPort: Invalid value: 80: must not be specified when `port` is non-numeric",
		`spec: {podSelector: {matchLabels: {"a b": c}}, ingress: [{ports: [{protocol: ICMP, port: "a-b-c"}]}]}`: "spec.podSelector.matchLabels: Invalid value: \"a b\"…",
	}, func(p *networkingv1.NetworkPolicy) field.ErrorList { return NetworkPolicy(p, nil) })
}
