// Package healthcheck answers load balancers that ask a node whether it has
// endpoints of a service: at the service's healthCheckNodePort, with 200 or 503 and
// a few words of JSON, as kube-proxy does.
package healthcheck

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"gitk8s.dev/gitk8s/runtime/network"
)

// Check is what is said of a service.
type Check struct {
	Namespace, Name string
	// Endpoints of it on this node are ready.
	Endpoints int
}

// Desired computes which ports answer what on a node.
func Desired(node string, services []*corev1.Service, endpointSlices []*discoveryv1.EndpointSlice) map[uint16]Check {
	bySvc := network.SlicesByService(endpointSlices)
	out := map[uint16]Check{}
	for _, svc := range services {
		if svc.Spec.Type != corev1.ServiceTypeLoadBalancer || svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal || svc.Spec.HealthCheckNodePort == 0 {
			continue
		}
		ready := map[string]bool{}
		for _, s := range bySvc[svc.Namespace+"/"+svc.Name] {
			if (s.AddressType == discoveryv1.AddressTypeIPv6) != network.FirstIsIPv6(svc) {
				continue // the same pods once more
			}
			for _, e := range s.Endpoints {
				isHere := e.NodeName != nil && *e.NodeName == node
				if isReady := e.Conditions.Ready == nil || *e.Conditions.Ready; isHere && isReady && len(e.Addresses) > 0 {
					ready[e.Addresses[0]] = true
				}
			}
		}
		out[uint16(svc.Spec.HealthCheckNodePort)] = Check{Namespace: svc.Namespace, Name: svc.Name, Endpoints: len(ready)}
	}
	return out
}

// Server listens on the ports.
type Server struct {
	netNS string

	mu   sync.Mutex
	open map[uint16]*port
}

type port struct {
	check  atomic.Pointer[Check]
	server *http.Server
}

// New returns a Server that listens in a network namespace; the empty path is the
// caller's own.
func New(netNS string) *Server { return &Server{netNS: netNS, open: map[uint16]*port{}} }

// Apply makes the ports answer what want says, and no other. A port that cannot be
// opened may be later.
func (s *Server) Apply(want map[uint16]Check) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for number, p := range s.open {
		if _, wanted := want[number]; !wanted {
			_ = p.server.Close()
			delete(s.open, number)
		}
	}
	var errs []error
	for number, check := range want {
		p := s.open[number]
		if p == nil {
			var err error
			if p, err = s.listen(number); err != nil {
				errs = append(errs, fmt.Errorf("health check of %s/%s: %w", check.Namespace, check.Name, err))
				continue
			}
			s.open[number] = p
		}
		p.check.Store(&check)
	}
	return errors.Join(errs...)
}

// Close closes all ports.
func (s *Server) Close() { _ = s.Apply(nil) }

func (s *Server) listen(number uint16) (*port, error) {
	l, err := network.ListenIn(s.netNS, "tcp", net.JoinHostPort("", strconv.Itoa(int(number))))
	if err != nil {
		return nil, err
	}
	p := &port{}
	p.check.Store(&Check{})
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	go func() { _ = p.server.Serve(l) }() // it ends when it is closed
	return p, nil
}

// ServeHTTP implements http.Handler.
func (p *port) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	c := p.check.Load()
	var body struct {
		Service struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		} `json:"service"`
		LocalEndpoints      int  `json:"localEndpoints"`
		ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
	}
	body.Service.Namespace, body.Service.Name = c.Namespace, c.Name
	body.LocalEndpoints, body.ServiceProxyHealthy = c.Endpoints, true
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(c.Endpoints))
	if c.Endpoints == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(body)
}
