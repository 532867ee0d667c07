package ingress

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"
)

// bed is a Proxy on loopback in front of pods, which are servers on loopback that
// have addresses of the pod network.
type bed struct {
	t       testing.TB
	proxy   *Proxy
	http    string // host:port
	https   string
	access  *bytes.Buffer
	pods    map[string]string // address in the cluster → on loopback
	servers []*httptest.Server
	end     func() // ends the proxy, with what is under way
	dialing func() // called before a pod is reached; nil for nothing
	slice   discoveryv1.EndpointSlice
	service corev1.Service
	certs   map[string]*tls.Certificate
}

// faulty is the address of a pod that cannot be reached without a panic.
const faulty = "faulty"

func newBed(t testing.TB) *bed { return newBedWith(t, 0) }

// newBedWith has a limit on how long clients may stand still.
func newBedWith(t testing.TB, stall time.Duration) *bed { return newBedOf(t, stall, 0) }

// newBedOf has a number of loops, too, 0 for the usual one.
func newBedOf(t testing.TB, stall time.Duration, loops int) *bed {
	b := &bed{t: t, access: &bytes.Buffer{}, pods: map[string]string{}, certs: map[string]*tls.Certificate{}}
	b.service.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80}}
	b.slice.Ports = []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8080)}}
	b.proxy = NewProxy(Config{
		Stall: stall,
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if b.dialing != nil {
				b.dialing()
			}
			to, ok := b.pods[addr]
			if !ok {
				return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
			}
			if to == faulty {
				panic("a fault of the test")
			}
			return (&net.Dialer{}).DialContext(ctx, network, to)
		},
	})
	b.proxy.loops = cmp.Or(loops, b.proxy.loops)
	var listeners []net.Listener
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
	}
	b.http, b.https = listeners[0].Addr().String(), listeners[1].Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.proxy.Serve(ctx, listeners[0], listeners[1]) }()
	b.end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(b.end)
	return b
}

// pod adds a pod that answers by h; a nil h is one that cannot be reached.
func (b *bed) pod(h http.Handler) (addr string) {
	n := len(b.slice.Endpoints) + 1
	ip := fmt.Sprintf("10.42.0.%d", n)
	b.slice.Endpoints = append(b.slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}})
	if h != nil {
		srv := httptest.NewUnstartedServer(h)
		srv.Config.Protocols = new(http.Protocols)
		srv.Config.Protocols.SetHTTP1(true)
		srv.Config.Protocols.SetUnencryptedHTTP2(true)
		srv.Start()
		b.t.Cleanup(srv.Close)
		b.servers = append(b.servers, srv)
		b.pods[ip+":8080"] = srv.Listener.Addr().String()
	}
	return ip
}

// closeConns makes the pods close the connections to them.
func (b *bed) closeConns() {
	for _, s := range b.servers {
		s.CloseClientConnections()
	}
}

// listen serves each connection to an address of loopback, and closes it after that.
func listen(t testing.TB, serve func(net.Conn)) (addr string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	return l.Addr().String()
}

// serve takes Ingresses.
func (b *bed) serve(manifests ...string) {
	b.proxy.Update(compile(b.t, b.certs, manifests...), func(_, name string) *corev1.Service {
		if name != "web" {
			return nil
		}
		return &b.service
	}, func(string, string) []*discoveryv1.EndpointSlice { return []*discoveryv1.EndpointSlice{&b.slice} })
}

func annotated(manifest string, pairs ...string) string {
	var list []string
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, annotationPrefix+pairs[i]+": "+strconv.Quote(pairs[i+1]))
	}
	return strings.Replace(manifest, "metadata: {", "metadata: {annotations: {"+strings.Join(list, ", ")+"}, ", 1)
}

var webRule = rule("web", "shop.example.com", "Prefix", "/")

// ask makes a request; edit may change it.
func (b *bed) ask(method, path string, body io.Reader, edit func(*http.Request)) (*http.Response, string) {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), method, "http://"+b.http+path, body)
	if err != nil {
		b.t.Fatal(err)
	}
	req.Host = "shop.example.com"
	if edit != nil {
		edit(req)
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, //nolint:gosec // certificates are looked at
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       20 * time.Second,
	}
	resp, err := client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp, string(text)
}

func say(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) })
}

