package ingress

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/utils/ptr"
	"pgregory.net/rapid"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// claim is one match of one route at one listener, as the oracle looks at it.
type claim struct {
	route    *gatewayv1.HTTPRoute
	listener string // its hostname
	hostname string
	match    gatewayv1.HTTPRouteMatch
	order    int
}

// spans is what the Gateway API says of hostnames, label by label.
func spans(pattern, host string) bool {
	if pattern == "" {
		return true
	}
	p, h := strings.Split(pattern, "."), strings.Split(host, ".")
	if p[0] != "*" {
		return pattern == host
	}
	return len(h) >= len(p) && slices.Equal(p[1:], h[len(h)-len(p)+1:])
}

// weightOf is how specific a hostname is: exact ones first, then the longer ones.
func weightOf(hostname string) int {
	if hostname != "" && !strings.HasPrefix(hostname, "*") {
		return 1000 + len(hostname)
	}
	return len(hostname)
}

// key is what the precedence of a claim is compared by; the larger one wins.
func (c *claim) key() []int {
	p := c.match.Path
	kind := map[gatewayv1.PathMatchType]int{gatewayv1.PathMatchPathPrefix: 0, gatewayv1.PathMatchRegularExpression: 1, gatewayv1.PathMatchExact: 2}[*p.Type]
	length := len(*p.Value)
	if kind == 0 {
		length = len(strings.TrimRight(*p.Value, "/"))
	}
	method := 0
	if c.match.Method != nil {
		method = 1
	}
	return []int{weightOf(c.hostname), kind, length, method, len(c.match.Headers), len(c.match.QueryParams), -int(c.route.CreationTimestamp.Unix())}
}

func (c *claim) fits(host, path string, r *http.Request) bool {
	value := *c.match.Path.Value
	switch *c.match.Path.Type {
	case gatewayv1.PathMatchExact:
		if path != value {
			return false
		}
	case gatewayv1.PathMatchRegularExpression:
		if m := regexp.MustCompile(value).FindString(path); m != path { // no alternatives are drawn
			return false
		}
	default:
		elements := func(s string) []string {
			return slices.DeleteFunc(strings.Split(s, "/"), func(e string) bool { return e == "" })
		}
		p, q := elements(value), elements(path)
		if len(q) < len(p) || !slices.Equal(p, q[:len(p)]) {
			return false
		}
	}
	if c.match.Method != nil && string(*c.match.Method) != r.Method {
		return false
	}
	for _, h := range c.match.Headers {
		if r.Header.Get(string(h.Name)) != h.Value {
			return false
		}
	}
	for _, q := range c.match.QueryParams {
		if r.URL.Query().Get(string(q.Name)) != q.Value {
			return false
		}
	}
	return spans(c.hostname, host)
}

