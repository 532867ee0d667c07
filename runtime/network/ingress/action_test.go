package ingress

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// serveGateway takes Gateway gw, whose listener is for HTTP, and routes.
func (b *bed) serveGateway(routes ...string) {
	b.proxy.Update(Compile(gatewayWorld(b.t, b.certs, append([]string{gatewayOf("gw", httpListener, httpsListener)}, routes...)...)),
		func(string, string) *corev1.Service { return &b.service },
		func(string, string) []*discoveryv1.EndpointSlice { return []*discoveryv1.EndpointSlice{&b.slice} })
}

func TestGatewayForwards(t *testing.T) {
	b := newBed(t)
	b.pod(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "pod")
		w.Header().Set("X-Old", "1")
		fmt.Fprintf(w, "%s %s|%s|%s|%s", r.Host, r.RequestURI, strings.Join(r.Header["X-Set"], ","), strings.Join(r.Header["X-Add"], ","), strings.Join(r.Header["X-Gone"], ","))
	}))
	rewrite := func(kind, value string) string {
		return "{type: URLRewrite, urlRewrite: {path: {type: " + kind + ", " + strings.ToLower(kind[:1]) + kind[1:] + ": '" + value + "'}}}"
	}
	b.serveGateway(
		routeOf("headers", "", "{matches: [{path: {value: /h}}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: s}], add: [{name: x-add, value: a}], remove: [x-gone]}},"+
			"{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: server, value: gateway}], remove: [X-Old], add: [{name: X-New, value: new}]}}],"+
			"backendRefs: [{name: web, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: x-add, value: backend}]}}]}]}"),
		routeOf("prefix", "", "{matches: [{path: {value: /old/}}], filters: ["+rewrite("ReplacePrefixMatch", "/new")+"], backendRefs: [{name: web, port: 80}]}"),
		routeOf("root", "", "{matches: [{path: {value: /strip}}], filters: ["+rewrite("ReplacePrefixMatch", "")+"], backendRefs: [{name: web, port: 80}]}"),
		routeOf("full", "", "{matches: [{path: {value: /full}}], filters: [{type: URLRewrite, urlRewrite: {hostname: inside.test, path: {type: ReplaceFullPath, replaceFullPath: /one}}}], backendRefs: [{name: web, port: 80}]}"),
	)
	for path, want := range map[string]string{
		"/h":            "shop.example.com /h|s|mine,a,backend|",
		"/old":          "shop.example.com /new||mine|there",
		"/old/":         "shop.example.com /new/||mine|there",
		"/old/x%2Fy?q":  "shop.example.com /new/x%2Fy?q||mine|there",
		"/old/../old/x": "shop.example.com /new/x||mine|there",
		"/strip":        "shop.example.com /||mine|there",
		"/strip/a":      "shop.example.com /a||mine|there",
		"/full/x?y=1":   "inside.test /one?y=1||mine|there",
	} {
		resp, got := b.ask("GET", path, nil, func(r *http.Request) {
			r.Header.Set("X-Add", "mine")
			r.Header.Set("X-Gone", "there")
		})
		if got != want {
			t.Errorf("%s: the pod got %q, want %q", path, got, want)
		}
		if path == "/h" && (resp.Header.Get("Server") != "gateway" || resp.Header.Get("X-Old") != "" || resp.Header.Get("X-New") != "new") {
			t.Errorf("the answer has %v", resp.Header)
		}
	}
	var m strings.Builder
	if err := b.proxy.WriteMetrics(&m); err != nil || !strings.Contains(m.String(), `gitk8s_ingress_requests_total{namespace="shop",httproute="headers",code="2xx"} 1`) {
		t.Error(err, m.String())
	}
}