func TestForwards(t *testing.T) {
	b := newBed(t)
	b.pod(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s|%s|%s|%s|%s|%s|%s|%s", r.Method, r.Host, r.RequestURI, body, r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Forwarded-Proto"),
			r.Header.Get("X-Forwarded-Host"), r.Header.Get("X-Real-Ip"), r.Header.Get("Forwarded"), r.UserAgent())
	}))
	b.serve(webRule)
	_, got := b.ask("POST", "/a%2Fb/../c?x=1&y=%20;z", strings.NewReader("hello"), func(r *http.Request) {
		r.Header.Set("X-Forwarded-For", "1.2.3.4") // a lie
		r.Header.Set("X-Real-Ip", "1.2.3.4")
		r.Header.Set("Forwarded", "for=1.2.3.4")
		r.Header["User-Agent"] = nil
	})
	if want := "POST shop.example.com /a%2Fb/../c?x=1&y=%20;z|hello|127.0.0.1|http|shop.example.com|127.0.0.1||"; got != want {
		t.Errorf("the pod got %q\nwant %q", got, want)
	}
	if resp, _ := b.ask("GET", "/", nil, func(r *http.Request) { r.Host = "nobody.example.com" }); resp.StatusCode != http.StatusNotFound {
		t.Error(resp.Status)
	}
	if resp, _ := b.ask("GET", "/", nil, func(r *http.Request) { r.Host = "SHOP.example.com.:8080" }); resp.StatusCode != http.StatusOK {
		t.Error(resp.Status)
	}
}

func TestTriesAnotherPod(t *testing.T) {
	b := newBed(t)
	b.pod(nil)
	b.pod(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n)
	}))
	b.pod(nil)
	b.serve(webRule)
	for range 20 {
		if resp, got := b.ask("POST", "/", strings.NewReader(strings.Repeat("x", 100_000)), nil); got != "100000" {
			t.Fatal(resp.Status, got)
		}
	}
	b.pods = map[string]string{}
	b.closeConns()
	if resp, _ := b.ask("GET", "/", nil, nil); resp.StatusCode != http.StatusBadGateway {
		t.Error(resp.Status)
	}
	b.slice.Endpoints = nil
	b.serve(webRule)
	if resp, _ := b.ask("GET", "/", nil, nil); resp.StatusCode != http.StatusServiceUnavailable {
		t.Error(resp.Status)
	}
}

// TestBrokenOff: a request that does no harm twice goes to another pod when one closes
// the connection without an answer, and no other does.
func TestBrokenOff(t *testing.T) {
	for how, end := range map[string]func(net.Conn){
		"at once":       func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) },
		"when asked":    func(c net.Conn) { _, _ = http.ReadRequest(bufio.NewReader(c)) },
		"in the middle": func(c net.Conn) { _, _ = c.Read(make([]byte, 10)) },
	} {
		t.Run(how, func(t *testing.T) {
			b := newBed(t)
			b.pod(say("well"))
			var asked atomic.Int32
			b.pods[b.pod(nil)+":8080"] = listen(t, func(c net.Conn) {
				asked.Add(1)
				end(c)
			})
			b.serve(webRule)
			lost := map[string]int{}
			for range 6 {
				for _, method := range []string{"GET", "HEAD", "POST"} {
					for _, large := range []string{"", strings.Repeat("x", requestBuffer)} { // and net/http
						for _, p := range b.proxy.pools {
							for _, e := range p.endpoints {
								e.failed.Store(0)
							}
						}
						if resp, _ := b.ask(method, "/?"+large, nil, nil); resp.StatusCode != http.StatusOK {
							lost[method]++
						}
					}
				}
			}
			if lost["GET"] > 0 || lost["HEAD"] > 0 || lost["POST"] == 0 || asked.Load() == 0 {
				t.Errorf("lost %v, the pod was asked %d times", lost, asked.Load())
			}
		})
	}
}

