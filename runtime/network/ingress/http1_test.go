package ingress

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// cannedPod adds a pod that answers each request with the bytes that answer returns for
// it, and closes the connection after the last.
func (b *bed) cannedPod(answer func(r *http.Request) (text string, last bool)) {
	b.pods[b.pod(nil)+":8080"] = listen(b.t, func(c net.Conn) {
		for in := bufio.NewReader(c); ; {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			r.RemoteAddr = c.RemoteAddr().String()
			text, last := answer(r)
			if _, err := io.WriteString(c, text); err != nil || last {
				return
			}
		}
	})
}

// TestAnswersPassedOn: whatever form a pod's answer has, the client gets the same answer.
func TestAnswersPassedOn(t *testing.T) {
	b := newBed(t)
	answers := map[string]string{
		"/length":   "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: text/x\r\nX-A: 1\r\nX-A: 2\r\nConnection: X-Hop\r\nX-Hop: here\r\n\r\nhello",
		"/chunked":  "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\nX-Sum: 9\r\n\r\n",
		"/to-close": "HTTP/1.0 200 OK\r\n\r\nhello",
		"/none":     "HTTP/1.1 204\r\nX-A: 1\r\n\r\n",
		"/same":     "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\nEtag: \"x\"\r\n\r\n",
		"/hints":    "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"/upgraded": "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
		"/garbage":  "SSH-2.0\r\n",
		"/huge":     "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxAnswerHead) + "\r\n\r\n",
		"/broken":   "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
		"/unended":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n",
		"/spoiled":  "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok+HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
	}
	var from []string
	b.cannedPod(func(r *http.Request) (string, bool) {
		from = append(from, r.RemoteAddr)
		if r.Method == http.MethodHead {
			return "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false
		}
		return answers[r.URL.Path], strings.Contains("/to-close /garbage /huge /broken /unended", r.URL.Path)
	})
	b.serve(webRule)
	c := b.dial()
	in := bufio.NewReader(c)
	for _, tt := range []struct{ method, path, want string }{
		{"GET", "/length", `200 OK length 5 [] "hello" map[X-A:[1 2]]`},
		{"HEAD", "/length", `200 OK length 5 [] "" map[]`},
		{"GET", "/chunked", `201 Created length -1 [chunked] "hello" map[X-Sum:[9]]`},
		{"GET", "/to-close", `200 OK length -1 [chunked] "hello" map[]`},
		{"GET", "/none", `204  length 0 [] "" map[X-A:[1]]`},
		{"GET", "/same", `304 Not Modified length 0 [] "" map[Etag:["x"]]`},
		{"GET", "/hints", `103 Early Hints length 0 [] "" map[Link:[</x>]]`},
		{"", "", `200 OK length 2 [] "ok" map[]`},
		{"GET", "/spoiled", `200 OK length 2 [] "ok" map[]`},
		{"GET", "/upgraded", "502"}, {"GET", "/garbage", "502"}, {"GET", "/huge", "502"},
		{"GET", "/spoiled", `200 OK length 2 [] "ok" map[]`}, // and nothing of the last one
		{"GET", "/length", `200 OK length 5 [] "hello" map[X-A:[1 2]]`},
		{"GET", "/broken", "unexpected EOF"}, {"GET", "/unended", "unexpected EOF"},
	} {
		if tt.method != "" {
			fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: shop.example.com\r\n\r\n", tt.method, tt.path)
		}
		got, err := passedOn(in, tt.method)
		if err != nil {
			got = err.Error()
			c = b.dial()
			in = bufio.NewReader(c)
		}
		if !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s %s: %s\nwant %s", tt.method, tt.path, got, tt.want)
		}
	}
	if from[0] != from[1] || from[7] == from[8] {
		t.Errorf("the connections were %v: the second is the first, and one that has said too much is not used again", from)
	}
}

// passedOn reads an answer and says what is in it.
func passedOn(in *bufio.Reader, method string) (string, error) {
	resp, err := http.ReadResponse(in, &http.Request{Method: method})
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(resp.Body)
	h := resp.Header
	for name, values := range resp.Trailer {
		h[name] = values
	}
	if resp.StatusCode >= 200 && h.Get("Date") == "" {
		return "", errors.New("no date")
	}
	for _, name := range []string{"Date", "Content-Length", "Content-Type"} {
		delete(h, name)
	}
	return fmt.Sprintf("%s length %d %v %q %v", resp.Status, max(resp.ContentLength, -1), resp.TransferEncoding, text, map[string][]string(h)), err
}