func TestGatewayRedirects(t *testing.T) {
	b := newBed(t)
	_, httpPort, _ := strings.Cut(b.http, ":")
	_, httpsPort, _ := strings.Cut(b.https, ":")
	b.certs["shop/cert"] = certificate(t, "shop.example.com")
	redirect := func(path, filter string) string {
		return "{matches: [{path: {value: " + path + "}}], filters: [{type: RequestRedirect, requestRedirect: " + filter + "}]}"
	}
	b.serveGateway(routeOf("r", "",
		redirect("/tls", "{scheme: https, statusCode: 301}"), redirect("/plain", "{scheme: http, statusCode: 302}"), redirect("/host", "{hostname: other.test, statusCode: 307}"),
		redirect("/port", "{port: 8443, statusCode: 302}"), redirect("/known", "{scheme: https, port: 443, statusCode: 302}"),
		redirect("/a/b", "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /c}, statusCode: 308}"), redirect("/full", "{path: {type: ReplaceFullPath, replaceFullPath: //evil.test}, statusCode: 302}")))
	for _, tt := range []struct {
		path, host string
		tls        bool
		code       int
		want       string
	}{
		{"/tls?x=1", "shop.example.com", false, 301, "https://shop.example.com:" + httpsPort + "/tls?x=1"},
		{"/tls", "shop.example.com:8443", true, 301, "https://shop.example.com:8443/tls"},
		{"/plain", "shop.example.com", true, 302, "http://shop.example.com:" + httpPort + "/plain"},
		{"/host/x", "shop.example.com", false, 307, "http://other.test/host/x"},
		{"/host", "shop.example.com:8080", false, 307, "http://other.test:8080/host"},
		{"/port", "shop.example.com", false, 302, "http://shop.example.com:8443/port"},
		{"/known", "shop.example.com:8080", false, 302, "https://shop.example.com/known"},
		{"/a/b/x%20y", "[::1]:80", false, 308, "http://[::1]/c/x%20y"},
		{"/a/b", "[::1]:81", false, 308, "http://[::1]:81/c"},
		{"/full/x", "shop.example.com", false, 302, "http://shop.example.com//evil.test"},
	} {
		resp, _ := b.ask("GET", tt.path, nil, func(r *http.Request) {
			r.Host = tt.host
			if tt.tls {
				r.URL.Scheme, r.URL.Host = "https", b.https
			}
		})
		if got := resp.Header.Get("Location"); resp.StatusCode != tt.code || got != tt.want {
			t.Errorf("%s of %s: %d %q, want %d %q", tt.path, tt.host, resp.StatusCode, got, tt.code, tt.want)
		}
	}
}

// TestGatewayRefuses: a share of requests without a valid backend is answered with
// 500, and without a pod with 503.
func TestGatewayRefuses(t *testing.T) {
	b := newBed(t)
	b.serveGateway(routeOf("gone", "", "{matches: [{path: {value: /gone}}], backendRefs: [{name: gone, port: 80}]}"), routeOf("none", "", "{backendRefs: [{name: web, port: 80}]}"))
	for path, want := range map[string]int{"/gone": http.StatusInternalServerError, "/x": http.StatusServiceUnavailable} {
		if resp, text := b.ask("GET", path, nil, nil); resp.StatusCode != want {
			t.Errorf("%s: %d %s", path, resp.StatusCode, text)
		}
	}
}

// TestDoors: a port is open while a listener is served at it, as its protocol says.
func TestDoors(t *testing.T) {
	b := newBed(t)
	b.pod(say("hello"))
	addresses := make(chan string, 10)
	doors := &Doors{Proxy: b.proxy, Listen: func(port int) (net.Listener, error) {
		if port != 8080 {
			t.Errorf("port %d is opened", port)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			addresses <- l.Addr().String()
		}
		return l, err
	}}
	defer doors.Close()
	b.certs["shop/cert"] = certificate(t, "shop.example.com")
	apply := func(manifests ...string) {
		table := Compile(gatewayWorld(t, b.certs, manifests...))
		b.proxy.Update(table, func(string, string) *corev1.Service { return &b.service },
			func(string, string) []*discoveryv1.EndpointSlice { return []*discoveryv1.EndpointSlice{&b.slice} })
		doors.Apply(t.Context(), table)
	}
	route := routeOf("r", "", to("{path: {value: /}}"))
	apply(gatewayOf("gw", "{name: x, port: 8080, protocol: HTTP}"), route)
	plain := <-addresses
	if _, text := b.ask("GET", "/", nil, func(r *http.Request) { r.URL.Host = plain }); text != "hello" {
		t.Error(text)
	}
	if resp, _ := b.ask("GET", "/", nil, nil); resp.StatusCode != http.StatusNotFound {
		t.Error("a route of another port:", resp.Status)
	}
	apply(gatewayOf("gw", "{name: x, port: 8080, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}"), route)
	secure := <-addresses
	if resp, text := b.ask("GET", "/", nil, func(r *http.Request) { r.URL.Scheme, r.URL.Host = "https", secure }); text != "hello" || resp.TLS.PeerCertificates[0].DNSNames[0] != "shop.example.com" {
		t.Error(text)
	}
	apply(gatewayOf("gw", httpListener), route)
	if _, text := b.ask("GET", "/", nil, nil); text != "hello" {
		t.Error(text)
	}
	doors.Close()
	for _, addr := range []string{plain, secure} {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			t.Error("a port is still open")
		}
	}
}

