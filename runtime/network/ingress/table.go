package ingress

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Snapshot is what a Table is made of.
type Snapshot struct {
	Classes   []*networkingv1.IngressClass
	Ingresses []*networkingv1.Ingress
	Gateways  GatewaySnapshot
	// Certificate returns the certificate of a Secret, which must have a Leaf.
	Certificate func(namespace, name string) (*tls.Certificate, error)
}

// Reasons of problems; the condition of a status' port has them, and events.
const (
	// PathConflict: an older Ingress has the same host and path.
	PathConflict = "PathConflict"
	// InvalidCertificate: a Secret has none, or not for this host.
	InvalidCertificate = "InvalidCertificate"
	// InvalidAnnotation: one of ours has a value that it can't have.
	InvalidAnnotation = "InvalidAnnotation"
)

// Problem is something about an Ingress that is not served as it says.
type Problem struct {
	Ingress         types.NamespacedName
	Reason, Message string
}

// backend names the port of a service.
type backend struct {
	service types.NamespacedName
	port    networkingv1.ServiceBackendPort
}

// route is what becomes of a request.
type route struct {
	ingress types.NamespacedName
	path    string
	backend backend // none where action answers itself
	options *options
	// kind is of which the route is, if not of an Ingress, and action what it does.
	kind   string
	action *action
	// tls says that the host is served with a certificate of its own.
	tls bool
	// pool and counts are the proxy's, which puts them in before it serves the table.
	pool   *pool
	counts *counts
}

// paths are the routes of a host.
type paths struct {
	exact    map[string]*route
	prefixes []*route // the longest first
	other    *route   // the default backend of the host's Ingress
}

// Table says which service a request means. It is not changed once it is served.
type Table struct {
	hosts     map[string]*paths // by name, by "*.example.com", and "" for all names
	certs     map[string]*tls.Certificate
	other     *route
	routes    []*route
	ingresses []*networkingv1.Ingress
	// ports are those that listeners of Gateways have.
	ports  map[int32]*portTable
	status gatewayStatuses
	// Problems are in the order of the Ingresses, the oldest first.
	Problems []Problem
}

