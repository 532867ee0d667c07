package ingress

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"
)

// ingresses parses manifests; each is a second younger than the one before.
func ingresses(t testing.TB, manifests ...string) []*networkingv1.Ingress {
	t.Helper()
	var out []*networkingv1.Ingress
	for i, m := range manifests {
		ing := &networkingv1.Ingress{}
		if err := yaml.UnmarshalStrict([]byte(m), ing); err != nil {
			t.Fatal(m, err)
		}
		if ing.Namespace == "" {
			ing.Namespace = "shop"
		}
		ing.CreationTimestamp.Time = time.Unix(int64(1000+i), 0)
		if ing.Spec.IngressClassName == nil && ing.Annotations[classAnnotation] == "" {
			ing.Spec.IngressClassName = &ourClass.Name
		}
		out = append(out, ing)
	}
	return out
}

func class(name, controller string) *networkingv1.IngressClass {
	c := &networkingv1.IngressClass{}
	c.Name, c.Spec.Controller = name, controller
	return c
}

var (
	ourClass = class("gitk8s", Controller)
	classes  = []*networkingv1.IngressClass{ourClass, class("nginx", "k8s.io/ingress-nginx")}
)

func compile(t testing.TB, certs map[string]*tls.Certificate, manifests ...string) *Table {
	t.Helper()
	return Compile(Snapshot{Classes: classes, Ingresses: ingresses(t, manifests...), Certificate: func(ns, name string) (*tls.Certificate, error) {
		if c := certs[ns+"/"+name]; c != nil {
			return c, nil
		}
		return nil, errors.New("it does not exist")
	}})
}

// rule is a manifest with one rule of one path.
func rule(name, host, kind, path string) string {
	return fmt.Sprintf(`{metadata: {name: %s}, spec: {rules: [{host: %q, http: {paths: [{path: %q, pathType: %s, backend: {service: {name: %s, port: {number: 80}}}}]}}]}}`,
		name, host, path, kind, name)
}

// TestPathTypes has the examples of the page "Ingress", "Examples" below "Path types".
func TestPathTypes(t *testing.T) {
	for _, tt := range []struct {
		kind, path, request string
		want                bool
	}{
		{"Prefix", "/", "/anything", true},
		{"Exact", "/foo", "/foo", true},
		{"Exact", "/foo", "/bar", false},
		{"Exact", "/foo", "/foo/", false},
		{"Exact", "/foo/", "/foo", false},
		{"Prefix", "/foo", "/foo", true},
		{"Prefix", "/foo", "/foo/", true},
		{"Prefix", "/foo/", "/foo", true},
		{"Prefix", "/foo/", "/foo/", true},
		{"Prefix", "/aaa/bb", "/aaa/bbb", false},
		{"Prefix", "/aaa/bbb", "/aaa/bbb", true},
		{"Prefix", "/aaa/bbb/", "/aaa/bbb", true},
		{"Prefix", "/aaa/bbb", "/aaa/bbb/", true},
		{"Prefix", "/aaa/bbb", "/aaa/bbb/ccc", true},
		{"Prefix", "/aaa/bbb", "/aaa/bbbxyz", false},
		{"Prefix", "/public", "/public/../admin", false},
		{"Prefix", "/public", "/public/./x", true},
		{"ImplementationSpecific", "", "/x", true},
		{"ImplementationSpecific", "/a", "/a/b", true},
	} {
		r := compile(t, nil, rule("web", "", tt.kind, tt.path)).find("any.example.com", cleanPath(tt.request))
		if (r != nil) != tt.want {
			t.Errorf("%s %q, request %q: %v, want %v", tt.kind, tt.path, tt.request, r != nil, tt.want)
		}
	}
}

