package ingress

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// workspace is what it takes to answer one request.
type workspace struct {
	request bytes.Buffer  // to the pod
	from    *bufio.Reader // the pod
	to      *bufio.Writer // the client
	chunk   [bufferSize]byte

	asked, answered fieldList
	memory          memory
}

// memory is what is made anew for each request, in memory that is used again.
type memory struct {
	turn     turn
	exchange exchange
	asked    http.Request
	local    local
	answer   http.Response
	content  content
}

var workspaces = sync.Pool{New: func() any {
	return &workspace{from: bufio.NewReaderSize(nil, requestBuffer), to: bufio.NewWriterSize(nil, requestBuffer)}
}}

// release gives a workspace back, without what it refers to.
func (ws *workspace) release() {
	ws.request.Reset()
	ws.from.Reset(nil)
	ws.to.Reset(nil)
	ws.asked.forget()
	ws.answered.forget()
	ws.memory = memory{}
	workspaces.Put(ws)
}

// answer answers the plain request that is in c.in, if it can. again is whether there may
// be another one.
func (c *clientConn) answer(h *head, began time.Time) (again, answered bool) {
	p := c.srv.proxy
	ws := workspaces.Get().(*workspace)
	defer ws.release()
	raw, _ := c.in.Peek(h.size + h.length)
	r, x, a := &ws.memory.asked, &ws.memory.exchange, &ws.memory.turn
	if ws.asked.plainRequest(raw[:h.size], h, r) != nil {
		return false, false // net/http says what is wrong
	}
	r.TLS = c.tls
	x.route, x.match = p.table.Load().route(c.srv.port, r, &ws.asked, hostOf(r.Host), cleanPath(r.URL.Path))
	if x.route != nil && x.route.pool != nil && x.route.spokenTo() != plain {
		return false, false
	}
	*a = turn{clientConn: c, workspace: ws, x: x, r: r, close: h.close}
	ws.to.Reset(a)
	a.run(raw[h.size:], h.size+h.length)
	counted := &p.metrics.lost
	if x.route != nil {
		counted = x.route.counts
	}
	counted.add(a.status, time.Since(began))
	if p.access != nil {
		r.RemoteAddr = c.remote.String()
		p.logAccess(r, &ws.asked, a.status, a.bytes, x, began)
	}
	// The last of it comes last: who has the whole answer may count on that it is counted, and
	// that the pod has one request less.
	if a.to.Flush() != nil {
		return false, true
	}
	return !a.close, true
}

// turn is one request and its answer.
type turn struct {
	*clientConn
	*workspace
	x      *exchange
	r      *http.Request // its header is in asked
	close  bool          // after it
	status int
	bytes  int64 // of the body

	deadline time.Time // of the pod's answer; zero for none
}

// Write implements io.Writer: it is what the workspace's writer writes to.
func (a *turn) Write(b []byte) (int, error) {
	if err := a.SetWriteDeadline(time.Now().Add(a.srv.proxy.stall)); err != nil {
		return 0, err
	}
	return a.Conn.Write(b)
}

// run answers, except for what is left in a.to. The body it is given is in a.in, from which
// it takes the request, of size bytes.
func (a *turn) run(body []byte, size int) {
	w := &a.memory.local
	if a.srv.proxy.answerHere(w, a.r, a.x) {
		_, _ = a.in.Discard(size)
		a.sayLocal(w)
		return
	}
	o := a.x.route.options
	a.x.before = o.before(&a.asked)
	if o.timeout > 0 && (o.whole || !isGRPC(&a.asked)) {
		a.deadline = time.Now().Add(o.timeout)
	}
	a.writeRequest(body)
	_, _ = a.in.Discard(size)
	a.asking = true
	if !a.task.inLoop() {
		a.srv.watcher.add(a.clientConn)
	}
	pod, err := a.send()
	if err == nil {
		err = a.exchange(pod)
	}
	a.asking = false
	gone := a.unwatch()
	switch {
	case err == nil:
	case a.status != 0:
		a.x.err, a.close = err, true // the client sees that it is broken off
	default:
		a.fail(err, gone)
	}
}