func TestBalances(t *testing.T) {
	b := newBed(t)
	for _, name := range []string{"a", "b", "c"} {
		b.pod(say(name))
	}
	count := func(edit func(*http.Request)) map[string]int {
		out := map[string]int{}
		for range 30 {
			_, got := b.ask("GET", "/", nil, edit)
			out[got]++
		}
		return out
	}
	b.serve(webRule)
	if got := count(nil); got["a"] != 10 || got["b"] != 10 || got["c"] != 10 {
		t.Errorf("by turns: %v", got)
	}
	b.serve(annotated(webRule, "affinity-cookie", "pod"))
	resp, first := b.ask("GET", "/", nil, nil)
	cookies := resp.Cookies()
	if len(cookies) != 1 || cookies[0].Name != "pod" || !cookies[0].HttpOnly {
		t.Fatalf("the cookies are %v", cookies)
	}
	if got := count(func(r *http.Request) { r.AddCookie(cookies[0]) }); got[first] != 30 {
		t.Errorf("with the cookie of %s: %v", first, got)
	}
	if got := count(func(r *http.Request) { r.AddCookie(&http.Cookie{Name: "pod", Value: "made-up"}) }); len(got) != 3 {
		t.Errorf("with a cookie of nobody: %v", got)
	}
}

func TestLeastConnections(t *testing.T) {
	b := newBed(t)
	hold, held := make(chan struct{}), make(chan struct{}, 1)
	var quick atomic.Int64
	b.pod(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			held <- struct{}{}
			<-hold
		}
	}))
	b.pod(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			held <- struct{}{}
			<-hold
			return
		}
		quick.Add(1)
	}))
	b.serve(annotated(webRule, "load-balancing", "least-connections"))
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.ask("GET", "/slow", nil, nil)
	}()
	<-held
	var busy *endpoint
	for _, p := range b.proxy.pools {
		for _, e := range p.endpoints {
			if e.active.Load() > 0 {
				busy = e
			}
		}
	}
	for range 10 {
		b.ask("GET", "/", nil, nil)
	}
	if n := quick.Load(); busy == nil || n != 10 && busy.addr == netip.MustParseAddrPort("10.42.0.1:8080") || n != 0 && busy.addr == netip.MustParseAddrPort("10.42.0.2:8080") {
		t.Errorf("%d requests went to the idle pod; busy is %v", n, busy)
	}
	close(hold)
	<-done
}

func TestLimits(t *testing.T) {
	b := newBed(t)
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	b.pod(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			select {
			case <-hang:
			case <-r.Context().Done():
			}
			return
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		io.WriteString(w, "ok")
	}))
	b.serve(annotated(webRule, "timeout", "100ms", "max-body-size", "1Ki"))
	status := func(want int, method, path string, body io.Reader, edit func(*http.Request)) {
		t.Helper()
		if resp, text := b.ask(method, path, body, edit); resp.StatusCode != want {
			t.Errorf("%s %s: %s %s", method, path, resp.Status, text)
		}
	}
	status(504, "GET", "/hang", nil, nil)
	status(200, "POST", "/", strings.NewReader(strings.Repeat("x", 1024)), nil)
	status(413, "POST", "/", strings.NewReader(strings.Repeat("x", 1025)), nil)
	status(413, "POST", "/", io.MultiReader(strings.NewReader(strings.Repeat("x", 5000))), nil) // of unknown length
	status(431, "GET", "/", nil, func(r *http.Request) { r.Header.Set("X-Large", strings.Repeat("x", 1<<20)) })
	status(200, "GET", "/", nil, func(r *http.Request) { r.Host = "shop.example.com" })
	status(404, "GET", "/", nil, func(r *http.Request) { r.Host = strings.Repeat("x", 300) })
}

func TestRedirects(t *testing.T) {
	b := newBed(t)
	b.pod(say("ok"))
	b.certs["shop/cert"] = certificate(t, "shop.example.com")
	_, port, _ := net.SplitHostPort(b.https)
	secured := withTLS(webRule, "{hosts: [shop.example.com], secretName: cert}")
	location := func(manifest, path string) string {
		t.Helper()
		b.serve(manifest)
		resp, _ := b.ask("GET", path, nil, nil)
		return resp.Status[:3] + " " + resp.Header.Get("Location")
	}
	if got, want := location(secured, "/a?b=c"), "308 https://shop.example.com:"+port+"/a?b=c"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := location(annotated(secured, "ssl-redirect", "false"), "/"); got != "200 " {
		t.Error(got)
	}
	if got := location(annotated(webRule, "redirect", "https://elsewhere.example.com/x", "redirect-code", "302"), "/"); got != "302 https://elsewhere.example.com/x" {
		t.Error(got)
	}
}

