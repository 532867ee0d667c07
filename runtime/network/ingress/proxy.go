package ingress

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"path"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Config is what a Proxy needs.
type Config struct {
	// Dial reaches the pods.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// AccessLog is told every request; nil for none.
	AccessLog *slog.Logger
	// Stall is how long a client may stand still; 0 is a minute.
	Stall time.Duration
}

// Proxy answers requests by the newest table. All of its methods may be called at the
// same time.
type Proxy struct {
	table     atomic.Pointer[Table]
	transport *transport
	reverse   *httputil.ReverseProxy
	access    *slog.Logger
	stall     time.Duration
	metrics   metrics
	own       func() (*tls.Certificate, error)
	httpPort  atomic.Int32 // where requests are sent that should not have TLS
	httpsPort atomic.Int32 // and that should

	mu    sync.Mutex // of Update
	pools map[backend]*pool

	loops int          // for each port
	seats atomic.Int64 // see loop.stay
}

// NewProxy returns a Proxy that answers 404 to everything until it has a table.
func NewProxy(c Config) *Proxy {
	p := &Proxy{transport: newTransport(c.Dial), access: c.AccessLog, stall: cmp.Or(c.Stall, clientStall), pools: map[backend]*pool{}, own: sync.OnceValues(ownCertificate)}
	half := runtime.GOMAXPROCS(0) / 2 // pods and clients on this machine need processors, too
	p.loops = max(1, half)
	p.seats.Store(int64(half))
	p.table.Store(&Table{})
	p.httpPort.Store(80)
	p.httpsPort.Store(443)
	p.reverse = &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { exchangeOf(r.In.Context()).rewrite(r) },
		Transport: p.transport,
		ModifyResponse: func(resp *http.Response) error {
			exchangeOf(resp.Request.Context()).begun(resp.Header)
			return nil
		},
		ErrorHandler: failed,
		BufferPool:   &buffers{}, ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
	return p
}

// Update takes a new table and what its services are now. Requests that are under way
// go on as they began.
func (p *Proxy) Update(t *Table, service func(namespace, name string) *corev1.Service, slices func(namespace, service string) []*discoveryv1.EndpointSlice) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pools := make(map[backend]*pool, len(p.pools))
	for _, r := range t.routes {
		r.counts = p.metrics.of(r.owner())
		b := r.backend
		if b.service.Name == "" {
			continue // it answers itself
		}
		if pools[b] == nil {
			addrs, proto, err := resolve(b, service(b.service.Namespace, b.service.Name), slices(b.service.Namespace, b.service.Name))
			if err != nil {
				slog.Debug("ingress backend", "error", err) // a request to it is answered with 503
			}
			if pools[b] = p.pools[b]; pools[b] == nil {
				pools[b] = &pool{}
			}
			pools[b].set(addrs, proto)
		}
		r.pool = pools[b]
	}
	before := p.pools
	p.pools = pools
	p.metrics.keep(t.routes)
	p.table.Store(t)
	for b, unused := range before {
		if pools[b] == nil {
			unused.close()
		}
	}
}