// TestConnectionsKept: requests of one client come on one connection to the pod, also those that
// are sent before the answers; and one that the pod has closed is not used again, whatever the request.
func TestConnectionsKept(t *testing.T) {
	b := newBed(t)
	b.pod(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s%s %s\n", r.URL.Path, body, r.RemoteAddr)
	}))
	b.serve(webRule)
	c := b.dial()
	in := bufio.NewReader(c)
	answer := func(want string) (from string) {
		t.Helper()
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		path, from, _ := strings.Cut(string(text), " ")
		if err != nil || path != want {
			t.Fatalf("%q %v, want %s", text, err, want)
		}
		return from
	}
	get := func(path string) string {
		return "GET " + path + " HTTP/1.1\r\nHost: shop.example.com\r\n\r\n"
	}
	io.WriteString(c, get("/1"))
	first := answer("/1")
	io.WriteString(c, get("/2")+get("/3")+"POST /4 HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: 2\r\n\r\nab"+get("/5"))
	for _, want := range []string{"/2", "/3", "/4ab", "/5"} {
		if from := answer(want); from != first {
			t.Errorf("%s came from %s, the first from %s", want, from, first)
		}
	}
	for _, request := range []string{get("/6"), "POST /6 HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: 0\r\n\r\n"} {
		b.closeConns()
		io.WriteString(c, request)
		if from := answer("/6"); from == first {
			t.Error("a closed connection has answered")
		}
	}
	b.serve() // the service is nobody's any more
	io.WriteString(c, get("/7"))
	if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("%v %v", resp, err)
	}
}

// TestUnusedPool: a request that has found its route before the route was removed is still
// sent to a pod, and no connection is kept.
func TestUnusedPool(t *testing.T) {
	b := newBed(t)
	b.pod(say("ok"))
	b.serve(webRule)
	b.ask("GET", "/", nil, nil)
	r := b.proxy.table.Load().find("shop.example.com", "/")
	e, err := (&tries{x: &exchange{route: r}}).next()
	if err != nil || len(e.idle.conns) != 1 {
		t.Fatal(e, err)
	}
	b.serve()
	if e, err := (&tries{x: &exchange{route: r}}).next(); err != nil || len(e.idle.conns) > 0 {
		t.Error(e, err)
	}
}

// TestHandedOver: a connection is answered on after the first request that is not plain, with
// TLS and without, and each request is told apart.
func TestHandedOver(t *testing.T) {
	b := newBed(t)
	b.pod(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %d %s", r.Method, r.URL.Path, len(body), r.Header.Get("X-Forwarded-Proto"))
	}))
	b.serve(webRule)
	large := strings.Repeat("x", 2*requestBuffer)
	for _, encrypted := range []bool{false, true} {
		c, proto := b.dial(), "http"
		if encrypted {
			t, err := tls.Dial("tcp", b.https, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // its own certificate
			if err != nil {
				b.t.Fatal(err)
			}
			defer t.Close()
			c, proto = t, "https"
		}
		in := bufio.NewReader(c)
		for _, tt := range []struct{ request, want string }{
			{"GET /a HTTP/1.1\r\nHost: shop.example.com\r\n\r\n", "GET /a 0"},
			{"PUT /b HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: 2\r\n\r\nxy", "PUT /b 2"},
			{"POST /c HTTP/1.1\r\nHost: shop.example.com\r\nX-Large: " + large + "\r\nContent-Length: 2\r\n\r\nxy", "POST /c 2"},
			{"GET /d HTTP/1.1\r\nHost: shop.example.com\r\n\r\n", "GET /d 0"},
			{"POST /e HTTP/1.1\r\nHost: shop.example.com\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "POST /e 3"},
			{fmt.Sprintf("POST /f HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: %d\r\n\r\n%s", len(large), large), fmt.Sprint("POST /f ", len(large))},
		} {
			io.WriteString(c, tt.request)
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(resp.Body); err != nil || string(got) != tt.want+" "+proto {
				t.Errorf("%q %v, want %s %s", got, err, tt.want, proto)
			}
		}
	}
}

// TestClientGoesAway: what a pod does for a client that has gone is ended, before its answer
// and in the middle.
func TestClientGoesAway(t *testing.T) {
	b := newBed(t)
	b.proxy.access = slog.New(slog.NewJSONHandler(b.access, nil))
	at, ended := make(chan struct{}), make(chan struct{})
	b.pod(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/middle" {
			io.WriteString(w, "begun")
			http.NewResponseController(w).Flush()
		}
		at <- struct{}{}
		<-r.Context().Done()
		ended <- struct{}{}
	}))
	b.serve(webRule)
	for _, path := range []string{"/before", "/middle"} {
		c := b.dial()
		io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
		<-at
		c.Close()
		<-ended
	}
	b.end()
	if log := b.access.String(); !strings.Contains(log, `"status":499`) || !strings.Contains(log, `"status":200,"bytes":5`) {
		t.Error(log)
	}
}

