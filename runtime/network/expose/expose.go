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
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/relay"
)

// reasonNotOpen is the reason of events that say that a port is not open here.
const reasonNotOpen = "PortNotOpen"

// Exposer keeps the listeners.
type Exposer struct {
	address netip.Addr
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	events  record.EventRecorder

	mu   sync.Mutex
	open map[Port]relay.Listener
	said map[string]bool // problems that there is an event of
}

// New returns an Exposer that listens on an address of the machine, and reaches the
// nodes with dial.
func New(address netip.Addr, dial func(ctx context.Context, network, address string) (net.Conn, error), events record.EventRecorder) *Exposer {
	return &Exposer{address: address, dial: dial, events: events, open: map[Port]relay.Listener{}, said: map[string]bool{}}
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
		e.open[port].Lead(anyOf(way.To))
	}
	for _, c := range plan.Taken {
		tell(c.Service, "port %s is not open on this machine for this service: %s/%s has it", c.Port, c.Older.Namespace, c.Older.Name)
	}
	for _, n := range plan.NotCarried {
		tell(n.Service, "port %s is not open on this machine, to which only TCP and UDP are carried; it is at the nodes' own addresses", n.Port)
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

func (e *Exposer) listen(ctx context.Context, port Port, to []netip.AddrPort) (relay.Listener, error) {
	at := netip.AddrPortFrom(e.address, port.Number)
	if port.Proto == network.UDP {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return nil, err
		}
		return relay.UDP(ctx, conn, e.dial, anyOf(to)), nil
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	return relay.TCP(ctx, l, e.dial, anyOf(to)), nil
}

// anyOf is all of the addresses, in random order.
func anyOf(to []netip.AddrPort) relay.Way {
	return func(netip.AddrPort) []netip.AddrPort {
		out := slices.Clone(to)
		rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
		return out
	}
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
