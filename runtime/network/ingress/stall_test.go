package ingress

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pause is how long clients may stand still in these tests.
const pause = 300 * time.Millisecond

// slowBed has a pod that reads what it is sent, or writes without an end, and tells how
// its requests end.
func slowBed(t *testing.T) (*bed, chan error) {
	b := newBedWith(t, pause)
	ended := make(chan error, 100)
	b.pod(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/endless":
			chunk := make([]byte, 64<<10)
			for {
				if _, err := w.Write(chunk); err != nil {
					ended <- err
					return
				}
			}
		case "/seldom":
			for range 3 {
				fmt.Fprintln(w, "event")
				http.NewResponseController(w).Flush()
				select {
				case <-time.After(2 * pause):
				case <-r.Context().Done():
				}
			}
		default:
			n, err := io.Copy(io.Discard, r.Body)
			if err != nil {
				ended <- err
				return
			}
			fmt.Fprint(w, n)
		}
	}))
	b.serve(webRule)
	return b, ended
}

// dial opens a connection that gives up long after the proxy should have.
func (b *bed) dial() net.Conn {
	b.t.Helper()
	return b.dialAt(b.http)
}

func (b *bed) dialAt(addr string) net.Conn {
	b.t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		b.t.Fatal(err)
	}
	return c
}

// TestSlowClients: clients that stand still, in their headers, in their body, or with an
// answer, are let go, and meanwhile others are served.
func TestSlowClients(t *testing.T) {
	b, ended := slowBed(t)
	var inHeaders, inBody []net.Conn
	for range 100 {
		c := b.dial()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop.exam")
		inHeaders = append(inHeaders, c)
		c = b.dial()
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: 100\r\n\r\nhalf")
		inBody = append(inBody, c)
	}
	if resp, text := b.ask("POST", "/", strings.NewReader("whole"), nil); text != "5" {
		t.Error("beside slow clients:", resp.Status, text)
	}
	for _, c := range inHeaders {
		if got, err := io.ReadAll(c); err != nil {
			t.Fatalf("slow headers: %q %v", got, err)
		}
	}
	for _, c := range inBody {
		if got, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 408") {
			t.Fatalf("a slow body: %q %v", got, err)
		}
		if err := <-ended; err == nil {
			t.Error("the pod takes half a body for a whole one")
		}
	}
}

// TestHandshakeNotMade: a client that stands still in its handshake, says nothing at all, or
// speaks no TLS, is let go, and meanwhile others are served.
func TestHandshakeNotMade(t *testing.T) {
	b, _ := slowBed(t)
	said := map[string]struct{ text, answer string }{
		"nothing": {"", ""}, "half a hello": {"\x16\x03\x01\x02\x00\x01", ""},
		"no TLS": {"\x00\x01\x02\x03\x04\x05\x06", ""}, "HTTP": {"GET / HTTP/1.1\r\n\r\n", "This port is for HTTPS."},
	}
	clients := map[string]net.Conn{}
	for name, client := range said {
		clients[name] = b.dialAt(b.https)
		io.WriteString(clients[name], client.text)
	}
	c := tls.Client(b.dialAt(b.https), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // its own certificate
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != http.StatusOK {
		t.Error("beside them:", resp, err)
	}
	for name, c := range clients {
		if got, err := io.ReadAll(c); err != nil && !errors.Is(err, syscall.ECONNRESET) || !strings.Contains(string(got), said[name].answer) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// TestAnswerNotTaken: a client that asks and does not read is let go, whatever it speaks.
func TestAnswerNotTaken(t *testing.T) {
	b, ended := slowBed(t)
	io.WriteString(b.dial(), "GET /endless HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
	<-ended
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Protocols: new(http.Protocols)} //nolint:gosec // its own certificate
	defer tr.CloseIdleConnections()
	tr.Protocols.SetHTTP2(true)
	req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+b.https+"/endless", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "shop.example.com"
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.ProtoMajor != 2 {
		t.Error(resp.Proto)
	}
	<-ended
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("an answer without an end has ended well")
	}
}

// TestSlowButMoving: what takes long, and moves, or waits for the pod, is not ended.
func TestSlowButMoving(t *testing.T) {
	b, ended := slowBed(t)
	c := b.dial()
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\nContent-Length: 8\r\n\r\n")
	for range 8 {
		io.WriteString(c, "x")
		time.Sleep(pause / 3) // the client is slow: that is what is tested
	}
	if got, err := io.ReadAll(c); err != nil || !strings.HasSuffix(string(got), "\r\n8") {
		t.Errorf("a slow body: %q %v", got, err)
	}
	for _, http2 := range []bool{false, true} {
		tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Protocols: new(http.Protocols)} //nolint:gosec // its own certificate
		tr.Protocols.SetHTTP1(!http2)
		tr.Protocols.SetHTTP2(http2)
		req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+b.https+"/seldom", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "shop.example.com"
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		if err != nil || strings.Count(string(got), "event") != 3 {
			t.Errorf("events over %s: %q %v", resp.Proto, got, err)
		}
		resp.Body.Close()
		tr.CloseIdleConnections()
	}
	select {
	case err := <-ended:
		t.Error("ended at the pod:", err)
	default:
	}
}