// exchange is one request on its way.
type exchange struct {
	route  *route
	match  *match // of a route of a Gateway
	before string // the endpoint that the client's cookie names
	sentTo *endpoint
	// answer ends the request if the pod does not begin to answer in time.
	answer  *time.Timer
	expired atomic.Bool
	stalled atomic.Bool // the client stood still in the middle of its body
	err     error
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange {
	x, _ := ctx.Value(exchangeKey{}).(*exchange)
	return x
}

// serveAt answers a request that came in at a port, and that is net/http's.
func (p *Proxy) serveAt(port int32, w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	x := &exchange{}
	x.route, x.match = p.table.Load().route(port, r, r.Header, hostOf(r.Host), cleanPath(r.URL.Path))
	rec := &recorder{ResponseWriter: w}
	p.watchClient(rec, r, x)
	defer func() { // also when an answer is broken off, which is told by a panic
		rec.begin() // of what the server has left to write
		rec.end()
		counted := &p.metrics.lost
		if x.route != nil {
			counted = x.route.counts
		}
		counted.add(rec.status(), time.Since(began))
		if p.access != nil {
			p.logAccess(r, r.Header, rec.status(), rec.bytes, x, began)
		}
	}()
	p.serve(rec, r, x)
}

func (p *Proxy) serve(w *recorder, r *http.Request, x *exchange) {
	if p.answerHere(w, r, x) {
		return
	}
	o := x.route.options
	if o.maxBody > 0 {
		r.Body = http.MaxBytesReader(w, r.Body, o.maxBody)
	}
	x.before = o.before(r.Header)
	ctx, cancel := context.WithCancel(context.WithValue(r.Context(), exchangeKey{}, x))
	defer cancel()
	if o.timeout > 0 && (o.whole || !isGRPC(r.Header)) {
		x.answer = time.AfterFunc(o.timeout, func() {
			x.expired.Store(true)
			cancel()
		})
		defer x.answer.Stop()
	}
	p.reverse.ServeHTTP(w, r.WithContext(ctx))
}

// answerHere answers a request that goes to no pod, and says whether it did.
func (p *Proxy) answerHere(w http.ResponseWriter, r *http.Request, x *exchange) bool {
	if r.Method == http.MethodConnect {
		http.Error(w, "this is no forward proxy", http.StatusMethodNotAllowed)
		return true
	}
	if x.route == nil {
		http.Error(w, "no Ingress and no route has this host and path", http.StatusNotFound)
		return true
	}
	if x.route.action != nil && p.answer(w, r, x) {
		return true
	}
	switch o := x.route.options; {
	case o.redirectTLS && x.route.tls && r.TLS == nil:
		http.Redirect(w, r, p.withTLS(r), http.StatusPermanentRedirect)
	case o.redirect != nil:
		http.Redirect(w, r, o.redirect.String(), o.redirectCode)
	case o.maxBody > 0 && r.ContentLength > o.maxBody:
		http.Error(w, "the request is too large", http.StatusRequestEntityTooLarge)
	default:
		return false
	}
	return true
}

// isGRPC says that an answer may rightly begin long after the request.
func isGRPC(h header) bool {
	return strings.HasPrefix(h.Get("Content-Type"), "application/grpc")
}

// withTLS is the address of a request with TLS.
func (p *Proxy) withTLS(r *http.Request) string {
	u := *r.URL
	u.Scheme, u.Host = "https", hostOf(r.Host)
	if strings.Contains(u.Host, ":") {
		u.Host = "[" + u.Host + "]"
	}
	if port := p.httpsPort.Load(); port != 443 {
		u.Host = u.Host + ":" + strconv.Itoa(int(port))
	}
	return u.String()
}

// hostOf is the name in a Host header, in lower case.
func hostOf(host string) string {
	name, _ := splitHost(host)
	return strings.ToLower(strings.TrimSuffix(name, "."))
}

// splitHost splits a Host header; the port is empty if there is none.
func splitHost(host string) (name, port string) {
	if strings.Contains(host, ":") { // without it, an error would be made for nothing
		if name, port, err := net.SplitHostPort(host); err == nil {
			return name, port
		}
	}
	return host, ""
}

// cleanPath is what a path means: /a/../b is /b, and must not get by as /a.
func cleanPath(p string) string {
	if p == "" || p[0] != '/' {
		p = "/" + p
	}
	clean := path.Clean(p)
	if clean != "/" && strings.HasSuffix(p, "/") {
		clean += "/" // an Exact path means it
	}
	return clean
}

// rewrite makes the request that the pod gets of one that is net/http's.
func (x *exchange) rewrite(r *httputil.ProxyRequest) {
	r.Out.Host = r.In.Host
	r.Out.URL.Scheme, r.Out.URL.Host = "http", "pod" // the transport puts in which
	r.Out.URL.RawQuery = r.In.URL.RawQuery           // as it came: no rule here looks at it
	if strings.EqualFold(r.Out.Header.Get("Upgrade"), "h2c") {
		// It would have requests go to the pod that no rule has seen.
		r.Out.Header.Del("Upgrade")
		r.Out.Header.Del("Connection")
		r.Out.Header.Del("Http2-Settings")
	}
	client, _, _ := net.SplitHostPort(r.In.RemoteAddr) // it is the kernel's
	sayForwarded(r.Out.Header, client, r.In.Host, r.In.TLS != nil)
	if _, ok := r.In.Header["User-Agent"]; !ok {
		r.Out.Header.Set("User-Agent", "") // none, rather than Go's
	}
	if x.route.action != nil {
		x.route.action.change(&r.Out.Host, r.Out.URL, r.Out.Header, x.match)
	}
}

// sayForwarded says in a header who asks for a host, and how. What the client says of itself
// is not believed: the pod is told what was seen here.
func sayForwarded(h header, client, host string, withTLS bool) {
	proto, port := "http", "80"
	if withTLS {
		proto, port = "https", "443"
	}
	if _, p := splitHost(host); p != "" {
		port = p
	}
	h.Del("Forwarded")
	h.Set("X-Forwarded-For", client)
	h.Set("X-Forwarded-Host", host)
	h.Set("X-Forwarded-Port", port)
	h.Set("X-Forwarded-Proto", proto)
	h.Set("X-Real-Ip", client)
}

// begun is called when a pod has begun to answer.
func (x *exchange) begun(h header) {
	if x.answer != nil && !x.route.options.whole {
		x.answer.Stop()
	}
	if x.route.action != nil {
		x.route.action.response.apply(h)
	}
	if name := x.route.options.cookie; name != "" && x.sentTo.id != x.before {
		c := http.Cookie{Name: name, Value: x.sentTo.id, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode}
		h.Add("Set-Cookie", c.String())
	}
}

// errNoEndpoints is why a request cannot be sent anywhere.
var errNoEndpoints = errors.New("no pod of the service is ready")

// statusClientClosed is what is logged of a client that went away; nobody gets it.
const statusClientClosed = 499

// failed answers for a pod that did not.
func failed(w http.ResponseWriter, r *http.Request, err error) {
	x := exchangeOf(r.Context())
	x.err = err
	if code, text := x.failure(err, r.Context().Err() != nil); code == statusClientClosed {
		w.WriteHeader(code)
	} else {
		http.Error(w, text, code)
	}
}

// failure is what is answered for a pod that did not; gone says that the client has gone
// away.
func (x *exchange) failure(err error, gone bool) (code int, text string) {
	switch {
	case errors.As(err, new(*http.MaxBytesError)):
		return http.StatusRequestEntityTooLarge, "the request is too large"
	case x.stalled.Load():
		return http.StatusRequestTimeout, "the request stopped in the middle"
	case errors.Is(err, errNoEndpoints):
		return http.StatusServiceUnavailable, err.Error()
	case x.expired.Load():
		return http.StatusGatewayTimeout, "the pod did not answer in time"
	case gone:
		return statusClientClosed, ""
	}
	return http.StatusBadGateway, "the pod cannot be reached or broke off its answer"
}

// buffers lends what answers are copied with.
type buffers struct{ pool sync.Pool }

const bufferSize = 32 << 10

// Get implements httputil.BufferPool.
func (b *buffers) Get() []byte {
	if v, ok := b.pool.Get().(*[]byte); ok {
		return *v
	}
	return make([]byte, bufferSize)
}

// Put implements httputil.BufferPool.
func (b *buffers) Put(v []byte) { b.pool.Put(&v) }