// fail says to the client what went wrong.
func (a *turn) fail(err error, gone bool) {
	if !a.deadline.IsZero() && !time.Now().Before(a.deadline) {
		a.x.expired.Store(true)
	}
	a.x.err = err
	code, text := a.x.failure(err, gone)
	if code == statusClientClosed {
		a.status, a.close = code, true
		return
	}
	w := &a.memory.local
	http.Error(w, text, code)
	a.sayLocal(w)
}

// writeRequest writes the request that the pod gets.
func (a *turn) writeRequest(body []byte) {
	h, host, u := &a.asked, a.r.Host, a.r.URL
	removeHopByHop(h)
	h.Del("Content-Length")
	sayForwarded(h, a.remote.Addr().String(), host, a.tls != nil)
	if action := a.x.route.action; action != nil {
		changed := *u
		u = &changed
		action.change(&host, u, h, a.x.match)
	}
	b := &a.request
	for _, s := range [...]string{a.r.Method, " ", u.RequestURI(), " HTTP/1.1\r\nHost: ", host, "\r\n"} {
		b.WriteString(s)
	}
	_ = h.Write(b) // to memory
	if len(body) > 0 || a.r.Method == http.MethodPost || a.r.Method == http.MethodPut || a.r.Method == http.MethodPatch {
		b.WriteString("Content-Length: ")
		b.Write(strconv.AppendInt(b.AvailableBuffer(), int64(len(body)), 10))
		b.WriteString("\r\n")
	}
	b.WriteString("\r\n")
	b.Write(body)
}

// send sends the request to an endpoint, and waits until it begins to answer.
func (a *turn) send() (*podConn, error) {
	t := a.srv.proxy.transport
	for tries, fresh := (tries{x: a.x}), false; ; {
		e, err := tries.next()
		if err != nil {
			return nil, err
		}
		pod, err := t.connect(e, fresh, replayable(a.r), a.deadline, a.task)
		if err != nil {
			if tries.failed(e, err) {
				continue
			}
			return nil, err
		}
		e.active.Add(1)
		if err = a.begin(pod); err == nil {
			a.x.sentTo = e
			return pod, nil
		}
		e.active.Add(-1)
		_ = pod.Close()
		switch {
		case !fresh && pod.used && replayable(a.r) && !errors.Is(err, os.ErrDeadlineExceeded):
			fresh = true // the pod has closed the connection, which was just not known yet
		case !tries.brokenOff(a.r, e, err):
			return nil, err
		}
	}
}