func TestTLS(t *testing.T) {
	b := newBed(t)
	b.pod(say("ok"))
	b.certs["shop/cert"] = certificate(t, "shop.example.com")
	secured := withTLS(webRule, "{hosts: [shop.example.com], secretName: cert}")
	b.serve(secured)
	get := func(name string) (leaf string, proto string) {
		t.Helper()
		client := &http.Client{Transport: &http.Transport{
			ForceAttemptHTTP2: true, DisableKeepAlives: true,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: name}, //nolint:gosec // certificates are looked at
		}}
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "https://"+b.https+"/", nil)
		req.Host = "shop.example.com"
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Error(resp.Status)
		}
		return string(resp.TLS.PeerCertificates[0].Raw), resp.Proto
	}
	leaf, proto := get("shop.example.com")
	if leaf != string(b.certs["shop/cert"].Certificate[0]) || proto != "HTTP/2.0" {
		t.Errorf("another certificate, or %s", proto)
	}
	if other, _ := get("other.example.com"); other == leaf {
		t.Error("a name without a certificate got that of another")
	}
	b.certs["shop/cert"] = certificate(t, "shop.example.com") // renewed
	b.serve(secured)
	if now, _ := get("shop.example.com"); now == leaf {
		t.Error("the old certificate is still used")
	}
}

func TestProtocols(t *testing.T) {
	b := newBed(t)
	b.pod(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Grpc-Status")
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", r.Proto, body)
		w.Header().Set("Grpc-Status", "0")
	}))
	b.service.Spec.Ports[0].AppProtocol = ptr.To("kubernetes.io/h2c")
	b.serve(webRule)
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	defer tr.CloseIdleConnections()
	req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://"+b.http+"/", strings.NewReader("frame"))
	req.Host = "shop.example.com"
	req.Header.Set("Content-Type", "application/grpc")
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	if string(text) != "HTTP/2.0 frame" || resp.Proto != "HTTP/2.0" || resp.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("%s %q, trailer %v", resp.Proto, text, resp.Trailer)
	}
}

// raw sends bytes and returns the first line of the answer, and the rest of it.
func (b *bed) raw(text string) (net.Conn, *bufio.Reader, string) {
	b.t.Helper()
	c, err := (&net.Dialer{}).DialContext(b.t.Context(), "tcp", b.http)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		b.t.Fatal(err)
	}
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		b.t.Fatal(err)
	}
	return c, r, strings.TrimSpace(line)
}

func TestUpgrade(t *testing.T) {
	b := newBed(t)
	b.pod(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "echo" {
			fmt.Fprintf(w, "upgrade=%q", r.Header.Get("Upgrade"))
			return
		}
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		io.Copy(c, rw)
	}))
	b.serve(webRule)
	const head = "GET / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: Upgrade\r\nUpgrade: "
	c, r, line := b.raw(head + "echo\r\n\r\n")
	if line != "HTTP/1.1 101 Switching Protocols" {
		t.Fatal(line)
	}
	for line != "" {
		line, _ = r.ReadString('\n')
		line = strings.TrimSpace(line)
	}
	io.WriteString(c, "hello\n")
	if got, err := r.ReadString('\n'); got != "hello\n" {
		t.Error(got, err)
	}
	_, r, line = b.raw(head + "h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n")
	rest := make([]byte, 400)
	n, _ := r.Read(rest)
	if line != "HTTP/1.1 200 OK" || !strings.Contains(string(rest[:n]), `upgrade=""`) {
		t.Errorf("%s\n%s", line, rest[:n])
	}
}

