// Package expose opens services on the machine that a cluster of network namespaces
// runs on: a listener for each node port and each port of a load balancer, whose
// connections are carried to a node. In: Services, EndpointSlices and Nodes; what is
// open follows from them alone (Decide).
package expose

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/runtime/network"
)

// reasonNotOpen is the reason of events that say that a port is not open here.
const reasonNotOpen = "PortNotOpen"

// Exposer keeps the listeners.
type Exposer struct {
	address netip.Addr
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	events  record.EventRecorder

	mu   sync.Mutex
	open map[Port]listener
	said map[string]bool // problems that there is an event of
}

// listener is an open port.
type listener interface {
	lead(to []netip.AddrPort)
	Close() error
}

// New returns an Exposer that listens on an address of the machine, and reaches the
// nodes with dial.
func New(address netip.Addr, dial func(ctx context.Context, network, address string) (net.Conn, error), events record.EventRecorder) *Exposer {
	return &Exposer{address: address, dial: dial, events: events, open: map[Port]listener{}, said: map[string]bool{}}
}

// Apply makes open what the plan says, and nothing else. Connections under way go on,
// until ctx ends. The error is of ports that could not be opened and may be later;
// there is an event of each.
func (e *Exposer) Apply(ctx context.Context, plan Plan) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for port, l := range e.open {
		if _, wanted := plan.Ways[port]; !wanted {
			_ = l.Close()
			delete(e.open, port)
		}
	}
	problems := map[string]bool{}
	tell := func(svc *corev1.Service, format string, args ...any) {
		text := fmt.Sprintf(format, args...)
		key := string(svc.UID) + " " + text
		if problems[key] = true; !e.said[key] {
			e.events.Event(svc, corev1.EventTypeWarning, reasonNotOpen, text)
		}
	}
	var errs []error
	for _, port := range slices.SortedFunc(maps.Keys(plan.Ways), byNumber) {
		way := plan.Ways[port]
		if e.open[port] == nil {
			l, err := e.listen(ctx, port, way.To)
			if err != nil {
				tell(way.Service, "port %s is not open on this machine: %v; it is tried again", port, err)
				errs = append(errs, err)
				continue
			}
			e.open[port] = l
			continue
		}
		e.open[port].lead(way.To)
	}
	for _, c := range plan.Taken {
		tell(c.Service, "port %s is not open on this machine for this service: %s/%s has it", c.Port, c.Older.Namespace, c.Older.Name)
	}
	e.said = problems
	return errors.Join(errs...)
}

func byNumber(a, b Port) int {
	if a.Number != b.Number {
		return int(a.Number) - int(b.Number)
	}
	return int(a.Proto) - int(b.Proto)
}

func (e *Exposer) listen(ctx context.Context, port Port, to []netip.AddrPort) (listener, error) {
	at := netip.AddrPortFrom(e.address, port.Number)
	if port.Proto == network.UDP {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return nil, err
		}
		l := &udpListener{ctx: ctx, conn: conn, dial: e.dial, clients: map[netip.AddrPort]*udpClient{}}
		l.lead(to)
		go l.serve()
		return l, nil
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	t := &tcpListener{ctx: ctx, TCPListener: l, dial: e.dial}
	t.lead(to)
	go t.serve()
	return t, nil
}

// Close closes all ports.
func (e *Exposer) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range e.open {
		_ = l.Close()
	}
	clear(e.open)
}