// replayable says that a request does no harm if it is done twice (RFC 9110, 9.2.1).
func replayable(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// begin sends the request to a pod and waits for the first byte of the answer.
func (a *turn) begin(pod *podConn) error {
	if !a.setPod(pod.Conn) {
		return net.ErrClosed
	}
	if err := pod.begin(a.deadline); err != nil {
		return err
	}
	if _, err := pod.Write(a.request.Bytes()); err != nil {
		return err
	}
	a.from.Reset(pod)
	_, err := a.from.Peek(1)
	return err
}

// exchange reads the pod's answer, and writes it, except for what is left in a.to. The
// connection to the pod is kept or closed.
func (a *turn) exchange(pod *podConn) error {
	defer a.x.sentTo.active.Add(-1)
	resp, h, err := a.finalHead()
	if err == nil && (resp.ContentLength < 0 || resp.ContentLength > int64(a.from.Buffered())) {
		err = pod.headRead(a.x.route.options.whole)
	}
	if err == nil {
		err = a.pass(resp, h)
	}
	if err != nil || resp.Close || a.from.Buffered() > 0 {
		_ = pod.Close()
		return err
	}
	a.setPod(nil)
	a.x.sentTo.idle.put(pod)
	return nil
}

// errUpgraded is an answer to what nobody asked for.
var errUpgraded = errors.New("the pod switched to another protocol unasked")

// finalHead reads the head of the pod's answer, with its header in h alone; those that come
// before it, such as 103 Early Hints, are passed on.
func (a *turn) finalHead() (resp *http.Response, h header, err error) {
	if a.r.Method != http.MethodHead {
		head, _ := a.from.Peek(a.from.Buffered())
		resp = &a.memory.answer
		if size, ok := a.answered.plainAnswer(head, resp); ok {
			_, _ = a.from.Discard(size)
			a.memory.content = content{from: a.from, left: resp.ContentLength}
			if resp.Body = http.NoBody; resp.ContentLength > 0 {
				resp.Body = &a.memory.content
			}
			return resp, &a.answered, nil
		}
	}
	for {
		resp, err = http.ReadResponse(a.from, a.r)
		switch {
		case err != nil:
			return nil, nil, err
		case resp.StatusCode == http.StatusSwitchingProtocols:
			return nil, nil, errUpgraded
		case resp.StatusCode >= 200:
			return resp, resp.Header, nil
		case resp.StatusCode == http.StatusContinue:
			continue // the client waits for none
		}
		removeHopByHop(resp.Header)
		a.sayHead(resp.Status, resp.Header)
		if err := a.to.Flush(); err != nil {
			return nil, nil, err
		}
	}
}

// pass writes an answer of the pod to the client, except for what is left in a.to.
func (a *turn) pass(resp *http.Response, h header) error {
	removeHopByHop(h)
	a.x.begun(h)
	if a.srv.draining.Load() {
		a.close = true
	}
	a.status = resp.StatusCode
	if a.close {
		h.Set("Connection", "close")
	}
	if h.Get("Date") == "" { // RFC 9110, 6.6.1
		h.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	}
	if resp.Body == http.NoBody {
		a.sayHead(resp.Status, h)
		return nil
	}
	if resp.ContentLength >= 0 {
		a.sayHead(resp.Status, h)
		return a.copy(a.to, resp.Body)
	}
	h.Set("Transfer-Encoding", "chunked")
	if len(resp.Trailer) > 0 {
		names := make([]string, 0, len(resp.Trailer))
		for name := range resp.Trailer {
			names = append(names, name)
		}
		h.Set("Trailer", strings.Join(names, ", "))
	}
	a.sayHead(resp.Status, h)
	chunks := httputil.NewChunkedWriter(a.to)
	if err := a.copy(chunks, resp.Body); err != nil {
		return err
	}
	_ = chunks.Close() // an error stays with the writer
	_ = resp.Trailer.Write(a.to)
	_, _ = a.to.WriteString("\r\n")
	return nil
}

// copy passes a body on: what has come is not held back while more is waited for.
func (a *turn) copy(to io.Writer, body io.Reader) error {
	for {
		n, err := body.Read(a.chunk[:])
		if n > 0 {
			if _, err := to.Write(a.chunk[:n]); err != nil {
				return err
			}
			a.bytes += int64(n)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if a.from.Buffered() == 0 {
			if err := a.to.Flush(); err != nil {
				return err
			}
		}
	}
}

// sayHead writes the head of an answer. An error stays with the writer.
func (a *turn) sayHead(status string, h header) {
	if !strings.Contains(status, " ") {
		status += " " // it has no reason, which may be empty, but not be left out (RFC 9112, 4)
	}
	for _, s := range [...]string{"HTTP/1.1 ", status, "\r\n"} {
		_, _ = a.to.WriteString(s)
	}
	_ = h.Write(a.to)
	_, _ = a.to.WriteString("\r\n")
}

// local is an answer that is not a pod's.
type local struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (l *local) Header() http.Header {
	if l.header == nil {
		l.header = http.Header{}
	}
	return l.header
}

// WriteHeader implements http.ResponseWriter.
func (l *local) WriteHeader(code int) {
	if l.code == 0 {
		l.code = code
	}
}

// Write implements http.ResponseWriter.
func (l *local) Write(b []byte) (int, error) {
	l.WriteHeader(http.StatusOK)
	return l.body.Write(b)
}

// sayLocal writes an answer that is not a pod's.
func (a *turn) sayLocal(l *local) {
	l.WriteHeader(http.StatusOK)
	a.status = l.code
	a.close = a.close || a.srv.draining.Load()
	h := l.Header()
	h.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	h.Set("Content-Length", strconv.Itoa(l.body.Len()))
	if a.close {
		h.Set("Connection", "close")
	}
	a.sayHead(strconv.Itoa(l.code)+" "+http.StatusText(l.code), h)
	if a.r.Method != http.MethodHead {
		n, _ := a.to.Write(l.body.Bytes())
		a.bytes += int64(n)
	}
}

// removeHopByHop removes the fields that are about one connection alone (RFC 9110, 7.6.1).
func removeHopByHop(h header) {
	for _, names := range h.Values("Connection") {
		for name := range strings.SplitSeq(names, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range [...]string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade"} {
		h.Del(name)
	}
}
