package ingress

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	cryptorand "crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLoops: whoever asks whatever, from however many connections, gets the answer to
// that, whether it is quick, takes long, is large, or the pod closes its connection; and nothing
// is left in the loops when all have gone.
func TestLoops(t *testing.T) {
	for _, withTLS := range []bool{false, true} {
		t.Run(fmt.Sprintf("with TLS %t", withTLS), func(t *testing.T) {
			t.Parallel()
			testLoops(t, withTLS)
		})
	}
}

func testLoops(t *testing.T, withTLS bool) {
	b := newBedOf(t, 0, 3)
	dial := func() (net.Conn, error) {
		if withTLS {
			return tls.Dial("tcp", b.https, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // its own certificate
		}
		return net.Dial("tcp", b.http)
	}
	b.pod(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch r.URL.Path {
		case "/slow":
			time.Sleep(usually + usually/5)
		case "/close":
			w.Header().Set("Connection", "close")
		case "/late": // its head comes at once
			w.(http.Flusher).Flush()
			time.Sleep(usually + usually/5)
		}
		size, _ := strconv.Atoi(r.URL.Query().Get("size"))
		fmt.Fprintf(w, "%s %s %d\n", r.URL.Path, r.URL.Query().Get("n"), len(body))
		_, _ = w.Write(bytes.Repeat([]byte("x"), size))
	}))
	b.serve(webRule)
	paths := []string{"/quick", "/quick", "/quick", "/quick", "/slow", "/close", "/late"}
	sizes := []int{0, 0, 0, 10, 5 << 10, 50 << 10, 3 << 20}
	bodies := []int{0, 0, 10, 5 << 10, 100 << 10}
	var clients sync.WaitGroup
	for n := range 16 {
		clients.Go(func() {
			random := rand.New(rand.NewPCG(uint64(n), 1))
			var c net.Conn
			var in *bufio.Reader
			for i := range 40 {
				if c == nil {
					var err error
					if c, err = dial(); err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					in = bufio.NewReader(c)
				}
				path, size, body := paths[random.IntN(len(paths))], sizes[random.IntN(len(sizes))], bodies[random.IntN(len(bodies))]
				text := fmt.Sprintf("POST %s?n=%d-%d&size=%d HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: %d\r\n\r\n%s", path, n, i, size, body, strings.Repeat("b", body))
				// In parts, at times.
				cut := len(text)
				if random.IntN(4) == 0 {
					cut = random.IntN(len(text))
				}
				_, err := io.WriteString(c, text[:cut])
				if cut < len(text) {
					time.Sleep(time.Duration(random.IntN(3)) * time.Millisecond)
					_, e := io.WriteString(c, text[cut:])
					err = errors.Join(err, e)
				}
				var got []byte
				if err == nil {
					var resp *http.Response
					if resp, err = http.ReadResponse(in, nil); err == nil {
						got, err = io.ReadAll(resp.Body)
					}
				}
				want := fmt.Sprintf("%s %d-%d %d\n%s", path, n, i, body, strings.Repeat("x", size))
				if err != nil || string(got) != want {
					t.Errorf("client %d, %s of %d and %d bytes: %d bytes that begin with %.50q, %v", n, path, body, size, len(got), got, err)
					return
				}
				if random.IntN(3) == 0 {
					_ = c.Close()
					c = nil
				}
			}
		})
	}
	clients.Wait()
	b.end()
}