// TestPodIsNotTheNexts: once a pod has answered, its connection is another request's, and is not
// closed when the client of the first goes away.
func TestPodIsNotTheNexts(t *testing.T) {
	client, conn := net.Pipe()
	pod, other := net.Pipe()
	defer other.Close()
	c := &clientConn{Conn: conn, srv: &server{}, in: bufio.NewReader(conn)}
	for _, working := range []bool{false, true} {
		c.setPod(pod)
		if !c.watch() {
			t.Fatal("it is not watched")
		}
		if !working {
			c.setPod(nil)
		}
		watching := c.watched.watching
		client.Close()
		<-watching
		if !c.unwatch() {
			t.Error("the client has not gone away")
		}
		_ = pod.SetReadDeadline(past)
		if _, err := pod.Read(nil); errors.Is(err, io.ErrClosedPipe) != working {
			t.Errorf("the pod works for the client: %v, and its connection says %v", working, err)
		}
	}
}

// TestServerEnds: a request that is under way is answered to its end, and then the connection is
// closed, as are those that wait for a request.
func TestServerEnds(t *testing.T) {
	b := newBed(t)
	at, hold := make(chan struct{}), make(chan struct{})
	b.pod(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			at <- struct{}{}
			<-hold
		}
		io.WriteString(w, "done")
	}))
	b.serve(webRule)
	idle, busy := b.dial(), b.dial()
	io.WriteString(idle, "GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
	if _, err := http.ReadResponse(bufio.NewReader(idle), nil); err != nil {
		t.Fatal(err)
	}
	io.WriteString(busy, "GET /hold HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
	<-at
	ended := make(chan struct{})
	go func() { b.end(); close(ended) }()
	if _, err := io.Copy(io.Discard, idle); err != nil {
		t.Error(err)
	}
	close(hold)
	resp, err := http.ReadResponse(bufio.NewReader(busy), nil)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(resp.Body); string(text) != "done" || !resp.Close {
		t.Errorf("%q %v, close %v", text, err, resp.Close)
	}
	<-ended
}

// TestTimeoutIsForTheBeginning: an answer that has begun in time may take longer, and the
// connection to the pod outlives the time that a request had.
func TestTimeoutIsForTheBeginning(t *testing.T) {
	const limit = 100 * time.Millisecond
	b := newBed(t)
	b.pod(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.RemoteAddr)
		if r.URL.Path == "/slow" {
			http.NewResponseController(w).Flush()
			time.Sleep(3 * limit) // the pod is slow: that is what is tested
			io.WriteString(w, r.RemoteAddr)
		}
	}))
	b.serve(annotated(webRule, "timeout", limit.String()))
	_, first := b.ask("GET", "/", nil, nil)
	time.Sleep(2 * limit) // nobody asks: that is what is tested
	if _, again := b.ask("GET", "/slow", nil, nil); again != first+first {
		t.Errorf("first %s, then %s", first, again)
	}
}

// TestBodyLater: a body that comes after its head, as some clients send it, is waited for.
func TestBodyLater(t *testing.T) {
	b := newBed(t)
	b.pod(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))
	b.serve(webRule)
	for _, pause := range []time.Duration{0, 3 * usually} {
		c := b.dial()
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\nContent-Length: 5\r\n\r\n")
		time.Sleep(pause) // the client is slow: that is what is tested
		io.WriteString(c, "hello")
		if got, err := io.ReadAll(c); err != nil || !strings.HasSuffix(string(got), "\r\nhello") {
			t.Errorf("after %s: %q %v", pause, got, err)
		}
	}
}

