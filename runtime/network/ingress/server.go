package ingress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Bounds on what a stranger may cost: a client that sends its headers slowly is let
// go, and so is a connection with nothing to say. See also stall.go.
const (
	headerTimeout  = 10 * time.Second
	maxHeaderBytes = 64 << 10
	clientIdle     = 2 * time.Minute
	// maxStreams bounds the requests that one HTTP/2 connection has under way.
	maxStreams = 250
	// drain is how long requests that are under way may take when the server ends.
	drain = 10 * time.Second
	// retryAccept is when the next connection is waited for after one could not be taken,
	// as when there are too many open files.
	retryAccept = 50 * time.Millisecond
)

// Serve answers on the two listeners, of which the second speaks TLS, until ctx ends;
// either may be nil. It returns when both have ended.
func (p *Proxy) Serve(ctx context.Context, plainText, withTLS net.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	if plainText != nil {
		p.httpPort.Store(int32(plainText.Addr().(*net.TCPAddr).Port))
		g.Go(func() error { return p.servePort(ctx, portHTTP, false, plainText) })
	}
	if withTLS != nil {
		p.httpsPort.Store(int32(withTLS.Addr().(*net.TCPAddr).Port))
		g.Go(func() error { return p.servePort(ctx, portHTTPS, true, withTLS) })
	}
	return g.Wait()
}

// servePort answers on a listener, which speaks TLS or not, by what the table has for a
// port, until ctx ends.
func (p *Proxy) servePort(ctx context.Context, port int32, withTLS bool, l net.Listener) error {
	t, ok := l.(*net.TCPListener)
	if !ok {
		return errors.Join(fmt.Errorf("ingress: %T is no TCP listener", l), l.Close())
	}
	return p.newServer(port, withTLS, l.Addr()).run(ctx, t)
}

func (p *Proxy) newServer(port int32, withTLS bool, addr net.Addr) *server {
	s := &server{proxy: p, port: port, open: map[*clientConn]struct{}{}}
	if withTLS {
		s.tls = &tls.Config{
			MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
			GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) { return p.certificate(port, hello) },
		}
	}
	s.handed = &handed{conns: make(chan net.Conn), closed: make(chan struct{}), addr: addr}
	s.fallback = s.newFallback()
	return s
}

// server answers at one port. A connection belongs to a clientConn first, which answers
// plain requests in HTTP/1.1; with the first request of another kind it goes over, for
// good, to net/http, which knows everything else: HTTP/2, large bodies, WebSocket.
type server struct {
	proxy    *Proxy
	port     int32
	tls      *tls.Config // nil for none
	fallback *http.Server
	handed   *handed

	loops    []*loop
	entered  atomic.Uint32 // loops, by turns
	watcher  watcher
	draining atomic.Bool
	running  sync.WaitGroup
	mu       sync.Mutex
	open     map[*clientConn]struct{}
}

// tlsKey is where a request finds what net/http cannot see: the TLS of a connection that
// has been handed over.
type tlsKey struct{}

// newFallback makes the server of what is handed over.
func (s *server) newFallback() *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true) // gRPC without TLS
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if state, ok := r.Context().Value(tlsKey{}).(*tls.ConnectionState); ok {
				r.TLS = state
			}
			s.proxy.serveAt(s.port, w, r)
		}),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if h, ok := c.(*handedConn); ok && h.tls != nil {
				return context.WithValue(ctx, tlsKey{}, h.tls)
			}
			return ctx
		},
		ReadHeaderTimeout: s.proxy.headerTimeout(), IdleTimeout: clientIdle, MaxHeaderBytes: maxHeaderBytes, Protocols: protocols,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams, WriteByteTimeout: s.proxy.stall},
		// What clients do wrong is not this server's error.
		ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
}

func (p *Proxy) headerTimeout() time.Duration { return min(headerTimeout, p.stall) }

// run answers on a listener until ctx ends.
func (s *server) run(ctx context.Context, l *net.TCPListener) error {
	fallback := make(chan error, 1)
	go func() { fallback <- s.fallback.Serve(s.handed) }()
	err := s.take(ctx, l)
	s.drain()
	if e := <-fallback; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}

// take has loops take connections until ctx ends, and closes the listener.
func (s *server) take(ctx context.Context, l *net.TCPListener) error {
	for range s.proxy.loops {
		o, err := newLoop(&s.proxy.seats)
		if err == nil {
			s.loops = append(s.loops, o)
			err = o.listen(l, s.begin)
		}
		if err != nil {
			for _, o := range s.loops {
				o.close()
			}
			return errors.Join(err, l.Close())
		}
	}
	end := context.AfterFunc(ctx, func() {
		s.endIdle()
		for _, o := range s.loops {
			o.end()
		}
	})
	defer end()
	var all sync.WaitGroup
	for _, o := range s.loops {
		all.Go(o.run)
	}
	err := l.Close() // they have it
	all.Wait()
	return err
}

