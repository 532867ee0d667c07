package ingress

import (
	"cmp"
	"crypto/tls"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// pathKind is how a route's path is compared; of two that fit, the higher kind is
// taken.
type pathKind int

const (
	pathPrefix pathKind = iota // element by element
	pathRegexp                 // the whole path
	pathExact
)

// valueMatch compares one header or query parameter, by its whole value.
type valueMatch struct {
	name, value string
	re          *regexp.Regexp // instead of value
}

func (v *valueMatch) fits(have string) bool {
	if v.re != nil {
		return v.re.MatchString(have)
	}
	return v.value == have
}

// match is one match of a route's rule, for the hosts of one listener.
type match struct {
	kind    pathKind
	path    string // of a prefix, without a slash at its end
	re      *regexp.Regexp
	method  string
	headers []valueMatch
	params  []valueMatch
	grpc    bool // only gRPC is meant
	// except are the hosts that a more specific listener of the same Gateway has.
	except []string
	to     *split

	// Which of two that fit is taken, if what they look at does not say.
	created  time.Time
	name     string
	position int // of the match in its route
}

// before orders matches by the precedence of "HTTPRoute": what is looked at more
// closely comes first, then the older route. Where regular expressions come is not
// said there: here, between exact paths and prefixes.
func (m *match) before(o *match) int {
	set := func(s string) int { return min(len(s), 1) }
	return cmp.Or(
		cmp.Compare(o.kind, m.kind), cmp.Compare(len(o.path), len(m.path)), cmp.Compare(set(o.method), set(m.method)),
		cmp.Compare(len(o.headers), len(m.headers)), cmp.Compare(len(o.params), len(m.params)),
		m.created.Compare(o.created), cmp.Compare(m.name, o.name), cmp.Compare(m.position, o.position),
	)
}

// question is a request that a match is looked for.
type question struct {
	*http.Request // without its Header
	header
	host, path string
	query      url.Values // parsed when first asked for
}

func (m *match) fits(q *question) bool {
	switch m.kind {
	case pathExact:
		if q.path != m.path {
			return false
		}
	case pathPrefix:
		if rest, ok := strings.CutPrefix(q.path, m.path); !ok || rest != "" && rest[0] != '/' {
			return false
		}
	case pathRegexp:
		if !m.re.MatchString(q.path) {
			return false
		}
	}
	if m.method != "" && m.method != q.Method || m.grpc && !isGRPC(q.header) {
		return false
	}
	for i := range m.headers {
		h := &m.headers[i]
		values := q.header.Values(h.name)
		if len(values) == 0 || !h.fits(joined(values)) {
			return false
		}
	}
	if len(m.params) > 0 && q.query == nil {
		q.query = q.URL.Query()
	}
	for i := range m.params {
		values, ok := q.query[m.params[i].name]
		if !ok || !m.params[i].fits(values[0]) {
			return false
		}
	}
	return !slices.ContainsFunc(m.except, func(pattern string) bool { return includes(pattern, q.host) })
}

// joined is what several headers of a name mean (RFC 9110, 5.2).
func joined(values []string) string {
	if len(values) == 1 {
		return values[0]
	}
	return strings.Join(values, ", ")
}

// includes says whether a hostname, which may be a wildcard or empty, includes another:
// *.example.com includes a.example.com, a.b.example.com and *.a.example.com.
func includes(pattern, host string) bool {
	if pattern == "" || pattern == host {
		return true
	}
	suffix, wild := strings.CutPrefix(pattern, "*")
	return wild && strings.HasSuffix(host, suffix) && len(host) > len(suffix)
}

// intersection is the hosts that two hostnames have in common.
func intersection(a, b string) (string, bool) {
	switch {
	case includes(a, b):
		return b, true
	case includes(b, a):
		return a, true
	}
	return "", false
}

// byHost keeps something by hostname.
type byHost[T any] struct {
	exact map[string]T
	below map[string]T // by what follows "*."
	any   T
}

// change replaces what a hostname has.
func (b *byHost[T]) change(hostname string, f func(T) T) {
	if b.exact == nil {
		b.exact, b.below = map[string]T{}, map[string]T{}
	}
	switch rest, wild := strings.CutPrefix(hostname, "*."); {
	case hostname == "":
		b.any = f(b.any)
	case wild:
		b.below[rest] = f(b.below[rest])
	default:
		b.exact[hostname] = f(b.exact[hostname])
	}
}

// values calls f for each hostname's value.
func (b *byHost[T]) values(f func(T)) {
	for _, v := range b.exact {
		f(v)
	}
	for _, v := range b.below {
		f(v)
	}
	f(b.any)
}

// parent is a host without its first label.
func parent(host string) (string, bool) {
	_, rest, ok := strings.Cut(host, ".")
	return rest, ok
}

func first(all []*match, q *question) *match {
	for _, m := range all {
		if m.fits(q) {
			return m
		}
	}
	return nil
}

// portTable is what the listeners of Gateways at one port have.
type portTable struct {
	tls bool
	// hosts are the matches of the routes, in the order in which they are tried.
	hosts byHost[[]*match]
	certs byHost[[]*tls.Certificate]
}

// route returns what becomes of a request at a port, and for one of a HTTPRoute or GRPCRoute the
// match that it is for: the more specific hostname has it, and of the same one a route
// comes before an Ingress, which is for the ports 80 and 443 alone. host is in lower case and has no port; path is absolute and
// clean.
func (t *Table) route(port int32, r *http.Request, h header, host, path string) (*route, *match) {
	var ingresses map[string]*paths
	var other *route
	if port == portHTTP || port == portHTTPS {
		ingresses, other = t.hosts, t.other
	}
	p := t.ports[port]
	switch {
	case p == nil && ingresses == nil:
		return nil, nil
	case p == nil:
		return t.find(host, path), nil
	}
	v := &p.hosts
	q := question{Request: r, header: h, host: host, path: path}
	if m := first(v.exact[host], &q); m != nil {
		return m.to.pick(), m
	}
	if found := ingresses[host].find(path); found != nil {
		return found, nil
	}
	one := len(ingresses) > 0 // an Ingress' wildcard stands for one label, a route's for any number
	for rest, ok := parent(host); ok; rest, ok = parent(rest) {
		if m := first(v.below[rest], &q); m != nil {
			return m.to.pick(), m
		}
		if one {
			if found := ingresses[wildcard(host)].find(path); found != nil {
				return found, nil
			}
			one = false
		}
	}
	if m := first(v.any, &q); m != nil {
		return m.to.pick(), m
	}
	if found := ingresses[""].find(path); found != nil {
		return found, nil
	}
	return other, nil
}

// split is what becomes of the requests that match: they are shared out by weight.
type split struct {
	targets []target
	total   int64
}

type target struct {
	route *route
	upTo  int64 // the sum of the weights up to this one
}

func (r *split) add(to *route, weight int32) {
	if weight > 0 {
		r.total += int64(weight)
		r.targets = append(r.targets, target{to, r.total})
	}
}

func (r *split) pick() *route {
	if len(r.targets) == 1 {
		return r.targets[0].route
	}
	n := rand.Int64N(r.total)
	i, _ := slices.BinarySearchFunc(r.targets, n, func(t target, n int64) int {
		if t.upTo <= n {
			return -1
		}
		return 1
	})
	return r.targets[i].route
}