// TestNoTypeMadeUp: a pod that does not say what its answer is keeps silent, on either way.
func TestNoTypeMadeUp(t *testing.T) {
	b := newBed(t)
	b.cannedPod(func(*http.Request) (string, bool) {
		return "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", false
	})
	b.serve(webRule)
	for _, body := range []string{"", strings.Repeat("x", 2*requestBuffer)} {
		if resp, text := b.ask("POST", "/", strings.NewReader(body), nil); text != "<html>" || resp.Header.Get("Content-Type") != "" {
			t.Errorf("%q of type %q", text, resp.Header.Get("Content-Type"))
		}
	}
}

// TestFaultIsOneRequests: a panic ends its own connection alone.
func TestFaultIsOneRequests(t *testing.T) {
	b := newBed(t)
	b.pods[b.pod(nil)+":8080"] = faulty
	b.serve(webRule)
	c := b.dial()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
	if got, err := io.ReadAll(c); len(got) > 0 || err != nil {
		t.Errorf("%q %v", got, err)
	}
	if resp, _ := b.ask("GET", "/", nil, func(r *http.Request) { r.Host = "nobody" }); resp.StatusCode != http.StatusNotFound {
		t.Error(resp.Status)
	}
}

// FuzzPlainHead: what is answered without net/http means to it what it means here, and
// the pod gets that one request and nothing else.
func FuzzPlainHead(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "POST /a%2f?b#c HTTP/1.1\r\nHost: a:1\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
		"GET //a/../b HTTP/1.1\r\nhost: [::1]\r\nX-A:\r\nX-a: \t b \r\nCookie: \xff\r\n\r\n", "GET / HTTP/1.1\nHost: a\n\n",
		"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
		"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"PUT / HTTP/1.1\r\nHost: a\r\nUser-Agent:\r\nForwarded: x\r\nX-Forwarded-For: y\r\nKeep-Alive: z\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		size := endOfHead(b)
		if size < 0 {
			return
		}
		h := plainHead(b[:size])
		if !h.plain || h.size+h.length > len(b) {
			return
		}
		body := b[h.size : h.size+h.length]
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return // it goes to net/http after all
		}
		got, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(got, body) || r.Close != h.close || len(r.TransferEncoding) > 0 || r.Host == "" || r.URL.Host != "" {
			t.Fatalf("%q is %+v with %q (%v), here %+v", b, r, got, err, h)
		}
		ws := workspaces.New().(*workspace)
		var own http.Request
		if err := ws.asked.plainRequest(b[:h.size], &h, &own); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		own.Header = headerOf(&ws.asked)
		if own.Header.Get("Pragma") != "" {
			delete(r.Header, "Cache-Control") // net/http makes one of Pragma
			delete(own.Header, "Cache-Control")
		}
		if own.Method != r.Method || !reflect.DeepEqual(own.URL, r.URL) || own.RequestURI != r.RequestURI || own.Proto != r.Proto ||
			own.Host != r.Host || own.ContentLength != r.ContentLength || own.Close != r.Close || !reflect.DeepEqual(own.Header, r.Header) {
			t.Fatalf("%q is %+v, here %+v", b, r, own)
		}
		target := r.URL.RequestURI()
		a := &turn{clientConn: &clientConn{remote: netip.MustParseAddrPort("192.0.2.1:1")}, workspace: ws, x: &exchange{route: &route{}}, r: r}
		a.writeRequest(body)
		in := bufio.NewReader(&a.request)
		out, err := http.ReadRequest(in)
		if err != nil {
			t.Fatalf("%q became %q: %v", b, a.request.Bytes(), err)
		}
		got, err = io.ReadAll(out.Body)
		if err != nil || !bytes.Equal(got, body) || in.Buffered() > 0 || out.Method != r.Method || out.RequestURI != target || out.Host != r.Host || len(out.TransferEncoding) > 0 {
			t.Fatalf("%q became %+v with %q, %v", b, out, got, err)
		}
	})
}