// Ours returns the Ingresses whose class is served here, the oldest first: of two
// that ask for the same, the older has it.
func Ours(classes []*networkingv1.IngressClass, all []*networkingv1.Ingress) []*networkingv1.Ingress {
	ours := map[string]bool{}
	for _, c := range classes {
		ours[c.Name] = c.Spec.Controller == Controller
	}
	var out []*networkingv1.Ingress
	for _, i := range all {
		class := i.Annotations[classAnnotation]
		if i.Spec.IngressClassName != nil {
			class = *i.Spec.IngressClassName
		}
		if ours[class] && i.DeletionTimestamp == nil {
			out = append(out, i)
		}
	}
	slices.SortFunc(out, func(a, b *networkingv1.Ingress) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// empty says that nothing is to be served at the ports that Ingresses have.
func (t *Table) empty() bool {
	return len(t.ingresses) == 0 && t.ports[portHTTP] == nil && t.ports[portHTTPS] == nil
}

// Compile makes the table of a snapshot ("Ingress": Ingress rules, path types and
// hostname wildcards).
func Compile(s Snapshot) *Table {
	t := &Table{hosts: map[string]*paths{}, certs: map[string]*tls.Certificate{}}
	t.ingresses = Ours(s.Classes, s.Ingresses)
	for _, ing := range t.ingresses {
		t.certificates(ing, s.Certificate)
	}
	for _, ing := range t.ingresses {
		t.add(ing)
	}
	for _, p := range t.hosts {
		slices.SortStableFunc(p.prefixes, func(a, b *route) int { return cmp.Compare(len(b.path), len(a.path)) })
	}
	t.gateways(&s.Gateways, s.Certificate)
	return t
}

func nameOf(ing *networkingv1.Ingress) types.NamespacedName {
	return types.NamespacedName{Namespace: ing.Namespace, Name: ing.Name}
}

func (t *Table) problem(ing *networkingv1.Ingress, reason, format string, args ...any) {
	t.Problems = append(t.Problems, Problem{nameOf(ing), reason, fmt.Sprintf(format, args...)})
}

// certificates takes those of an Ingress. A host of which no certificate is good is
// answered with the server's own, which nobody trusts.
func (t *Table) certificates(ing *networkingv1.Ingress, get func(namespace, name string) (*tls.Certificate, error)) {
	for i := range ing.Spec.TLS {
		entry := &ing.Spec.TLS[i]
		if entry.SecretName == "" {
			continue // TLS with the server's own certificate was asked for
		}
		cert, err := get(ing.Namespace, entry.SecretName)
		if err != nil {
			t.problem(ing, InvalidCertificate, "Secret %q: %v", entry.SecretName, err)
			continue
		}
		hosts := entry.Hosts
		if len(hosts) == 0 {
			for _, r := range ing.Spec.Rules {
				hosts = append(hosts, r.Host)
			}
		}
		for _, host := range hosts {
			if err := covers(cert, host); err != nil {
				t.problem(ing, InvalidCertificate, "Secret %q is not for host %q: %v", entry.SecretName, host, err)
				continue
			}
			if t.certs[host] == nil {
				t.certs[host] = cert
			}
		}
	}
}

// covers checks that a certificate is for a host; for a wildcard, for any name of it.
func covers(cert *tls.Certificate, host string) error {
	if host == "" {
		return nil // any name: there is nothing to compare with
	}
	if rest, ok := strings.CutPrefix(host, "*."); ok {
		host = "any." + rest
	}
	return cert.Leaf.VerifyHostname(host)
}

// add takes the rules of an Ingress.
func (t *Table) add(ing *networkingv1.Ingress) {
	opts, faults := parseOptions(ing.Annotations)
	for _, f := range faults {
		t.problem(ing, InvalidAnnotation, "%s", f)
	}
	secured := map[string]bool{}
	for i := range ing.Spec.TLS {
		for _, h := range ing.Spec.TLS[i].Hosts {
			secured[h] = true
		}
		if len(ing.Spec.TLS[i].Hosts) == 0 {
			for _, r := range ing.Spec.Rules {
				secured[r.Host] = true
			}
		}
	}
	newRoute := func(host, path string, b *networkingv1.IngressBackend) *route {
		r := &route{ingress: nameOf(ing), path: path, options: &opts, tls: secured[host]}
		r.backend = backend{types.NamespacedName{Namespace: ing.Namespace, Name: b.Service.Name}, b.Service.Port}
		t.routes = append(t.routes, r)
		return r
	}
	for _, rule := range ing.Spec.Rules {
		p := t.hosts[rule.Host]
		if p == nil {
			p = &paths{exact: map[string]*route{}}
			t.hosts[rule.Host] = p
		}
		if rule.HTTP != nil {
			for i := range rule.HTTP.Paths {
				if e := &rule.HTTP.Paths[i]; e.Backend.Service != nil {
					t.path(ing, rule.Host, p, newRoute(rule.Host, e.Path, &e.Backend), *e.PathType)
				}
			}
		}
		if b := ing.Spec.DefaultBackend; b != nil && b.Service != nil && p.other == nil {
			p.other = newRoute(rule.Host, "", b)
		}
	}
	if b := ing.Spec.DefaultBackend; b != nil && b.Service != nil {
		if t.other != nil && len(ing.Spec.Rules) == 0 {
			t.problem(ing, PathConflict, "the default backend of all hosts is already that of Ingress %s", t.other.ingress)
		}
		if t.other == nil {
			t.other = newRoute("", "", b)
		}
	}
}

// path adds one route to those of its host.
func (t *Table) path(ing *networkingv1.Ingress, host string, p *paths, r *route, kind networkingv1.PathType) {
	var taken *route
	if kind == networkingv1.PathTypeExact {
		if taken = p.exact[r.path]; taken == nil {
			p.exact[r.path] = r
		}
	} else {
		r.path = strings.TrimRight(r.path, "/") // a last slash says nothing
		if i := slices.IndexFunc(p.prefixes, func(o *route) bool { return o.path == r.path }); i >= 0 {
			taken = p.prefixes[i]
		} else {
			p.prefixes = append(p.prefixes, r)
		}
	}
	if taken != nil {
		t.problem(ing, PathConflict, "host %q, path %q is already served for Ingress %s", cmp.Or(host, "*"), cmp.Or(r.path, "/"), taken.ingress)
	}
}

// find returns the route of a request, nil if there is none. host is in lower case
// and has no port; path is absolute and clean.
func (t *Table) find(host, path string) *route {
	for _, name := range []string{host, wildcard(host), ""} {
		if r := t.hosts[name].find(path); r != nil {
			return r
		}
	}
	return t.other
}

// wildcard is the host with "*" for its first label.
func wildcard(host string) string {
	if _, rest, ok := strings.Cut(host, "."); ok {
		return "*." + rest
	}
	return "*."
}

func (p *paths) find(path string) *route {
	if p == nil {
		return nil
	}
	if r := p.exact[path]; r != nil {
		return r
	}
	for _, r := range p.prefixes {
		// Element by element: /foo is a prefix of /foo/bar and not of /foobar.
		if rest, ok := strings.CutPrefix(path, r.path); ok && (rest == "" || rest[0] == '/') {
			return r
		}
	}
	return p.other
}

// certificate returns that of the name that a client asks for at a port, nil if there
// is none: the more specific hostname has it, and of the same one a listener of a
// Gateway comes before an Ingress.
func (t *Table) certificate(port int32, hello *tls.ClientHelloInfo) *tls.Certificate {
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	var listeners byHost[[]*tls.Certificate]
	if p := t.ports[port]; p != nil {
		listeners = p.certs
	}
	var ingresses map[string]*tls.Certificate
	if port == portHTTPS {
		ingresses = t.certs
	}
	if c := cmp.Or(chosen(listeners.exact[name], hello), ingresses[name]); c != nil {
		return c
	}
	one := true
	for rest, ok := parent(name); ok; rest, ok = parent(rest) {
		c := chosen(listeners.below[rest], hello)
		if one {
			c = cmp.Or(c, ingresses[wildcard(name)])
			one = false
		}
		if c != nil {
			return c
		}
	}
	return cmp.Or(chosen(listeners.any, hello), ingresses[""])
}

// chosen returns the certificate that suits the client best: of several that do, or if
// none does, the first.
func chosen(all []*tls.Certificate, hello *tls.ClientHelloInfo) *tls.Certificate {
	if len(all) == 0 {
		return nil
	}
	for _, c := range all[:len(all)-1] {
		if hello.SupportsCertificate(c) == nil {
			return c
		}
	}
	if last := all[len(all)-1]; len(all) == 1 || hello.SupportsCertificate(last) == nil {
		return last
	}
	return all[0]
}
