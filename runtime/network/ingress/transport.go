package ingress

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

const (
	// maxTries is how many endpoints one request is sent to at most.
	maxTries = 3
	// dialTimeout bounds one attempt to reach a pod: they are near.
	dialTimeout = 3 * time.Second
	// idlePerPod is how many connections to a pod are kept for the next requests.
	idlePerPod  = 128
	idleTimeout = 30 * time.Second
)

// transport sends each request to an endpoint of its pool. A pod that cannot be
// reached has not seen the request, so it is sent to the next one; see also brokenOff.
type transport struct {
	dial func(ctx context.Context, network, addr string) (net.Conn, error) // its errors are dialErrors
	by   [encrypted + 1]*http.Transport
}

// dialError marks that a connection could not be made.
type dialError struct{ error }

// Unwrap returns what went wrong.
func (e dialError) Unwrap() error { return e.error }

func newTransport(dial func(ctx context.Context, network, addr string) (net.Conn, error)) *transport {
	marked := func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, dialError{err}
		}
		return c, nil
	}
	make := func(http1, http2 bool) *http.Transport {
		t := &http.Transport{
			DialContext: marked, MaxIdleConnsPerHost: idlePerPod, IdleConnTimeout: idleTimeout, DisableCompression: true,
			MaxResponseHeaderBytes: 256 << 10, Protocols: new(http.Protocols),
			// Pods have certificates of whatever kind; the network is the cluster's.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
		}
		t.Protocols.SetHTTP1(http1)
		t.Protocols.SetUnencryptedHTTP2(http2)
		return t
	}
	t := &transport{dial: marked}
	t.by[plain], t.by[cleartext], t.by[encrypted] = make(true, false), make(false, true), make(true, false)
	t.by[encrypted].Protocols.SetHTTP2(true)
	return t
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	x := exchangeOf(r.Context())
	for tries := (tries{x: x}); ; {
		e, err := tries.next()
		if err != nil {
			return nil, err
		}
		resp, err := t.send(r, e, x.route.spokenTo())
		if err == nil {
			x.sentTo = e
			return resp, nil
		}
		noBody := r.Body == nil || r.Body == http.NoBody
		if r.Context().Err() != nil || !tries.failed(e, err) && !(noBody && tries.brokenOff(r, e, err)) {
			return nil, err
		}
	}
}

// tries chooses the endpoints that a request is sent to, one after the other.
type tries struct {
	x     *exchange
	tried []*endpoint
	err   error // of the last one
}

// next returns the endpoint to try, or why there is none.
func (t *tries) next() (*endpoint, error) {
	e := t.x.route.pool.pick(t.x.route.options, t.x.before, t.tried, time.Now())
	if e == nil {
		return nil, cmp.Or(t.err, errNoEndpoints)
	}
	return e, nil
}

// failed takes what went wrong, and says whether another endpoint may be tried.
func (t *tries) failed(e *endpoint, err error) bool {
	return errors.As(err, new(dialError)) && t.avoid(e, err)
}

// brokenOff takes what went wrong with a request that the endpoint may have seen, and says
// whether another one may be tried all the same: the connection was closed without
// an answer, and the request does no harm if it is done twice. So it goes when a pod ends, or
// breaks down, just when it is asked. nginx does the same (proxy_next_upstream in
// ngx_http_proxy_module).
func (t *tries) brokenOff(r *http.Request, e *endpoint, err error) bool {
	closed := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	return closed && replayable(r) && t.avoid(e, err)
}

func (t *tries) avoid(e *endpoint, err error) bool {
	e.failed.Store(time.Now().UnixNano())
	t.tried, t.err = append(t.tried, e), err
	return len(t.tried) < maxTries
}

// spokenTo is how the pods are spoken to.
func (r *route) spokenTo() protocol {
	if r.options.protocol != nil {
		return *r.options.protocol
	}
	return r.pool.spoken()
}

func (t *transport) send(r *http.Request, e *endpoint, proto protocol) (*http.Response, error) {
	out := *r
	u := *r.URL
	u.Host = e.addr.String()
	if proto == encrypted {
		u.Scheme = "https"
	}
	out.URL = &u
	if r.Body != nil && r.Body != http.NoBody {
		// A transport closes the body when it cannot connect, but it is still needed.
		out.Body = io.NopCloser(r.Body)
	}
	e.active.Add(1)
	resp, err := t.by[proto].RoundTrip(&out)
	if err != nil {
		e.active.Add(-1)
		return nil, err
	}
	resp.Request = r
	// The request is under way until its answer is closed, however often that is done.
	ended := sync.OnceFunc(func() { e.active.Add(-1) })
	if conn, ok := resp.Body.(io.ReadWriteCloser); ok {
		resp.Body = &upgraded{conn, ended} // WebSocket and the like: it is written to as well
	} else {
		resp.Body = &body{resp.Body, ended}
	}
	return resp, nil
}

type body struct {
	io.ReadCloser
	ended func()
}

// Close implements io.Closer.
func (b *body) Close() error {
	b.ended()
	return b.ReadCloser.Close()
}

// upgraded is a connection that both sides write to.
type upgraded struct {
	io.ReadWriteCloser
	ended func()
}

// Close implements io.Closer.
func (u *upgraded) Close() error {
	u.ended()
	return u.ReadWriteCloser.Close()
}
