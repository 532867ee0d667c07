// Package userspace is the service proxy for kernels without nftables: it listens at the
// addresses of services and carries what comes to their endpoints. Endpoints see the
// node's address in place of their clients', a node without an endpoint refuses what it
// should drop, SCTP is not carried, and a process of the node that listens on all
// addresses cannot have the port of a service.
package userspace

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/relay"
)

// Proxy does what package network's Proxy does. All of its methods may be called at the
// same time.
type Proxy struct {
	ctx      context.Context
	end      context.CancelFunc
	netNS    string
	services []netip.Prefix
	dial     relay.Dial
	h        *netlink.Handle

	mu   sync.Mutex
	open map[key]*port
}

// key names a port of an address.
type key struct {
	ip    netip.Addr
	proto network.Protocol
	port  uint16
}

// port is one that is open.
type port struct {
	service  network.Service
	listener relay.Listener
	affinity *affinity
}

// New returns a Proxy for the namespace; the empty path is the caller's own. services are
// the ranges of the services' addresses. Nothing is carried before the first Apply.
func New(netNS string, services []netip.Prefix) (*Proxy, error) {
	p := &Proxy{netNS: netNS, services: services, open: map[key]*port{}, dial: (&net.Dialer{}).DialContext}
	if netNS != "" {
		p.dial = network.DialIn(netNS)
	}
	p.ctx, p.end = context.WithCancel(context.Background())
	err := network.InNetNS(netNS, func() error {
		var err error
		if p.h, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return err
		}
		// All addresses of services are the node's own: one can listen there, and those
		// where nobody does refuse by themselves.
		for _, c := range services {
			r, err := routeTo(p.h, c)
			if err != nil {
				return err
			}
			if err := p.h.RouteReplace(r); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		p.end()
		return nil, fmt.Errorf("service proxy in user space: %w", err)
	}
	return p, nil
}

// routeTo is the route that makes the services' addresses local.
func routeTo(h *netlink.Handle, c netip.Prefix) (*netlink.Route, error) {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find loopback: %w", err)
	}
	return &netlink.Route{
		LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
		Dst: &net.IPNet{IP: c.Addr().AsSlice(), Mask: net.CIDRMask(c.Bits(), c.Addr().BitLen())},
	}, nil
}

// Remove takes out of a namespace what a Proxy has left there.
func Remove(netNS string, services []netip.Prefix) error {
	err := network.InNetNS(netNS, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		for _, c := range services {
			r, err := routeTo(h, c)
			if err != nil {
				return err
			}
			if err := h.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("service proxy in user space: %w", err)
	}
	return nil
}

// Close closes all ports and ends what is under way.
func (p *Proxy) Close() error {
	p.end()
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, o := range p.open {
		_ = o.listener.Close()
		delete(p.open, k)
	}
	p.h.Close()
	return nil
}

// Apply makes open what desired says, and nothing else. The error is of ports that could
// not be opened, and may be later.
func (p *Proxy) Apply(desired network.State) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	own, err := p.addresses()
	if err != nil {
		return fmt.Errorf("service proxy in user space: %w", err)
	}
	wanted := map[key]network.Service{}
	for _, s := range desired.Services {
		if s.Local || s.Proto == network.SCTP || len(s.Endpoints)+len(s.Inside) == 0 {
			continue
		}
		at := []netip.Addr{s.IP}
		if s.IP.IsUnspecified() {
			at = own
		}
		for _, ip := range at {
			if k := (key{ip, s.Proto, s.Port}); ip.Is4() == s.IP.Is4() && (ip == s.IP || wanted[k].IP != ip) {
				wanted[k] = s // an address of its own comes before one that stands for all
			}
		}
	}
	for k, o := range p.open {
		if _, ok := wanted[k]; !ok {
			_ = o.listener.Close()
			delete(p.open, k)
		}
	}
	var errs []error
	for k, s := range wanted {
		o := p.open[k]
		switch {
		case o == nil:
			o = &port{service: s, affinity: &affinity{}}
			l, err := p.listen(k, p.way(s, o.affinity))
			if err != nil {
				errs = append(errs, fmt.Errorf("service proxy in user space: %w", err))
				continue
			}
			o.listener, p.open[k] = l, o
		case !reflect.DeepEqual(o.service, s):
			o.service = s
			o.listener.Lead(p.way(s, o.affinity))
		}
	}
	return errors.Join(errs...)
}

