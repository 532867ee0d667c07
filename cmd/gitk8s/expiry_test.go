package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"gitk8s.dev/gitk8s/controlplane/pki"
)

func TestExpiryDue(t *testing.T) {
	ends := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	e := expiry{ends: func() time.Time { return ends }, whose: "its certificates", remedy: "do something"}
	for _, c := range []struct {
		before time.Duration
		want   string
	}{
		{365 * 24 * time.Hour, ""},
		{expiresSoon + time.Second, ""},
		{expiresSoon, "its certificates end at 2027-03-01T12:00:00Z: do something"},
		{time.Second, "its certificates end at 2027-03-01T12:00:00Z: do something"},
		{0, "its certificates ended at 2027-03-01T12:00:00Z: do something"},
		{-time.Hour, "its certificates ended at 2027-03-01T12:00:00Z: do something"},
	} {
		if got := e.due(ends.Add(-c.before)); got != c.want {
			t.Errorf("%s before: %q", c.before, got)
		}
	}
}

// TestExpiryWatch: certificates are renewed before their end, and where that fails it is said
// each day of the last thirty.
func TestExpiryWatch(t *testing.T) {
	for _, works := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			began := time.Now()
			after := func() time.Duration { return time.Since(began) / (24 * time.Hour) }
			var tried, said []time.Duration // days
			var at []time.Duration          // since the first time that it was tried
			var first time.Time
			ends := began.Add(100 * 24 * time.Hour)
			e := expiry{
				ends: func() time.Time { return ends },
				renew: func(context.Context) error {
					if first.IsZero() {
						first = time.Now()
					}
					tried, at = append(tried, after()), append(at, time.Since(first))
					if !works {
						return errors.New("no")
					}
					ends = ends.Add(pki.CertLifetime)
					return nil
				},
			}
			go e.watch(ctx, func(string) { said = append(said, after()) })
			time.Sleep(75*24*time.Hour + 5*time.Minute)
			synctest.Wait()
			if works && (len(tried) != 1 || tried[0] != 10 || len(said) > 0) {
				t.Errorf("tried after %d days, said after %d", tried, said)
			}
			if !works && (len(tried) < 65*24-1 || tried[0] != 10 || !slices.Equal(said, []time.Duration{70, 71, 72, 73, 74, 75})) {
				t.Errorf("tried %d times, first after %d days, said after %d", len(tried), tried[0], said)
			}
			if retried := []time.Duration{0, 1, 3, 7, 15, 31, 63, 123, 183}; !works && !slices.EqualFunc(at[:len(retried)], retried, func(a, minutes time.Duration) bool { return a == minutes*time.Minute }) {
				t.Errorf("tried again after %s, want %d minutes", at[:len(retried)], retried)
			}
			cancel()
		})
	}
}

// TestFirstEnd: the certificate that ends first counts.
func TestFirstEnd(t *testing.T) {
	ca, err := pki.OpenCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var pairs []pki.Pair
	var ends []time.Time
	for _, long := range []time.Duration{2 * time.Hour, time.Hour, 3 * time.Hour} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := ca.Sign(&x509.CertificateRequest{PublicKey: key.Public()}, false, long)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := pki.ParseCertificate(cert)
		if err != nil {
			t.Fatal(err)
		}
		pairs = append(pairs, pki.Pair{CertPEM: cert, KeyPEM: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})})
		ends = append(ends, leaf.NotAfter)
	}
	if got, err := firstEnd(pairs...); err != nil || !got.Equal(ends[1]) {
		t.Errorf("%s %v, want %s", got, err, ends[1])
	}
	if _, err := firstEnd(pki.Pair{}); err == nil {
		t.Error("nothing was taken for a certificate")
	}
}
