package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/controlplane/pki"
)

const (
	// expiresSoon is how long before the end of a certificate that is said: long enough for
	// somebody to come by, and shorter than what a new start leaves to it.
	expiresSoon = 30 * 24 * time.Hour
	// expiryAgain is when it is said again. It is also how often the clock is looked at,
	// which may be set meanwhile.
	expiryAgain = 24 * time.Hour
)

// expiry is whose certificates end, and what to do about that.
type expiry struct {
	ends   time.Time
	whose  string
	remedy string
}

// firstEnd is when the first of some certificates ends.
func firstEnd(pairs ...pki.Pair) (time.Time, error) {
	var first time.Time
	for _, p := range pairs {
		c, err := p.TLS()
		if err != nil {
			return first, err
		}
		if ends := c.Leaf.NotAfter; first.IsZero() || ends.Before(first) {
			first = ends
		}
	}
	return first, nil
}

// due says what there is to be said at a time, nothing while the end is far.
func (e expiry) due(now time.Time) string {
	switch left := e.ends.Sub(now); {
	case left > expiresSoon:
		return ""
	case left > 0:
		return fmt.Sprintf("%s end at %s: %s", e.whose, e.ends.UTC().Format(time.RFC3339), e.remedy)
	}
	return fmt.Sprintf("%s ended at %s: %s", e.whose, e.ends.UTC().Format(time.RFC3339), e.remedy)
}

// watch says it, day by day, until ctx ends: nothing else would tell before the
// connections fail.
func (e expiry) watch(ctx context.Context, say func(message string)) {
	again := time.NewTicker(expiryAgain)
	defer again.Stop()
	for {
		if message := e.due(time.Now()); message != "" {
			slog.Warn("certificates expire", "message", message)
			say(message)
		}
		select {
		case <-ctx.Done():
			return
		case <-again.C:
		}
	}
}

// workerExpiry is the expiry of a worker's certificates: that with which it calls the API,
// and its server's.
func workerExpiry(name string, attached bool, calling *rest.Config, serving tls.Certificate) (expiry, error) {
	e := expiry{
		ends:   serving.Leaf.NotAfter,
		whose:  "the certificates of worker " + name,
		remedy: "enroll it again with `gitk8s server enroll`, copy the folder to the worker and start its agent anew",
	}
	if attached {
		e.remedy = "start `gitk8s up` anew, which renews them"
	}
	calling = rest.CopyConfig(calling)
	if err := rest.LoadTLSFiles(calling); err != nil {
		return e, err
	}
	if len(calling.CertData) == 0 {
		return e, nil
	}
	ends, err := firstEnd(pki.Pair{CertPEM: calling.CertData, KeyPEM: calling.KeyData})
	if err == nil && ends.Before(e.ends) {
		e.ends = ends
	}
	return e, err
}

// tellOfExpiry has the worker's Node say when its certificates are about to end.
func (w *worker) tellOfExpiry(ctx context.Context, events record.EventRecorder) {
	// The kubelet takes the node's name for its UID, which `kubectl describe` relies on.
	node := &corev1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: w.name, UID: types.UID(w.name)}
	w.expiry.watch(ctx, func(message string) {
		events.Event(node, corev1.EventTypeWarning, "CertificatesExpire", message)
	})
}