// TestRoutePrecedence compares the table with a naive reading of the specification:
// of all claims that fit, the one that comes first.
func TestRoutePrecedence(t *testing.T) {
	hosts := []string{"", "a.b", "*.b", "x.a.b", "*.a.b", "c"}
	rapid.Check(t, func(t *rapid.T) {
		s := Snapshot{Gateways: gatewayWorld(&testing.T{}, nil).Gateways}
		gw := &gatewayv1.Gateway{Spec: gatewayv1.GatewaySpec{GatewayClassName: "gitk8s"}}
		gw.Namespace, gw.Name = "shop", "gw"
		listeners := rapid.SliceOfNDistinct(rapid.SampledFrom(hosts), 1, 4, rapid.ID).Draw(t, "listeners")
		for i, h := range listeners {
			l := gatewayv1.Listener{Name: gatewayv1.SectionName(fmt.Sprint("l", i)), Port: 80, Protocol: gatewayv1.HTTPProtocolType}
			if h != "" {
				l.Hostname = ptr.To(gatewayv1.Hostname(h))
			}
			gw.Spec.Listeners = append(gw.Spec.Listeners, l)
		}
		s.Gateways.Gateways = []*gatewayv1.Gateway{gw}
		var claims []*claim
		for i := range rapid.IntRange(1, 6).Draw(t, "routes") {
			r := &gatewayv1.HTTPRoute{}
			r.Namespace, r.Name = "shop", fmt.Sprint("r", i)
			r.CreationTimestamp.Time = time.Unix(rapid.Int64Range(1, 2).Draw(t, "created"), 0)
			ref := gatewayv1.ParentReference{Name: "gw"}
			if n := rapid.IntRange(0, len(listeners)).Draw(t, "section"); n < len(listeners) {
				ref.SectionName = &gw.Spec.Listeners[n].Name
			}
			r.Spec.ParentRefs = []gatewayv1.ParentReference{ref}
			hostnames := rapid.SliceOfNDistinct(rapid.SampledFrom(hosts[1:]), 0, 2, rapid.ID).Draw(t, "hostnames")
			for _, h := range hostnames {
				r.Spec.Hostnames = append(r.Spec.Hostnames, gatewayv1.Hostname(h))
			}
			if len(hostnames) == 0 {
				hostnames = []string{""}
			}
			for range rapid.IntRange(1, 2).Draw(t, "rules") {
				r.Spec.Rules = append(r.Spec.Rules, gatewayv1.HTTPRouteRule{Matches: rapid.SliceOfN(rapid.Custom(drawMatch), 1, 2).Draw(t, "matches")})
			}
			s.Gateways.HTTPRoutes = append(s.Gateways.HTTPRoutes, r)
			order := 0
			for _, rule := range r.Spec.Rules {
				for _, m := range rule.Matches {
					order++
					for j, l := range listeners {
						if ref.SectionName != nil && *ref.SectionName != gw.Spec.Listeners[j].Name {
							continue
						}
						for _, h := range hostnames {
							switch {
							case spans(l, h) && h != "" || l == h:
								claims = append(claims, &claim{r, l, h, m, order})
							case spans(h, l):
								claims = append(claims, &claim{r, l, l, m, order})
							}
						}
					}
				}
			}
		}
		s.Gateways.HTTPRoutes = rapid.Permutation(s.Gateways.HTTPRoutes).Draw(t, "listed")
		table := Compile(s)
		for range 20 {
			host := rapid.SampledFrom([]string{"a.b", "x.a.b", "y.a.b", "z.b", "b", "c", "q.c"}).Draw(t, "host")
			path := rapid.SampledFrom([]string{"/", "/a", "/a/", "/a/b", "/ab", "/a/b/c"}).Draw(t, "path")
			r := httptest.NewRequest(rapid.SampledFrom([]string{"GET", "POST"}).Draw(t, "method"), "http://"+host+path+rapid.SampledFrom([]string{"", "?p=1", "?p=2"}).Draw(t, "query"), nil)
			if rapid.Bool().Draw(t, "header") {
				r.Header.Set("X-A", "1")
			}
			// The listener that the request is for.
			at, found := "", false
			for _, l := range listeners {
				if spans(l, host) && (!found || weightOf(l) > weightOf(at)) {
					at, found = l, true
				}
			}
			var best *claim
			for _, c := range claims {
				if c.listener != at || !found || !c.fits(host, path, r) {
					continue
				}
				if best == nil {
					best = c
					continue
				}
				switch n := slices.Compare(c.key(), best.key()); {
				case n > 0, n == 0 && (c.route.Name < best.route.Name || c.route == best.route && c.order < best.order):
					best = c
				}
			}
			got, m := table.route(80, r, r.Header, host, cleanPath(path))
			if best == nil {
				if got != nil {
					t.Fatalf("%s %s is for %s, want nothing", r.Method, r.URL, got.ingress.Name)
				}
				continue
			}
			if got == nil || got.ingress.Name != best.route.Name || m.position != best.order-1 {
				t.Fatalf("%s %s is for %+v, want %s, match %d", r.Method, r.URL, m, best.route.Name, best.order-1)
			}
		}
	})
}

func drawMatch(t *rapid.T) gatewayv1.HTTPRouteMatch {
	kind := rapid.SampledFrom([]gatewayv1.PathMatchType{gatewayv1.PathMatchExact, gatewayv1.PathMatchPathPrefix, gatewayv1.PathMatchRegularExpression}).Draw(t, "kind")
	paths := []string{"/", "/a", "/a/", "/a/b"}
	if kind == gatewayv1.PathMatchRegularExpression {
		paths = []string{"/a.*", "/[ab]", ".*"}
	}
	m := gatewayv1.HTTPRouteMatch{Path: &gatewayv1.HTTPPathMatch{Type: &kind, Value: ptr.To(rapid.SampledFrom(paths).Draw(t, "path"))}}
	if rapid.Bool().Draw(t, "with method") {
		m.Method = ptr.To(rapid.SampledFrom([]gatewayv1.HTTPMethod{"GET", "POST"}).Draw(t, "method"))
	}
	if rapid.Bool().Draw(t, "with header") {
		m.Headers = []gatewayv1.HTTPHeaderMatch{{Name: "x-a", Value: "1"}}
	}
	if rapid.Bool().Draw(t, "with parameter") {
		m.QueryParams = []gatewayv1.HTTPQueryParamMatch{{Name: "p", Value: "1"}}
	}
	return m
}
