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
	"sync/atomic"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
)

// counts are of the requests of an Ingress, by class of answer: 2xx and so on.
type counts [6]struct{ requests, nanoseconds atomic.Int64 }

func (c *counts) add(status int, took time.Duration) {
	class := &c[min(max(status/100, 0), len(c)-1)]
	class.requests.Add(1)
	class.nanoseconds.Add(int64(took))
}

// metrics are the counts of all Ingresses.
type metrics struct {
	lost counts // requests that no Ingress is for

	mu sync.Mutex
	by map[types.NamespacedName]*counts
}

// of returns the counts of an Ingress.
func (m *metrics) of(ingress types.NamespacedName) *counts {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.by == nil {
		m.by = map[types.NamespacedName]*counts{}
	}
	if m.by[ingress] == nil {
		m.by[ingress] = &counts{}
	}
	return m.by[ingress]
}

// keep forgets the Ingresses that are not there any more.
func (m *metrics) keep(ingresses []*networkingv1.Ingress) {
	there := map[types.NamespacedName]bool{}
	for _, i := range ingresses {
		there[nameOf(i)] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.by, func(n types.NamespacedName, _ *counts) bool { return !there[n] })
}

// WriteMetrics writes the counters in the text format of Prometheus.
func (p *Proxy) WriteMetrics(w io.Writer) error {
	m := &p.metrics
	m.mu.Lock()
	defer m.mu.Unlock()
	var requests, seconds strings.Builder
	write := func(n types.NamespacedName, c *counts) {
		for i := range c {
			if c[i].requests.Load() == 0 {
				continue
			}
			labels := fmt.Sprintf(`{namespace=%q,ingress=%q,code="%dxx"}`, n.Namespace, n.Name, i)
			fmt.Fprintf(&requests, "gitk8s_ingress_requests_total%s %d\n", labels, c[i].requests.Load())
			fmt.Fprintf(&seconds, "gitk8s_ingress_request_seconds_total%s %g\n", labels, time.Duration(c[i].nanoseconds.Load()).Seconds())
		}
	}
	write(types.NamespacedName{}, &m.lost)
	for _, n := range slices.SortedFunc(maps.Keys(m.by), func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) }) {
		write(n, m.by[n])
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

	// One of these bounds how long a write may take; see watchClient.
	deadline func()
	patience *patience
}

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(code int) {
	if r.code == 0 && (code >= 200 || code == http.StatusSwitchingProtocols) {
		r.code = code
	}
	if code != statusClientClosed {
		r.begin()
		defer r.end()
		r.ResponseWriter.WriteHeader(code)
	}
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(b []byte) (int, error) {
	if r.code == 0 {
		r.code = http.StatusOK
	}
	r.begin()
	defer r.end()
	n, err := r.ResponseWriter.Write(b)
	r.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController take over the connection.
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
