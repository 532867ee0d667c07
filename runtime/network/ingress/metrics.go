package ingress

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
)

// counter is of the requests of an Ingress with one class of answers, 2xx or so.
type counter struct {
	requests int64
	seconds  float64
}

// metrics count requests by Ingress and class of answer.
type metrics struct {
	mu     sync.Mutex
	counts map[types.NamespacedName]*[6]counter
}

// count adds one; requests of no Ingress count under an empty name.
func (m *metrics) count(r *route, status int, took time.Duration) {
	var name types.NamespacedName
	if r != nil {
		name = r.ingress
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.counts == nil {
		m.counts = map[types.NamespacedName]*[6]counter{}
	}
	c := m.counts[name]
	if c == nil {
		c = &[6]counter{}
		m.counts[name] = c
	}
	i := min(max(status/100, 0), 5)
	c[i].requests++
	c[i].seconds += took.Seconds()
}

// keep forgets the Ingresses that are not there any more.
func (m *metrics) keep(ingresses []*networkingv1.Ingress) {
	there := map[types.NamespacedName]bool{{}: true}
	for _, i := range ingresses {
		there[nameOf(i)] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.counts, func(n types.NamespacedName, _ *[6]counter) bool { return !there[n] })
}

// WriteMetrics writes the counters in the text format of Prometheus.
func (p *Proxy) WriteMetrics(w io.Writer) error {
	m := &p.metrics
	m.mu.Lock()
	defer m.mu.Unlock()
	var requests, seconds strings.Builder
	names := slices.SortedFunc(maps.Keys(m.counts), func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) })
	for _, n := range names {
		for i, c := range m.counts[n] {
			if c.requests == 0 {
				continue
			}
			labels := fmt.Sprintf(`{namespace=%q,ingress=%q,code="%dxx"}`, n.Namespace, n.Name, i)
			fmt.Fprintf(&requests, "gitk8s_ingress_requests_total%s %d\n", labels, c.requests)
			fmt.Fprintf(&seconds, "gitk8s_ingress_request_seconds_total%s %g\n", labels, c.seconds)
		}
	}
	_, err := fmt.Fprintf(w, "# HELP gitk8s_ingress_requests_total Requests by Ingress and class of answer.\n# TYPE gitk8s_ingress_requests_total counter\n%s"+
		"# HELP gitk8s_ingress_request_seconds_total Time from the first to the last byte of requests.\n# TYPE gitk8s_ingress_request_seconds_total counter\n%s",
		&requests, &seconds)
	return err
}

// recorder notes what an answer was.
type recorder struct {
	http.ResponseWriter
	code  int
	bytes int64
}

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(code int) {
	if r.code == 0 && (code >= 200 || code == http.StatusSwitchingProtocols) {
		r.code = code
	}
	if code != statusClientClosed {
		r.ResponseWriter.WriteHeader(code)
	}
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(b []byte) (int, error) {
	if r.code == 0 {
		r.code = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(b)
	r.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController flush and take over the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *recorder) status() int {
	if r.code == 0 {
		return http.StatusOK
	}
	return r.code
}

// logAccess tells of one request.
func (p *Proxy) logAccess(r *http.Request, rec *recorder, x *exchange, began time.Time) {
	attrs := []any{
		"client", r.RemoteAddr, "method", r.Method, "host", r.Host, "uri", r.URL.RequestURI(), "protocol", r.Proto,
		"status", rec.status(), "bytes", rec.bytes, "seconds", time.Since(began).Seconds(), "agent", r.UserAgent(),
	}
	if x.route != nil {
		attrs = append(attrs, "ingress", x.route.ingress.String(), "service", x.route.backend.service.String())
	}
	if x.sentTo != nil {
		attrs = append(attrs, "pod", x.sentTo.addr.String())
	}
	if x.err != nil {
		attrs = append(attrs, slog.Any("error", x.err))
	}
	p.access.Info("request", attrs...)
}
