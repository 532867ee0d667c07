// Package relay carries connections and datagrams from a port to one of several
// addresses, in user space. Where they go may change at any time; what is under way
// goes on, but for datagrams to where nobody is any more.
package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// dialTimeout is for one address; there may be others to try.
	dialTimeout = 3 * time.Second
	// acceptPause is when to look again if no descriptors are left for a connection.
	acceptPause = 50 * time.Millisecond
	// udpIdle ends a client's flow; the kernel forgets a flow with answers after 120 s.
	udpIdle = 2 * time.Minute
	// udpClients bounds what one port keeps: any datagram makes a flow.
	udpClients = 4096
)

// Dial makes a connection to an address that Way gave.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Way says where a client's connections go: the addresses to try, in this order; none
// refuses them. It may be called from several goroutines.
type Way func(client netip.AddrPort) []netip.AddrPort

// Listener is a port that is carried from, until it is closed or its context ends.
type Listener interface {
	// Lead changes where connections go from now on.
	Lead(Way)
	// Close closes the port. Connections under way go on; flows of datagrams end.
	Close() error
}

// route is where connections go, and how.
type route struct {
	way  atomic.Pointer[Way]
	dial Dial
}

// Lead implements Listener.
func (r *route) Lead(w Way) { r.way.Store(&w) }

func (r *route) to(client netip.AddrPort) []netip.AddrPort { return (*r.way.Load())(client) }

// reach dials the addresses one after the other until one answers.
func (r *route) reach(ctx context.Context, network string, client netip.AddrPort) (net.Conn, error) {
	errs := []error{errors.New("no node has a ready endpoint")}
	for _, to := range r.to(client) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		c, err := r.dial(ctx, network, to.String())
		cancel()
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

type tcpListener struct {
	*net.TCPListener
	route
	ctx context.Context
}

// TCP carries the connections of a listener.
func TCP(ctx context.Context, l *net.TCPListener, dial Dial, w Way) Listener {
	t := &tcpListener{ctx: ctx, TCPListener: l, route: route{dial: dial}}
	t.Lead(w)
	go t.serve()
	return t
}

func (l *tcpListener) serve() {
	defer context.AfterFunc(l.ctx, func() { _ = l.Close() })()
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(acceptPause)
			continue
		}
		go l.carry(c)
	}
}

// carry is one connection. One that leads nowhere is reset, as the nodes refuse it.
func (l *tcpListener) carry(client *net.TCPConn) {
	defer client.Close()
	server, err := l.reach(l.ctx, "tcp", client.RemoteAddr().(*net.TCPAddr).AddrPort())
	if err != nil {
		_ = client.SetLinger(0)
		return
	}
	defer server.Close()
	defer context.AfterFunc(l.ctx, func() {
		_ = client.Close()
		_ = server.Close()
	})()
	Join(client, server)
}

// Join copies between two connections, both ways, until both have ended or one fails.
func Join(a, b net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() { pour(a, b) })
	wg.Go(func() { pour(b, a) })
	wg.Wait()
}

// pour copies until the source ends, and passes the end on. A failure ends both
// directions.
func pour(dst, src net.Conn) {
	_, err := io.Copy(dst, src)
	if c, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
		_ = c.CloseWrite()
		return
	}
	_ = dst.Close()
	_ = src.Close()
}

type udpListener struct {
	route
	ctx  context.Context
	conn *net.UDPConn

	mu      sync.Mutex
	clients map[netip.AddrPort]*udpClient
}

// udpClient is the flow of one client.
type udpClient struct{ server net.Conn }

// UDP carries the datagrams of a socket, and the answers back.
func UDP(ctx context.Context, conn *net.UDPConn, dial Dial, w Way) Listener {
	l := &udpListener{ctx: ctx, conn: conn, route: route{dial: dial}, clients: map[netip.AddrPort]*udpClient{}}
	l.Lead(w)
	go l.serve()
	return l
}

// Close ends the port with all its flows.
func (l *udpListener) Close() error { return l.conn.Close() }

// Lead ends the flows that go where nobody is any more: the next datagram of their
// clients makes another.
func (l *udpListener) Lead(w Way) {
	l.route.Lead(w)
	l.mu.Lock()
	defer l.mu.Unlock()
	for client, c := range l.clients {
		if !l.leads(client, c.server) {
			delete(l.clients, client)
			_ = c.server.Close()
		}
	}
}

// leads says whether a client's way still has the address that a flow of it goes to.
func (l *udpListener) leads(client netip.AddrPort, server net.Conn) bool {
	at := server.RemoteAddr().(*net.UDPAddr).AddrPort()
	return slices.Contains(l.to(client), netip.AddrPortFrom(at.Addr().Unmap(), at.Port()))
}

func (l *udpListener) serve() {
	defer context.AfterFunc(l.ctx, func() { _ = l.Close() })()
	defer l.end()
	buf := make([]byte, 64<<10)
	for {
		n, from, err := l.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // what an earlier answer met
		}
		if c := l.client(from); c != nil {
			_ = c.server.SetReadDeadline(time.Now().Add(udpIdle))
			_, _ = c.server.Write(buf[:n])
		}
	}
}

// client finds or makes the flow of a client, nil when there is none to be had: then
// the datagram is lost, as datagrams may be.
func (l *udpListener) client(from netip.AddrPort) *udpClient {
	l.mu.Lock()
	c, full := l.clients[from], len(l.clients) >= udpClients
	l.mu.Unlock()
	if c != nil || full {
		return c
	}
	server, err := l.reach(l.ctx, "udp", from)
	if err != nil {
		return nil
	}
	c = &udpClient{server}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.leads(from, server) { // Lead came between, and has not seen this flow
		_ = server.Close()
		return nil
	}
	l.clients[from] = c
	go l.answer(from, c)
	return c
}

// answer carries datagrams back until the flow has rested long enough.
func (l *udpListener) answer(to netip.AddrPort, c *udpClient) {
	defer func() {
		_ = c.server.Close()
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.clients[to] == c {
			delete(l.clients, to)
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := c.server.Read(buf)
		if err != nil {
			return
		}
		_ = c.server.SetReadDeadline(time.Now().Add(udpIdle))
		if _, err := l.conn.WriteToUDPAddrPort(buf[:n], to); err != nil {
			return
		}
	}
}

func (l *udpListener) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.clients {
		_ = c.server.Close()
	}
}