// TestEntersLoop: a client is in a loop from its handshake on, unless it takes its time, and
// comes back when it does not any more.
func TestEntersLoop(t *testing.T) {
	b := newBedOf(t, 0, 1)
	b.pod(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) }))
	b.serve(webRule)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := b.proxy.newServer(portHTTPS, true, l.Addr())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx, l.(*net.TCPListener)) }()
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // its own certificate
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in := bufio.NewReader(c)
	ask := func(path string) {
		t.Helper()
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: shop.example.com\r\n\r\n", path)
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(resp.Body); string(got) != path || err != nil {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	inLoop := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.loops[0].mu.Lock()
		defer s.loops[0].mu.Unlock()
		for _, c := range s.loops[0].conns {
			for open := range s.open {
				if open.sock == c {
					return true
				}
			}
		}
		return false
	}
	for range 3 {
		ask("/first")
		ask("/second") // it is read after the client has entered
		if !inLoop() {
			t.Error("not in a loop while one request follows the other")
		}
		for began := time.Now(); inLoop(); time.Sleep(usually / 10) {
			if time.Since(began) > 100*usually {
				t.Fatal("in a loop while nothing is asked")
			}
		}
		ask("/late")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n, err := in.ReadByte(); err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
}

// slowKey signs when it may.
type slowKey struct {
	*rsa.PrivateKey
	begun, goOn chan struct{}
}

func (k slowKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	close(k.begun)
	<-k.goOn
	return k.PrivateKey.Sign(random, digest, opts)
}

// TestSlowSignature: a loop answers others while it has an RSA signature made, and goes on with
// the client that it is for.
func TestSlowSignature(t *testing.T) {
	key, err := rsa.GenerateKey(cryptorand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	b := newBedOf(t, 0, 1)
	b.pod(say("ok"))
	b.certs["shop/cert"] = certificateOf(t, key, "shop.example.com")
	slow := slowKey{key, make(chan struct{}), make(chan struct{})}
	b.certs["shop/cert"].PrivateKey = slow
	b.serve(withTLS(webRule, "{hosts: [shop.example.com], secretName: cert}"))
	get := func(name string) error {
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", b.https, &tls.Config{InsecureSkipVerify: true, ServerName: name}) //nolint:gosec // its own certificate
		if err != nil {
			return err
		}
		defer c.Close()
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n\r\n")
		if got, err := io.ReadAll(c); err != nil || !bytes.HasSuffix(got, []byte("\r\n\r\nok")) {
			return fmt.Errorf("%s: %q, %w", name, got, err)
		}
		return nil
	}
	ended := make(chan error, 1)
	go func() { ended <- get("shop.example.com") }()
	<-slow.begun
	if err := get("other.example.com"); err != nil {
		t.Error(err)
	}
	close(slow.goOn)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// listening makes a loop that does not run yet, in which run is the task of each connection.
func listening(t *testing.T, run func(c *loopConn, from netip.AddrPort)) (o *loop, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if o, err = newLoop(new(atomic.Int64)); err != nil {
		t.Fatal(err)
	}
	err = o.listen(l.(*net.TCPListener), func(o *loop, c *loopConn, from netip.AddrPort) *task {
		return newTask(o, c, func() { run(c, from) })
	})
	if err != nil {
		t.Fatal(err)
	}
	return o, l.Addr().String()
}

// running runs a loop; stop ends it, and returns when it has ended.
func running(o *loop) (stop func()) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		o.run()
	}()
	return func() {
		o.end()
		<-ended
	}
}

// TestLoopTakesEach: connections are taken after there could be none for a moment.
func TestLoopTakesEach(t *testing.T) {
	from := make(chan string, 1)
	o, addr := listening(t, func(c *loopConn, a netip.AddrPort) {
		from <- a.String()
		_ = c.Close()
	})
	o.pause(unix.EMFILE)
	began := time.Now()
	stop := running(o)
	for range 3 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := <-from; got != c.LocalAddr().String() {
			t.Errorf("taken from %s, made at %s", got, c.LocalAddr())
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%d bytes, %v", n, err)
		}
		_ = c.Close()
	}
	if took := time.Since(began); took < retryAccept {
		t.Errorf("taken after %s, in a pause of %s", took, retryAccept)
	}
	stop()
	o.end() // it may be said again
}

// TestLoopDrained: a task has what it reads, and the end of it, as soon as that is there,
// without being let go to wait for it, whatever comes when.
func TestLoopDrained(t *testing.T) {
	for _, running := range []bool{false, true} {
		for _, sent := range []string{"", "abc", "abcd", "abcde"} {
			t.Run(fmt.Sprintf("%q, running %t", sent, running), func(t *testing.T) {
				testLoopDrained(t, sent, running)
			})
		}
	}
}

