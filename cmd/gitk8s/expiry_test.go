package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/rest"

	"gitk8s.dev/gitk8s/controlplane/pki"
)

func TestExpiryDue(t *testing.T) {
	ends := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	e := expiry{ends: ends, whose: "its certificates", remedy: "do something"}
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

// TestExpiryWatch: from thirty days before the end it is said each day, and before that
// not at all.
func TestExpiryWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		began, days := time.Now(), 0
		var first time.Duration
		e := expiry{ends: began.Add(40 * 24 * time.Hour)}
		go e.watch(ctx, func(string) {
			if days++; days == 1 {
				first = time.Since(began)
			}
		})
		time.Sleep(15*24*time.Hour + time.Minute)
		synctest.Wait()
		if first != 10*24*time.Hour || days != 6 {
			t.Errorf("first after %s, %d times in 15 days", first, days)
		}
		cancel()
	})
}

// TestWorkerExpiry: the certificate that ends first counts.
func TestWorkerExpiry(t *testing.T) {
	ca, err := pki.OpenCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(pki.NodeClient("one"))
	if err != nil {
		t.Fatal(err)
	}
	end, err := firstEnd(pair)
	if err != nil {
		t.Fatal(err)
	}
	caller := &rest.Config{TLSClientConfig: rest.TLSClientConfig{CertData: pair.CertPEM, KeyData: pair.KeyPEM}}
	for _, c := range []struct {
		calling *rest.Config
		serving time.Time
		want    time.Time
	}{
		{caller, end.Add(time.Hour), end},
		{caller, end.Add(-time.Hour), end.Add(-time.Hour)},
		{&rest.Config{}, end.Add(time.Hour), end.Add(time.Hour)}, // it calls with something else
	} {
		e, err := workerExpiry("one", false, c.calling, tls.Certificate{Leaf: &x509.Certificate{NotAfter: c.serving}})
		if err != nil || !e.ends.Equal(c.want) || !strings.Contains(e.due(e.ends), "server enroll") {
			t.Errorf("%+v %v, want %s", e, err, c.want)
		}
	}
	if _, err := workerExpiry("one", false, &rest.Config{TLSClientConfig: rest.TLSClientConfig{CertFile: "absent", KeyFile: "absent"}}, tls.Certificate{Leaf: &x509.Certificate{}}); err == nil {
		t.Error("an absent file was taken")
	}
}
