package expose

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
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

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// way is where connections go. It may change at any time.
type way struct {
	to atomic.Pointer[[]netip.AddrPort]
}

func (w *way) lead(to []netip.AddrPort) { w.to.Store(&to) }

// reach dials the addresses in random order until one answers.
func (w *way) reach(ctx context.Context, dial dialFunc, network string) (net.Conn, error) {
	to := *w.to.Load()
	errs := []error{errors.New("no node has a ready endpoint")}
	for _, i := range rand.Perm(len(to)) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		c, err := dial(ctx, network, to[i].String())
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
	way
	ctx  context.Context
	dial dialFunc
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
	server, err := l.reach(l.ctx, l.dial, "tcp")
	if err != nil {
		_ = client.SetLinger(0)
		return
	}
	defer server.Close()
	defer context.AfterFunc(l.ctx, func() {
		_ = client.Close()
		_ = server.Close()
	})()
	var wg sync.WaitGroup
	wg.Go(func() { pour(server, client) })
	wg.Go(func() { pour(client, server) })
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
	way
	ctx  context.Context
	conn *net.UDPConn
	dial dialFunc

	mu      sync.Mutex
	clients map[netip.AddrPort]*udpClient
}

// udpClient is the flow of one client.
type udpClient struct{ server net.Conn }

// Close ends the port with all its flows.
func (l *udpListener) Close() error { return l.conn.Close() }

// lead ends the flows that go where nobody is any more.
func (l *udpListener) lead(to []netip.AddrPort) {
	l.way.lead(to)
	there := map[string]bool{}
	for _, a := range to {
		there[a.String()] = true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.clients {
		if !there[c.server.RemoteAddr().String()] {
			_ = c.server.Close()
		}
	}
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
	server, err := l.reach(l.ctx, l.dial, "udp")
	if err != nil {
		return nil
	}
	c = &udpClient{server}
	l.mu.Lock()
	l.clients[from] = c
	l.mu.Unlock()
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
