package ingress

import (
	"fmt"
	"hash/fnv"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"gitk8s.dev/gitk8s/runtime/network"
)

// avoid is how long an endpoint that could not be reached is the last to be tried.
const avoid = 2 * time.Second

// endpoint is a pod that may get requests.
type endpoint struct {
	addr   netip.AddrPort
	id     string       // what the affinity cookie says of it
	active atomic.Int64 // requests under way
	failed atomic.Int64 // when it could last not be reached, Unix nanoseconds
	idle   idleConns
}

func newEndpoint(addr netip.AddrPort) *endpoint {
	h := fnv.New64a()
	b, _ := addr.MarshalBinary() // never fails
	_, _ = h.Write(b)
	return &endpoint{addr: addr, id: fmt.Sprintf("%016x", h.Sum64())}
}

// pool is the endpoints of one port of a service. It outlives the tables that name
// it, and with it what is known of its endpoints.
type pool struct {
	next atomic.Uint64

	mu        sync.RWMutex
	endpoints []*endpoint
	protocol  protocol
}

// set makes the pool have these addresses.
func (p *pool) set(addrs []netip.AddrPort, proto protocol) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := make([]*endpoint, 0, len(addrs))
	for _, a := range addrs {
		if i := slices.IndexFunc(p.endpoints, func(e *endpoint) bool { return e.addr == a }); i >= 0 {
			next = append(next, p.endpoints[i])
		} else {
			next = append(next, newEndpoint(a))
		}
	}
	for _, e := range p.endpoints {
		if !slices.Contains(next, e) {
			e.idle.close()
		}
	}
	p.endpoints, p.protocol = next, proto
}

// close keeps no connections any more. Requests that are under way still find their
// endpoints.
func (p *pool) close() {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, e := range p.endpoints {
		e.idle.close()
	}
}

// spoken is the protocol that the service's port has.
func (p *pool) spoken() protocol {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.protocol
}

// pick returns the endpoint for a request, nil if there is none left: the one that
// the client has been at before, or else by turns, or the one with the fewest requests
// under way. Those of tried are left out, and those that failed lately come last.
func (p *pool) pick(o *options, before string, tried []*endpoint, now time.Time) *endpoint {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var best *endpoint
	var bestActive int64
	start, n := p.next.Add(1), len(p.endpoints)
	for i := range n {
		e := p.endpoints[(start+uint64(i))%uint64(n)]
		if slices.Contains(tried, e) {
			continue
		}
		if before != "" && e.id == before {
			return e
		}
		active := int64(0)
		if o.leastConnections {
			active = e.active.Load()
		}
		if at := e.failed.Load(); at != 0 && now.Sub(time.Unix(0, at)) < avoid {
			active += 1 << 32
		}
		if best == nil || active < bestActive {
			best, bestActive = e, active
		}
	}
	return best
}

// before is the endpoint that a request's cookie names.
func (o *options) before(h header) string {
	if o.cookie == "" {
		return ""
	}
	r := http.Request{Header: http.Header{"Cookie": h.Values("Cookie")}}
	c, err := r.Cookie(o.cookie)
	if err != nil {
		return ""
	}
	return c.Value
}

// resolve finds the addresses behind a backend and how they are spoken to.
func resolve(b backend, svc *corev1.Service, slices []*discoveryv1.EndpointSlice) ([]netip.AddrPort, protocol, error) {
	if svc == nil {
		return nil, plain, fmt.Errorf("service %s does not exist", b.service)
	}
	for _, p := range svc.Spec.Ports {
		if b.port.Name != "" && p.Name == b.port.Name || b.port.Name == "" && p.Port == b.port.Number {
			return network.Serving(svc, p, slices), protocolOf(p.AppProtocol), nil
		}
	}
	return nil, plain, fmt.Errorf("service %s has no port %s", b.service, portText(b))
}

func portText(b backend) string {
	if b.port.Name != "" {
		return b.port.Name
	}
	return fmt.Sprint(b.port.Number)
}

// protocolOf reads a port's appProtocol (KEP-3726).
func protocolOf(app *string) protocol {
	if app == nil {
		return plain
	}
	switch *app {
	case "kubernetes.io/h2c", "grpc", "h2c":
		return cleartext
	case "https", "HTTPS":
		return encrypted
	}
	return plain
}