// TestSmuggling: what two servers could read as different requests is refused, or
// reaches the pod in one form alone.
func TestSmuggling(t *testing.T) {
	b := newBed(t)
	var seen atomic.Int64
	b.pod(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Add(1)
		io.Copy(io.Discard, r.Body)
	}))
	b.serve(webRule)
	const smuggled = "GET /admin HTTP/1.1\r\nHost: shop.example.com\r\n\r\n"
	for name, request := range map[string]string{
		"two lengths":            "POST / HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: 0\r\nContent-Length: 50\r\n\r\n" + smuggled,
		"a strange encoding":     "POST / HTTP/1.1\r\nHost: shop.example.com\r\nTransfer-Encoding: xchunked\r\n\r\n" + smuggled,
		"two encodings":          "POST / HTTP/1.1\r\nHost: shop.example.com\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + smuggled,
		"a length with a sign":   "POST / HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: +5\r\n\r\nhello",
		"a header that goes on":  "POST / HTTP/1.1\r\nHost: shop.example.com\r\nX: a\r\n b: c\r\nContent-Length : 5\r\n\r\nhello",
		"two hosts":              "GET / HTTP/1.1\r\nHost: shop.example.com\r\nHost: other.example.com\r\n\r\n",
		"no host":                "GET / HTTP/1.1\r\n\r\n",
		"a forward proxy's use":  "CONNECT shop.example.com:80 HTTP/1.1\r\nHost: shop.example.com\r\n\r\n",
		"a zero byte in a field": "GET / HTTP/1.1\r\nHost: shop.example.com\r\nX: a\x00b\r\n\r\n",
	} {
		before := seen.Load()
		if _, _, line := b.raw(request); !strings.HasPrefix(line, "HTTP/1.1 4") && !strings.HasPrefix(line, "HTTP/1.1 501") {
			t.Errorf("%s: %s", name, line)
		}
		if seen.Load() != before {
			t.Errorf("%s reached the pod", name)
		}
	}
	// Chunked wins over a length, and the pod gets the body in one form.
	before := seen.Load()
	_, _, line := b.raw("POST / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled)
	if strings.HasPrefix(line, "HTTP/1.1 200") && seen.Load() != before+1 {
		t.Errorf("%s, and the pod saw %d requests", line, seen.Load()-before)
	}
}

func TestObserved(t *testing.T) {
	b := newBed(t)
	b.proxy.access = slog.New(slog.NewJSONHandler(b.access, nil))
	b.pod(say("ok"))
	b.serve(webRule)
	b.ask("GET", "/x?y", nil, nil)
	b.ask("GET", "/", nil, func(r *http.Request) { r.Host = "nobody" })
	b.end()
	var m strings.Builder
	if err := b.proxy.WriteMetrics(&m); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`gitk8s_ingress_requests_total{namespace="shop",ingress="web",code="2xx"} 1`,
		`gitk8s_ingress_requests_total{namespace="",ingress="",code="4xx"} 1`,
	} {
		if !strings.Contains(m.String(), want) {
			t.Errorf("no %s in\n%s", want, m.String())
		}
	}
	for _, want := range []string{`"uri":"/x?y"`, `"status":200`, `"ingress":"shop/web"`, `"pod":"10.42.0.1:8080"`, `"status":404`} {
		if !strings.Contains(b.access.String(), want) {
			t.Errorf("no %s in\n%s", want, b.access)
		}
	}
}

func TestResolve(t *testing.T) {
	svc := &corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "admin", Port: 81}}}}
	is := func(ready, serving, terminating bool) discoveryv1.EndpointConditions {
		return discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating}
	}
	slice := &discoveryv1.EndpointSlice{
		Ports: []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8080)}, {Name: ptr.To("admin"), Port: ptr.To[int32](9090)}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.42.0.1"}}, {Addresses: []string{"10.42.0.2"}, Conditions: is(false, true, true)}, {Addresses: []string{"10.42.0.3"}, Conditions: is(false, false, false)},
			{Addresses: []string{"127.0.0.1"}}, {Addresses: []string{"169.254.169.254"}}, {Addresses: []string{"0.0.0.0"}},
		},
	}
	for _, tt := range []struct {
		name   string
		number int32
		want   string
	}{{"http", 0, "[10.42.0.1:8080]"}, {"", 81, "[10.42.0.1:9090]"}, {"none", 0, "no port none"}, {"", 82, "no port 82"}} {
		b := backend{}
		b.port.Name, b.port.Number = tt.name, tt.number
		got, _, err := resolve(b, svc, []*discoveryv1.EndpointSlice{slice})
		if text := fmt.Sprint(got, err); !strings.Contains(text, tt.want) {
			t.Errorf("%q %d: %s", tt.name, tt.number, text)
		}
	}
	slice.Endpoints = slice.Endpoints[1:]
	b := backend{}
	b.port.Number = 80
	if got, _, err := resolve(b, svc, []*discoveryv1.EndpointSlice{slice}); fmt.Sprint(got) != "[10.42.0.2:8080]" {
		t.Errorf("with none ready: %v %v", got, err)
	}
}
