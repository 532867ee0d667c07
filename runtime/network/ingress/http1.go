package ingress

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// clientConn answers one request after the other, each in the goroutine that has read it:
// it sends the request to the pod, waits for the answer and passes it on, without waking
// anybody. That is what makes it quicker than net/http, whose server and client have
// four goroutines for it.
type clientConn struct {
	net.Conn // by which it is spoken to: sock, or TLS on it
	sock     *loopConn
	srv      *server
	remote   netip.AddrPort
	tls      *tls.ConnectionState // nil for none
	in       *bufio.Reader
	served   bool // a request
	task     *task
	asking   bool // a pod for an answer

	watched watched

	mu   sync.Mutex // of what drain looks at
	idle bool       // waits for the next request
}

// requestBuffer is what a plain request has to fit in, with its body.
const requestBuffer = 8 << 10

// readers lends what connections are read with.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, requestBuffer) }}

// unread is what has been read from the connection and is for the next reader.
func (c *clientConn) unread() []byte {
	b, _ := c.in.Peek(c.in.Buffered())
	return bytes.Clone(b)
}

// past is a deadline that ends a read that is under way.
var past = time.Unix(1, 0)

// wakeIdle ends the connection if it waits for a request.
func (c *clientConn) wakeIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.idle {
		_ = c.SetReadDeadline(past)
	}
}

// becomeIdle begins to wait for the next request, unless the server ends.
func (c *clientConn) becomeIdle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.srv.draining.Load() {
		return false
	}
	c.idle = true
	limit := clientIdle
	if !c.served {
		limit = c.srv.proxy.headerTimeout()
	}
	return c.SetReadDeadline(time.Now().Add(limit)) == nil
}

func (c *clientConn) awake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = false
}

// next waits for a request to be in c.in, whole if it is plain.
func (c *clientConn) next() (head, bool) {
	if !c.becomeIdle() {
		return head{}, false
	}
	for n, first := 1, true; ; first = false {
		if _, err := c.in.Peek(n); err != nil {
			return head{}, errors.Is(err, bufio.ErrBufferFull)
		}
		b, _ := c.in.Peek(c.in.Buffered())
		if first {
			c.awake()
		}
		if size := endOfHead(b); size >= 0 {
			h := plainHead(b[:size])
			return h, !h.plain || c.arrived(&h)
		}
		if first {
			_ = c.SetReadDeadline(time.Now().Add(c.srv.proxy.headerTimeout()))
		}
		n = len(b) + 1
	}
}

// arrived waits for the body of a plain request. One that is too large, or does not come
// soon, is none for here.
func (c *clientConn) arrived(h *head) bool {
	whole := h.size + h.length
	if whole <= c.in.Buffered() {
		return true
	}
	if whole > c.in.Size() {
		h.plain = false
		return true
	}
	_ = c.SetReadDeadline(time.Now().Add(usually))
	if _, err := c.in.Peek(whole); err != nil {
		h.plain = false
		return errors.Is(err, os.ErrDeadlineExceeded)
	}
	return true
}

// outcome is what becomes of a connection.
type outcome int

const (
	end       outcome = iota
	handOver          // to net/http: the next request, which is unread, is for it
	enterLoop         // what is asked comes soon, and is answered soon
)

// serve answers requests as long as that is for here.
func (c *clientConn) serve() outcome {
	for {
		waits := time.Now()
		h, ok := c.next()
		if !ok {
			return end
		}
		if !h.plain {
			return handOver
		}
		again, answered := c.answer(&h, time.Now())
		if !answered {
			return handOver
		}
		if !again {
			return end
		}
		c.served = true
		if !c.task.inLoop() && time.Since(waits) < usually {
			return enterLoop
		}
	}
}