func TestFind(t *testing.T) {
	table := compile(t, nil,
		rule("root", "shop.example.com", "Prefix", "/"),
		rule("exact", "shop.example.com", "Exact", "/cart"),
		rule("cart", "shop.example.com", "Prefix", "/cart"),
		rule("deep", "shop.example.com", "Prefix", "/cart/items"),
		rule("wild", "*.example.com", "Prefix", "/"),
		rule("any", "", "Prefix", "/health"),
		`{metadata: {name: fallback}, spec: {defaultBackend: {service: {name: fallback, port: {number: 80}}}}}`,
		`{metadata: {name: own}, spec: {defaultBackend: {service: {name: own, port: {number: 80}}}, rules: [{host: own.example.org}]}}`,
		`{metadata: {name: foreign}, spec: {ingressClassName: nginx, rules: [{host: foreign.example.com}], defaultBackend: {service: {name: foreign, port: {number: 80}}}}}`,
		`{metadata: {name: old, annotations: {kubernetes.io/ingress.class: gitk8s}}, spec: {rules: [{host: old.example.org, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: old, port: {number: 80}}}}]}}]}}`,
	)
	for request, want := range map[string]string{
		"shop.example.com/":              "root",
		"shop.example.com/cartoon":       "root",
		"shop.example.com/cart":          "exact",
		"shop.example.com/cart/":         "cart",
		"shop.example.com/cart/items/1":  "deep",
		"other.example.com/health":       "wild",
		"a.b.example.com/":               "fallback", // a wildcard is one label
		"a.b.example.com/health/x":       "any",
		"example.com/":                   "fallback",
		"own.example.org/x":              "own",
		"old.example.org/":               "old",
		"foreign.example.com/":           "wild",
		strings.Repeat("x", 300) + ".a/": "fallback",
	} {
		host, path, _ := strings.Cut(request, "/")
		got := ""
		if r := table.find(hostOf(host), "/"+path); r != nil {
			got = r.backend.service.Name
		}
		if got != want {
			t.Errorf("%s is for %q, want %q", request, got, want)
		}
	}
	if len(table.Problems) > 0 {
		t.Error(table.Problems)
	}
	if r := compile(t, nil).find("a", "/"); r != nil {
		t.Error("an empty table has a route")
	}
}

// certificate is one for names.
func certificate(t testing.TB, names ...string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return certificateOf(t, key, names...)
}

func certificateOf(t testing.TB, key crypto.Signer, names ...string) *tls.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: names, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func withTLS(manifest, entries string) string {
	return strings.Replace(manifest, "spec: {", "spec: {tls: ["+entries+"], ", 1)
}

func TestProblems(t *testing.T) {
	certs := map[string]*tls.Certificate{"shop/good": certificate(t, "a.example.com"), "shop/wild": certificate(t, "*.example.com")}
	web := func(name string) types.NamespacedName { return types.NamespacedName{Namespace: "shop", Name: name} }
	table := compile(t, certs,
		withTLS(rule("first", "a.example.com", "Prefix", "/"), `{hosts: [a.example.com], secretName: good}`),
		rule("second", "a.example.com", "Prefix", "/"),
		rule("third", "a.example.com", "Exact", "/"),
		withTLS(rule("missing", "b.example.com", "Prefix", "/"), `{hosts: [b.example.com], secretName: none}`),
		withTLS(rule("wrong", "c.example.com", "Prefix", "/"), `{hosts: [c.example.com], secretName: good}`),
		withTLS(rule("wild", "*.example.com", "Prefix", "/"), `{hosts: ["*.example.com"], secretName: wild}`),
		withTLS(rule("own", "d.example.com", "Prefix", "/"), `{hosts: [d.example.com]}`),
		strings.Replace(rule("noted", "e.example.com", "Prefix", "/"), "name: noted}", `name: noted, annotations: {ingress.gitk8s.dev/timeout: soon, ingress.gitk8s.dev/colour: red, other/timeout: x}}`, 1),
	)
	want := []Problem{
		{web("missing"), InvalidCertificate, `Secret "none": it does not exist`},
		{web("wrong"), InvalidCertificate, `Secret "good" is not for host "c.example.com": x509: certificate is valid for a.example.com, not c.example.com`},
		{web("second"), PathConflict, `host "a.example.com", path "/" is already served for Ingress shop/first`},
		{web("noted"), InvalidAnnotation, "annotation ingress.gitk8s.dev/colour is not known"},
		{web("noted"), InvalidAnnotation, `annotation ingress.gitk8s.dev/timeout: "soon": time: invalid duration "soon"`},
	}
	if !slices.Equal(table.Problems, want) {
		t.Errorf("got %v\nwant %v", table.Problems, want)
	}
	for name, cert := range map[string]string{"a.example.com": "good", "A.example.com.": "good", "x.example.com": "wild", "b.example.com": "wild", "x.y.example.com": "", "": ""} {
		if got := table.certificate(443, &tls.ClientHelloInfo{ServerName: name}); got != certs["shop/"+cert] {
			t.Errorf("the certificate of %q is not %q", name, cert)
		}
	}
	second := table.ingresses[1]
	st := statusOf(second, []string{"10.0.0.1", "10.0.0.2"}, table.Problems)
	if len(st.LoadBalancer.Ingress) != 2 || *st.LoadBalancer.Ingress[1].Ports[0].Error != "gitk8s.dev/PathConflict" {
		t.Errorf("%+v", st)
	}
}

