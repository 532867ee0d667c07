package ingress

import (
	"cmp"
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

	"k8s.io/apimachinery/pkg/types"
)

// owner is the Ingress, HTTPRoute or GRPCRoute that a route is of.
type owner struct {
	label string // ingress, httproute or grpcroute
	types.NamespacedName
}

func (r *route) owner() owner { return owner{strings.ToLower(cmp.Or(r.kind, "Ingress")), r.ingress} }

// counts are of the requests of an Ingress or a route, by class of answer: 2xx and so on.
type counts [6]struct{ requests, nanoseconds atomic.Int64 }

func (c *counts) add(status int, took time.Duration) {
	class := &c[min(max(status/100, 0), len(c)-1)]
	class.requests.Add(1)
	class.nanoseconds.Add(int64(took))
}

// metrics are the counts of all Ingresses and routes.
type metrics struct {
	lost counts // requests that nothing is for

	mu sync.Mutex
	by map[owner]*counts
}

// of returns the counts of an Ingress or a route.
func (m *metrics) of(o owner) *counts {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.by == nil {
		m.by = map[owner]*counts{}
	}
	if m.by[o] == nil {
		m.by[o] = &counts{}
	}
	return m.by[o]
}

// keep forgets those that have no route any more.
func (m *metrics) keep(routes []*route) {
	there := map[owner]bool{}
	for _, r := range routes {
		there[r.owner()] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.by, func(o owner, _ *counts) bool { return !there[o] })
}

// WriteMetrics writes the counters in the text format of Prometheus.
func (p *Proxy) WriteMetrics(w io.Writer) error {
	m := &p.metrics
	m.mu.Lock()
	defer m.mu.Unlock()
	var requests, seconds strings.Builder
	write := func(o owner, c *counts) {
		for i := range c {
			if c[i].requests.Load() == 0 {
				continue
			}
			labels := fmt.Sprintf(`{namespace=%q,%s=%q,code="%dxx"}`, o.Namespace, o.label, o.Name, i)
			fmt.Fprintf(&requests, "gitk8s_ingress_requests_total%s %d\n", labels, c[i].requests.Load())
			fmt.Fprintf(&seconds, "gitk8s_ingress_request_seconds_total%s %g\n", labels, time.Duration(c[i].nanoseconds.Load()).Seconds())
		}
	}
	write(owner{label: "ingress"}, &m.lost)
	for _, o := range slices.SortedFunc(maps.Keys(m.by), func(a, b owner) int {
		return cmp.Or(strings.Compare(a.label, b.label), strings.Compare(a.String(), b.String()))
	}) {
		write(o, m.by[o])
	}
	_, err := fmt.Fprintf(w, "# HELP gitk8s_ingress_requests_total Requests by Ingress or route and class of answer.\n# TYPE gitk8s_ingress_requests_total counter\n%s"+
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
		if h := r.Header(); h["Content-Type"] == nil {
			h["Content-Type"] = nil // a pod that does not say what it sends is not corrected
		}
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
func (p *Proxy) logAccess(r *http.Request, h header, status int, bytes int64, x *exchange, began time.Time) {
	attrs := []any{
		"client", r.RemoteAddr, "method", r.Method, "host", r.Host, "uri", r.URL.RequestURI(), "protocol", r.Proto,
		"status", status, "bytes", bytes, "seconds", time.Since(began).Seconds(), "agent", h.Get("User-Agent"),
	}
	if x.route != nil {
		attrs = append(attrs, x.route.owner().label, x.route.ingress.String(), "service", x.route.backend.service.String())
	}
	if x.sentTo != nil {
		attrs = append(attrs, "pod", x.sentTo.addr.String())
	}
	if x.err != nil {
		attrs = append(attrs, slog.Any("error", x.err))
	}
	p.access.Info("request", attrs...)
}