// addresses are the node's own. A port of the node is opened at each of them rather than
// at all at once: those come before whoever listens at all addresses, the node's Ingress.
func (p *Proxy) addresses() ([]netip.Addr, error) {
	list, err := p.h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		ip = ip.Unmap()
		isService := slices.ContainsFunc(p.services, func(c netip.Prefix) bool { return c.Contains(ip) }) // that of names
		if ok && !isService && !ip.IsLinkLocalUnicast() {
			out = append(out, ip)
		}
	}
	return out, nil
}

func (p *Proxy) listen(k key, w relay.Way) (relay.Listener, error) {
	at := netip.AddrPortFrom(k.ip, k.port).String()
	if k.proto == network.UDP {
		var conn net.PacketConn
		err := network.InNetNS(p.netNS, func() (err error) {
			conn, err = shared.ListenPacket(p.ctx, "udp", at)
			return err
		})
		if err != nil {
			return nil, err
		}
		return relay.UDP(p.ctx, conn.(*net.UDPConn), p.dial, w), nil
	}
	var l net.Listener
	err := network.InNetNS(p.netNS, func() (err error) {
		l, err = Listen(p.ctx, at)
		return err
	})
	if err != nil {
		return nil, err
	}
	return relay.TCP(p.ctx, l.(*net.TCPListener), p.dial, w), nil
}

// Listen opens a TCP port beside which a Proxy can open the same port of single
// addresses.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	return shared.Listen(ctx, "tcp", addr)
}

// way is where the clients of a service go.
func (p *Proxy) way(s network.Service, known *affinity) relay.Way {
	return func(client netip.AddrPort) []netip.AddrPort {
		ip := client.Addr().Unmap()
		if len(s.Sources) > 0 && !slices.ContainsFunc(s.Sources, func(r netip.Prefix) bool { return r.Contains(ip) }) {
			return nil
		}
		to := slices.Clone(s.Endpoints)
		if s.NodeLocal && p.isInside(ip) {
			to = slices.Clone(s.Inside)
		}
		rand.Shuffle(len(to), func(i, j int) { to[i], to[j] = to[j], to[i] })
		if s.Affinity > 0 && len(to) > 0 {
			known.first(ip, to, s.Affinity, time.Now())
		}
		return to
	}
}

// isInside says that a client is the node itself, or a pod of it.
func (p *Proxy) isInside(ip netip.Addr) bool {
	routes, err := p.h.RouteGet(ip.AsSlice())
	if err != nil || len(routes) == 0 {
		return false
	}
	link, err := p.h.LinkByIndex(routes[0].LinkIndex)
	return err == nil && (link.Attrs().Name == "lo" || strings.HasPrefix(link.Attrs().Name, network.PodLinks))
}

// Installed is what is open, as a Proxy of nftables has it in the kernel.
func (p *Proxy) Installed() ([]network.Installed, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	open := map[key]network.Service{}
	for _, o := range p.open {
		open[key{o.service.IP, o.service.Proto, o.service.Port}] = o.service
	}
	out := make([]network.Installed, 0, len(open))
	for k, s := range open {
		i := network.Installed{IP: k.ip, Port: k.port, Proto: k.proto, Endpoints: s.Endpoints}
		if s.NodeLocal {
			i.Inside = s.Inside
		}
		out = append(out, i)
	}
	return out, nil
}
