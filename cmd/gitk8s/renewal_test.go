package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// TestConnections: with a new certificate connections are made anew, and a request that is
// under way over an old one comes to its end.
func TestConnections(t *testing.T) {
	goOn := make(chan struct{})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.TLS.PeerCertificates[0].SerialNumber.String()+"\n")
		w.(http.Flusher).Flush()
		if r.URL.Path == "/watch" {
			<-goOn
			_, _ = io.WriteString(w, "the end\n")
		}
	}))
	s.EnableHTTP2, s.TLS = true, &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	var certificate atomic.Pointer[tls.Certificate]
	certificate.Store(numbered(t, 1))
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	c := newConnections(&tls.Config{RootCAs: roots, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return certificate.Load(), nil
	}})
	t.Cleanup(c.CloseIdleConnections)
	get := func(path string) *bufio.Reader {
		t.Helper()
		res, err := (&http.Client{Transport: c, Timeout: time.Minute}).Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = res.Body.Close() })
		if res.ProtoMajor != 2 {
			t.Errorf("by %s", res.Proto)
		}
		return bufio.NewReader(res.Body)
	}
	expect := func(r *bufio.Reader, want string) {
		t.Helper()
		if line, err := r.ReadString('\n'); line != want+"\n" {
			t.Errorf("%q, %v, want %q", line, err, want)
		}
	}
	watch := get("/watch")
	expect(watch, "1")
	certificate.Store(numbered(t, 2))
	expect(get("/"), "1")
	c.renew()
	expect(get("/"), "2")
	close(goOn)
	expect(watch, "the end")
}

// numbered makes a certificate with a serial number.
func numbered(t *testing.T, n int64) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(n), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
