package ingress

import (
	"context"
	"fmt"
	"net"
)

// Doors are the ports that listeners of Gateways have besides those of Ingresses. Each
// is open while a listener is served at it.
type Doors struct {
	Proxy *Proxy
	// Listen opens a port.
	Listen func(port int) (net.Listener, error)

	open   map[int32]*door
	ending map[int32]*door // requests under way may still need them
}

type door struct {
	tls   bool
	end   context.CancelFunc
	ended chan struct{}
}

// Apply opens and closes doors as a table asks for. It and Close are called one at a
// time.
func (d *Doors) Apply(ctx context.Context, t *Table) {
	if d.open == nil {
		d.open, d.ending = map[int32]*door{}, map[int32]*door{}
	}
	wanted := map[int32]bool{} // and whether with TLS
	for port, p := range t.ports {
		if port != portHTTP && port != portHTTPS {
			wanted[port] = p.tls
		}
	}
	for port, o := range d.open {
		if withTLS, ok := wanted[port]; !ok || withTLS != o.tls {
			o.end()
			d.ending[port] = o
			delete(d.open, port)
		}
	}
	for port, withTLS := range wanted {
		if d.open[port] == nil {
			ctx, cancel := context.WithCancel(ctx)
			o := &door{tls: withTLS, end: cancel, ended: make(chan struct{})}
			d.open[port] = o
			go d.serve(ctx, port, o, d.ending[port])
			delete(d.ending, port)
		}
	}
}

// Close closes all doors, and returns when the ports are free.
func (d *Doors) Close() {
	for _, o := range d.open {
		o.end()
	}
	for _, all := range []map[int32]*door{d.open, d.ending} {
		for _, o := range all {
			<-o.ended
		}
		clear(all)
	}
}

// serve serves at a port, once the door that was there before has let it go.
func (d *Doors) serve(ctx context.Context, port int32, o, before *door) {
	defer close(o.ended)
	if before != nil {
		<-before.ended
	}
	untilServed(ctx, fmt.Sprintf("port %d of a Gateway is not served, will retry", port), func() error {
		l, err := d.Listen(int(port))
		if err != nil {
			return err
		}
		return d.Proxy.servePort(ctx, port, o.tls, l)
	})
}