// TestOldestWins: whatever the Ingresses and however they are listed, each host and
// path belongs to the oldest that asks for it, and each of the others is told.
func TestOldestWins(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []*networkingv1.Ingress
		n := rapid.IntRange(1, 8).Draw(t, "ingresses")
		for i := range n {
			ing := &networkingv1.Ingress{}
			ing.Namespace, ing.Name = "ns", fmt.Sprint("i", i)
			ing.CreationTimestamp.Time = time.Unix(rapid.Int64Range(1, 3).Draw(t, "created"), 0)
			ing.Spec.IngressClassName = &ourClass.Name
			for range rapid.IntRange(1, 3).Draw(t, "rules") {
				kind := rapid.SampledFrom([]networkingv1.PathType{networkingv1.PathTypeExact, networkingv1.PathTypePrefix}).Draw(t, "kind")
				ing.Spec.Rules = append(ing.Spec.Rules, networkingv1.IngressRule{
					Host: rapid.SampledFrom([]string{"", "a.b", "*.b"}).Draw(t, "host"),
					IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{Paths: []networkingv1.HTTPIngressPath{{
						Path: rapid.SampledFrom([]string{"/", "/a", "/a/b"}).Draw(t, "path"), PathType: &kind,
						Backend: networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: ing.Name, Port: networkingv1.ServiceBackendPort{Number: 80}}},
					}}}},
				})
			}
			all = append(all, ing)
		}
		table := Compile(Snapshot{Classes: classes, Ingresses: rapid.Permutation(all).Draw(t, "listed")})
		owner, claims := map[string]string{}, 0
		for _, ing := range Ours(classes, all) {
			for _, r := range ing.Spec.Rules {
				p := r.HTTP.Paths[0]
				key := r.Host + " " + string(*p.PathType) + " " + p.Path
				if owner[key] == "" {
					owner[key] = ing.Name
				}
				claims++
			}
		}
		for key, name := range owner {
			f := strings.SplitN(key, " ", 3)
			p := table.hosts[f[0]]
			r := p.exact[f[2]]
			if f[1] == "Prefix" {
				r = p.prefixes[slices.IndexFunc(p.prefixes, func(r *route) bool { return r.path == strings.TrimRight(f[2], "/") })]
			}
			if r == nil || r.ingress.Name != name {
				t.Errorf("%s belongs to %v, want %s", key, r, name)
			}
		}
		if len(table.Problems) != claims-len(owner) {
			t.Errorf("%d problems of %d claims to %d paths", len(table.Problems), claims, len(owner))
		}
	})
}