// TestPlainChanges: what the filters of a route do to a plain request makes it neither another
// one nor two.
func TestPlainChanges(t *testing.T) {
	text := "PUT /a?b HTTP/1.1\r\nhost: shop.example.com\r\nContent-Length: 3\r\nx-a: 1\r\nX-A: 2\r\nX-b: 3\r\nX-Forwarded-For: 203.0.113.1\r\nConnection: keep-alive\r\n\r\n"
	h := plainHead([]byte(text))
	if !h.plain {
		t.Fatal("not plain")
	}
	var filters headerChanges
	filters.append(&gatewayv1.HTTPHeaderFilter{
		Set: []gatewayv1.HTTPHeader{
			{Name: "content-length", Value: "7"}, {Name: "Transfer-Encoding", Value: "chunked"}, {Name: "host", Value: "other"},
			{Name: "x-a", Value: "4\r\nX-Evil: 1"}, {Name: "X-Evil: 1\r\nX", Value: "2"},
		},
		Add:    []gatewayv1.HTTPHeader{{Name: "x-C", Value: "5"}, {Name: "x-forwarded-proto", Value: "ws"}},
		Remove: []string{"x-B"},
	})
	ws := workspaces.New().(*workspace)
	a := &turn{
		clientConn: &clientConn{remote: netip.MustParseAddrPort("192.0.2.1:1")}, workspace: ws, r: &ws.memory.asked,
		x: &exchange{route: &route{action: &action{request: filters}}},
	}
	if err := ws.asked.plainRequest([]byte(text), &h, a.r); err != nil {
		t.Fatal(err)
	}
	a.writeRequest([]byte("abc"))
	want := "PUT /a?b HTTP/1.1\r\nHost: shop.example.com\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Host: shop.example.com\r\n" +
		"X-Forwarded-Port: 80\r\nX-Forwarded-Proto: http\r\nX-Real-Ip: 192.0.2.1\r\nX-A: 4  X-Evil: 1\r\nX-C: 5\r\nX-Forwarded-Proto: ws\r\n" +
		"Content-Length: 3\r\n\r\nabc"
	if got := a.request.String(); got != want {
		t.Errorf("%q\nnot %q", got, want)
	}
}

// headerOf is what net/http would have made of the fields.
func headerOf(f *fieldList) http.Header {
	h := http.Header{}
	for _, f := range f.list {
		h.Add(f.name, f.value)
	}
	return h
}

// FuzzPlainAnswer: of an answer that is plain net/http reads the same.
func FuzzPlainAnswer(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "HTTP/1.1 404\r\ncontent-length:0\r\nX-A: 1\r\nx-a: 2 \r\n\r\n",
		"HTTP/1.1 500 a  b\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhell", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\nContent-Length: 0\r\n\r\n", "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\n\nhello", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n X: y\r\n\r\nhello", "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nPragma: no-cache\r\nContent-Length: 05\r\n\r\nhello, too much",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var own http.Response
		var fields fieldList
		size, ok := fields.plainAnswer(b, &own)
		if !ok {
			return
		}
		own.Header = headerOf(&fields)
		in := bufio.NewReader(bytes.NewReader(b))
		r, err := http.ReadResponse(in, &http.Request{Method: http.MethodGet})
		if err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		if own.Header.Get("Pragma") != "" {
			delete(r.Header, "Cache-Control") // net/http makes one of Pragma
			delete(own.Header, "Cache-Control")
		}
		delete(r.Header, "Connection") // which is of this connection alone; net/http removes one of two
		delete(own.Header, "Connection")
		if own.Status != r.Status || own.StatusCode != r.StatusCode || own.ContentLength != r.ContentLength || own.Close != r.Close ||
			!reflect.DeepEqual(own.Header, r.Header) || len(r.TransferEncoding)+len(r.Trailer) > 0 {
			t.Fatalf("%q is %+v, here %+v", b, r, own)
		}
		want, failed := io.ReadAll(r.Body)
		from := bufio.NewReader(bytes.NewReader(b[size:]))
		got, err := io.ReadAll(&content{from: from, left: own.ContentLength})
		if !bytes.Equal(got, want) || !errors.Is(err, failed) {
			t.Fatalf("%q has the body %q, %v, here %q, %v", b, want, failed, got, err)
		}
	})
}