// begin begins to serve a connection in a loop.
func (s *server) begin(o *loop, conn *loopConn, from netip.AddrPort) *task {
	c := &clientConn{Conn: conn, sock: conn, srv: s, remote: from}
	s.mu.Lock()
	s.open[c] = struct{}{}
	s.mu.Unlock()
	s.running.Add(1)
	return s.serveIn(o, c)
}

// serveIn makes the task of a loop that serves a connection.
func (s *server) serveIn(o *loop, c *clientConn) *task {
	t := newTask(o, c.sock, func() { s.serve(c) })
	t.letGo = func() {
		if c.asking {
			s.watcher.add(c)
		}
	}
	c.task = t
	return t
}

// enter has a loop go on with a connection. If that fails, it is served as before.
func (s *server) enter(c *clientConn) bool {
	o := s.loops[int(s.entered.Add(1))%len(s.loops)]
	if err := c.sock.enter(o); err != nil {
		slog.Debug("ingress: a connection stays outside of the loops", "client", c.remote, "error", err)
		return false
	}
	o.admit(s.serveIn(o, c))
	return true
}

// serve has a connection until it ends, is handed over, or has entered a loop, which goes on
// with it by calling serve.
func (s *server) serve(c *clientConn) {
	gone := false
	defer func() {
		if gone {
			return
		}
		if fault := recover(); fault != nil { // of one request, and no other's
			slog.Error("ingress: a request was broken off", "client", c.remote, "fault", fault, "stack", string(debug.Stack()))
			_ = c.Close()
		}
		s.mu.Lock()
		delete(s.open, c)
		s.mu.Unlock()
		s.running.Done()
	}()
	if c.in == nil {
		if s.tls != nil {
			http2, err := c.handshake(s.tls)
			if err != nil {
				slog.Debug("ingress: no TLS", "client", c.remote, "error", err)
				_ = c.Close()
				return
			}
			if http2 {
				c.task.leave()
				s.handed.take(c.Conn)
				return
			}
		}
		c.in = readers.Get().(*bufio.Reader)
		c.in.Reset(c.Conn)
	}
	becomes := c.serve()
	for becomes == enterLoop {
		if gone = s.enter(c); gone {
			return
		}
		becomes = c.serve()
	}
	if becomes == handOver {
		c.task.leave()
		_ = c.SetDeadline(time.Time{})
		s.handed.take(&handedConn{Conn: c.Conn, tls: c.tls, unread: c.unread()})
	} else {
		_ = c.Close()
	}
	c.in.Reset(nil)
	readers.Put(c.in)
}

// endIdle ends the connections that wait for a request, and the others with their next answer.
func (s *server) endIdle() {
	s.draining.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		c.wakeIdle()
	}
}

// drain ends the server: requests that are under way have time to end.
func (s *server) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	s.endIdle()
	var both sync.WaitGroup
	both.Go(func() {
		if s.fallback.Shutdown(ctx) != nil {
			_ = s.fallback.Close()
		}
	})
	late := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.open {
			_ = c.sock.Close()
		}
	})
	s.running.Wait()
	late()
	both.Wait()
}

// handed is the listener of the connections that are handed over.
type handed struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
	addr   net.Addr
}

func (h *handed) take(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.closed:
		_ = c.Close()
	}
}

// Accept implements net.Listener.
func (h *handed) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handed) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr implements net.Listener.
func (h *handed) Addr() net.Addr { return h.addr }

// handedConn begins with what has been read of it, but not been answered.
type handedConn struct {
	net.Conn
	tls    *tls.ConnectionState
	unread []byte
}

// Read implements io.Reader.
func (h *handedConn) Read(b []byte) (int, error) {
	if len(h.unread) > 0 {
		n := copy(b, h.unread)
		h.unread = h.unread[n:]
		return n, nil
	}
	return h.Conn.Read(b)
}

// CloseWrite lets net/http wait for a client that is still sending to see the answer.
func (h *handedConn) CloseWrite() error {
	if c, ok := h.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

// handshake begins TLS, and says whether HTTP/2 is spoken on it.
func (c *clientConn) handshake(config *tls.Config) (http2 bool, err error) {
	t := tls.Server(c.Conn, config)
	if err := t.SetDeadline(time.Now().Add(c.srv.proxy.headerTimeout())); err != nil {
		return false, err
	}
	if err := t.Handshake(); err != nil {
		var other tls.RecordHeaderError
		if errors.As(err, &other) && other.Conn != nil && bytes.Contains([]byte("GET / HEAD POST PUT / OPTIO DELET PATCH"), other.RecordHeader[:]) {
			_, _ = io.WriteString(other.Conn, "HTTP/1.0 400 Bad Request\r\n\r\nThis port is for HTTPS.\n")
		}
		return false, err
	}
	state := t.ConnectionState()
	c.Conn = t
	c.tls = &state
	return state.NegotiatedProtocol == "h2", t.SetDeadline(time.Time{})
}