func testLoopDrained(t *testing.T, sent string, running bool) {
	type reading struct {
		got    string
		inLoop bool
		err    error
	}
	readings := make(chan reading, 10)
	o, addr := listening(t, func(c *loopConn, _ netip.AddrPort) {
		defer c.Close()
		defer close(readings)
		var err error
		for buf := make([]byte, 4); err == nil; {
			var n int
			n, err = c.Read(buf)
			readings <- reading{string(buf[:n]), c.inLoop(), err}
		}
	})
	ended := make(chan struct{})
	run := sync.OnceFunc(func() {
		go func() {
			defer close(ended)
			o.run()
		}()
	})
	if running {
		run()
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = io.WriteString(c, sent)
	if err := errors.Join(err, c.(*net.TCPConn).CloseWrite()); err != nil {
		t.Fatal(err)
	}
	run()
	got := ""
	for r := range readings {
		got += r.got
		if !r.inLoop {
			t.Error("it was let go")
		}
		err = r.err
	}
	if got != sent || err != io.EOF {
		t.Errorf("read %q, %v", got, err)
	}
	o.end()
	<-ended
}

// TestEndsLast: who asks does not wait until the connection of somebody else is closed.
func TestEndsLast(t *testing.T) {
	var fds []int
	var happened []string
	o, addr := listening(t, func(c *loopConn, _ netip.AddrPort) {
		defer c.Close()
		fds = append(fds, c.fd)
		for buf := make([]byte, 4); ; {
			n, err := c.Read(buf)
			if err != nil {
				happened = append(happened, err.Error())
				return
			}
			happened = append(happened, string(buf[:n]))
		}
	})
	defer o.close()
	// turn has the loop see to what comes once all of these have something to tell.
	turn := func(fds ...int) {
		t.Helper()
		for _, fd := range fds {
			if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); n != 1 || err != nil {
				t.Fatalf("nothing comes: %d, %v", n, err)
			}
		}
		events := make([]unix.EpollEvent, eventsAtOnce)
		n, err := unix.EpollWait(o.epoll, events, 0)
		if err != nil {
			t.Fatal(err)
		}
		o.happened(events[:n])
		if n, err := unix.EpollWait(o.epoll, events, 0); n != 0 || err != nil { // and it forgets the listener
			t.Fatalf("%d events more, %v", n, err)
		}
	}
	dial := func(says string) net.Conn {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_, err = io.WriteString(c, says)
		}
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := dial("one")
	turn(o.listener)
	_ = first.Close()
	second := dial("two")
	turn(fds[0], o.listener)
	_ = second.Close()
	turn(fds[1])
	if want := []string{"one", "two", "EOF", "EOF"}; !slices.Equal(happened, want) {
		t.Errorf("%q, not %q", happened, want)
	}
}

// TestLoopEnds: who is in a loop when it ends has his answer, also where the pod has yet to
// be reached.
func TestLoopEnds(t *testing.T) {
	dialed, dial := make(chan struct{}), make(chan struct{})
	b := newBedOf(t, 0, 1)
	b.pod(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") }))
	b.dialing = func() {
		close(dialed)
		<-dial
	}
	b.serve(webRule)
	c, idle := b.dial(), b.dial()
	fmt.Fprint(idle, "GET /none HTTP/1.1\r\nHost: other.example.com\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(idle), nil); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Fatal(resp, err)
	}
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
	<-dialed
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.end()
	}()
	if n, err := idle.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("who asks for nothing is told %d bytes, %v", n, err)
	}
	close(dial)
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Contains(got, []byte("Connection: close\r\n")) || !bytes.HasSuffix(got, []byte("\r\n\r\nhello")) {
		t.Errorf("%q, %v", got, err)
	}
	<-ended
	if c, err := net.Dial("tcp", b.http); err == nil {
		_ = c.Close()
		t.Error("the port is still open")
	}
}

// TestLoopBrokenOff: a fault while a pod answers ends the connections of its request, and no
// others.
func TestLoopBrokenOff(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	closed := make(chan error, 1)
	pod := listen(t, func(c net.Conn) {
		_, err := c.Read(make([]byte, 1))
		closed <- err
	})
	o, err := newLoop(new(atomic.Int64))
	if err != nil {
		t.Fatal(err)
	}
	err = o.listen(l.(*net.TCPListener), func(o *loop, c *loopConn, _ netip.AddrPort) *task {
		var t *task
		t = newTask(o, c, func() {
			defer c.Close()
			var to net.Conn
			var err error
			t.await(func() { to, err = net.Dial("tcp", pod) })
			if err == nil {
				_, err = adopt(quick(to), t)
			}
			if err != nil {
				closed <- err
			}
		})
		return t
	})
	if err != nil {
		t.Fatal(err)
	}
	stop := running(o)
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := <-closed; err != io.EOF {
		t.Errorf("the pod is told %v", err)
	}
	stop()
	if len(o.conns) > 0 {
		t.Errorf("%d connections are left", len(o.conns))
	}
}

// TestIdleNotTaken: a connection that cannot be taken into a loop, as when there are too many
// open files, is closed, and the next one looked for.
func TestIdleNotTaken(t *testing.T) {
	quickOne, other := quickPair(t)
	inLoop, another := quickPair(t)
	looped := func(c net.Conn, o *loop) net.Conn {
		l, err := adopt(c, &task{loop: o})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	working := func() *loop {
		o, err := newLoop(new(atomic.Int64))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(o.shut)
		return o
	}
	var idle idleConns
	defer idle.close()
	idle.put(&podConn{Conn: quickOne})
	idle.put(&podConn{Conn: looped(inLoop, working())})
	broken := &loop{epoll: -1, conns: map[int32]*loopConn{}}
	if c := idle.take(&task{loop: broken}, false); c != nil {
		t.Errorf("%v was taken", c)
	}
	for _, c := range []net.Conn{other, another} {
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("the other side is told %d bytes, %v", n, err)
		}
	}
}
