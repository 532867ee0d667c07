package ingress

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"time"
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
)

// Serve answers on the two listeners, of which the second speaks TLS, until ctx ends;
// either may be nil. It returns when both have ended.
func (p *Proxy) Serve(ctx context.Context, plainText, withTLS net.Listener) error {
	if plainText != nil {
		p.httpPort.Store(int32(plainText.Addr().(*net.TCPAddr).Port))
	}
	if withTLS != nil {
		p.httpsPort.Store(int32(withTLS.Addr().(*net.TCPAddr).Port))
	}
	return serve(ctx, p.newServer(p, portHTTPS), plainText, withTLS)
}

// newServer makes a server whose certificates are those of a port.
func (p *Proxy) newServer(handler http.Handler, port int32) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true) // gRPC without TLS
	return &http.Server{
		Handler: handler, ReadHeaderTimeout: min(headerTimeout, p.stall), IdleTimeout: clientIdle, MaxHeaderBytes: maxHeaderBytes, Protocols: protocols,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams, WriteByteTimeout: p.stall},
		// What clients do wrong is not this server's error.
		ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return p.certificate(port, hello)
		}},
	}
}

// serve answers on the listeners until ctx ends.
func serve(ctx context.Context, srv *http.Server, plainText, withTLS net.Listener) error {
	ended := make(chan error, 2)
	count := 0
	start := func(l net.Listener, serve func(net.Listener) error) {
		if l != nil {
			count++
			go func() { ended <- serve(l) }()
		}
	}
	start(plainText, srv.Serve)
	start(withTLS, func(l net.Listener) error { return srv.ServeTLS(l, "", "") })
	drained := make(chan struct{})
	running := context.AfterFunc(ctx, func() {
		defer close(drained)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
		defer cancel()
		if srv.Shutdown(ctx) != nil {
			_ = srv.Close() // what is left after the time for it
		}
	})
	var errs []error
	for range count {
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			errs = append(errs, err)
			_ = srv.Close()
		}
	}
	if !running() {
		<-drained
	}
	return errors.Join(errs...)
}

// certificate finds that of the name that a client asks for at a port.
func (p *Proxy) certificate(port int32, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := p.table.Load().certificate(port, hello); c != nil {
		return c, nil
	}
	return p.own()
}

// ownCertificate makes the certificate for names that have none: nobody trusts it, but
// a client that does not look gets its answer.
func ownCertificate() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "gitk8s ingress default"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0), DNSNames: []string{"ingress.gitk8s.local"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
