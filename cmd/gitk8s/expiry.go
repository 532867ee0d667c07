package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"gitk8s.dev/gitk8s/controlplane/pki"
)

const (
	// expiresSoon is how long before the end of a certificate that is said: renewing it has
	// failed for two months then.
	expiresSoon = 30 * 24 * time.Hour
	// expiryLook is how often the clock is looked at, which may be set meanwhile.
	expiryLook = time.Hour
	// renewRetry is how long after its first failure the renewal is tried again; then each
	// time twice as long, up to expiryLook.
	renewRetry = time.Minute
	// expirySaid is how often it is said.
	expirySaid = 24 * time.Hour
)

// expiry is whose certificates end, and what to do about that.
type expiry struct {
	ends   func() time.Time
	renew  func(context.Context) error // nil where only a new start does it
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
	ends := e.ends()
	at := ends.UTC().Format(time.RFC3339)
	switch left := ends.Sub(now); {
	case left > expiresSoon:
		return ""
	case left > 0:
		return fmt.Sprintf("%s end at %s: %s", e.whose, at, e.remedy)
	}
	return fmt.Sprintf("%s ended at %s: %s", e.whose, at, e.remedy)
}

// watch renews the certificates in time, and says it, day by day, where that does not
// succeed: nothing else would tell before the connections fail. It ends with ctx.
func (e expiry) watch(ctx context.Context, say func(message string)) {
	var said time.Time
	for retry := renewRetry; ; {
		look := expiryLook
		if e.renew != nil && e.ends().Sub(time.Now()) < pki.RenewBefore {
			if err := e.renew(ctx); err == nil {
				retry = renewRetry
			} else if ctx.Err() == nil {
				look, retry = retry, min(2*retry, expiryLook)
				slog.Warn("certificates are not renewed, will retry", "error", err, "after", look)
			}
		}
		if message := e.due(time.Now()); message != "" && time.Since(said) >= expirySaid {
			said = time.Now()
			slog.Warn("certificates expire", "message", message)
			say(message)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(look):
		}
	}
}