// TestGatewayTimeout: the time is for the whole answer, also of one that has begun.
func TestGatewayTimeout(t *testing.T) {
	b := newBed(t)
	release := make(chan struct{})
	defer close(release)
	b.pod(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/begun" {
			io.WriteString(w, "one")
			w.(http.Flusher).Flush()
		}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	b.serveGateway(routeOf("r", "", "{timeouts: {request: 100ms}, backendRefs: [{name: web, port: 80}]}"))
	if resp, text := b.ask("GET", "/", nil, nil); resp.StatusCode != http.StatusGatewayTimeout {
		t.Error(resp.Status, text)
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+b.http+"/begun", nil)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err == nil || string(text) != "one" {
		t.Errorf("%q %v", text, err)
	}
}

// FuzzGatewayRequest: whatever a stranger asks, a route answers or nothing does, and
// a path that is rewritten stays a path.
func FuzzGatewayRequest(f *testing.F) {
	for _, target := range []string{"/", "/old/x", "/old/%2e%2e/x?p=1", "/old%2Fx", "//old//x", "/old/x%", "*", "/new/../old/x;y"} {
		f.Add("GET", "shop.example.com", target, "v")
	}
	table := Compile(gatewayWorld(f, nil, gatewayOf("gw", httpListener),
		routeOf("prefix", "", "{matches: [{path: {value: /old}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}], backendRefs: [{name: web, port: 80}]}"),
		routeOf("redirect", "hostnames: ['*.example.com']", "{matches: [{path: {value: /go}, queryParams: [{name: p, value: '1'}]}], filters: [{type: RequestRedirect, requestRedirect: {hostname: x.test, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]}"),
		routeOf("rest", "", "{matches: [{path: {type: RegularExpression, value: '/[a-z]+/?'}, headers: [{name: x, type: RegularExpression, value: '(a|b)*'}]}], backendRefs: [{name: web, port: 80}]}")))
	p := NewProxy(Config{})
	f.Fuzz(func(t *testing.T, method, host, target, header string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		r := &http.Request{Method: method, Host: host, URL: u, Header: http.Header{"X": {header}}, RemoteAddr: "1.2.3.4:5"}
		to, m := table.route(80, r, r.Header, hostOf(r.Host), cleanPath(u.Path))
		if to == nil {
			return
		}
		x := &exchange{route: to, match: m}
		if p.answer(httptest.NewRecorder(), r, x) {
			return
		}
		out := r.Clone(t.Context())
		to.action.change(&out.Host, out.URL, out.Header, m)
		if !strings.HasPrefix(out.URL.Path, "/") || to.ingress.Name == "prefix" && out.URL.Path != "/new" && !strings.HasPrefix(out.URL.Path, "/new/") {
			t.Errorf("%q became %q", target, out.URL.Path)
		}
		if decoded, err := url.PathUnescape(out.URL.EscapedPath()); to.ingress.Name == "prefix" && (err != nil || decoded != out.URL.Path) {
			t.Errorf("%q became %q, %q", target, out.URL.Path, out.URL.EscapedPath())
		}
	})
}
