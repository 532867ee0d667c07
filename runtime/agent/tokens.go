package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// tokenMaxAge is when a token is replaced however long it would be good for.
	tokenMaxAge = 24 * time.Hour
	// tokenCheck is how often tokens are looked at.
	tokenCheck = time.Minute
	// clockSlack is what clocks may differ by; the API grants as much.
	clockSlack = time.Minute
	// accountWait is how long a pod waits for its service account to be made, which in
	// a new namespace takes a moment.
	accountWait = 5 * time.Second
)

// tokenKey names a token of a pod's service account.
type tokenKey struct {
	pod, audience string
	seconds       int64
}

// podToken is a token with the times that the node counts from. They are the clock's
// alone (no monotonic reading): who checks the token goes by the clock, too, and it
// may be put forward or back.
type podToken struct {
	text            string
	issued, expires time.Time
}

// stale says whether to ask for another: after 80 % of its life, or a day
// ("Service Accounts", token volume projection), or when the clock was put back so far
// that the token is not valid yet.
func (t podToken) stale(now time.Time) bool {
	return !now.Before(t.issued.Add(min(t.expires.Sub(t.issued)*8/10, tokenMaxAge))) || t.issued.Sub(now) > clockSlack
}

// tokenCache holds the tokens of the node's pods in memory.
type tokenCache struct {
	a *Agent

	mu     sync.Mutex
	tokens map[tokenKey]podToken
}

func newTokenCache(a *Agent) *tokenCache { return &tokenCache{a: a, tokens: map[tokenKey]podToken{}} }

// Token returns a token for a projected volume of a pod: the one it has, or a new
// one when there is none or it is stale. Where no new one is to be had, the old one
// serves until it expires.
func (c *tokenCache) Token(ctx context.Context, pod *v1.Pod, src *v1.ServiceAccountTokenProjection) (string, error) {
	key := tokenKey{pod: string(pod.UID), audience: src.Audience, seconds: 60 * 60}
	if src.ExpirationSeconds != nil {
		key.seconds = *src.ExpirationSeconds
	}
	now := c.a.cfg.Now().Round(0)
	c.mu.Lock()
	have, ok := c.tokens[key]
	c.mu.Unlock()
	if ok && !have.stale(now) {
		return have.text, nil
	}
	fresh, err := c.request(ctx, pod, key)
	if err != nil {
		if ok && now.Before(have.expires) {
			c.a.log.Warn("renew a service account token", "pod", pod.Namespace+"/"+pod.Name, "error", err)
			return have.text, nil
		}
		return "", fmt.Errorf("failed to fetch token: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tokens[key] = fresh
	return fresh.text, nil
}

func (c *tokenCache) request(ctx context.Context, pod *v1.Pod, key tokenKey) (podToken, error) {
	req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &key.seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if key.audience != "" {
		req.Spec.Audiences = []string{key.audience}
	}
	deadline := time.Now().Add(accountWait)
	for wait := 20 * time.Millisecond; ; wait *= 2 {
		now := c.a.cfg.Now().Round(0)
		got, err := c.a.cfg.Client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, pod.Spec.ServiceAccountName, req, metav1.CreateOptions{})
		if err == nil {
			return podToken{got.Status.Token, now, got.Status.ExpirationTimestamp.Time}, nil
		}
		if !apierrors.IsNotFound(err) || time.Now().Add(wait).After(deadline) || !pause(ctx, wait) {
			return podToken{}, err
		}
	}
}

// staleFor says whether a token of the pod is due to be replaced.
func (c *tokenCache) staleFor(uid string, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, t := range c.tokens {
		if key.pod == uid && t.stale(now) {
			return true
		}
	}
	return false
}

// forget drops the tokens of a pod.
func (c *tokenCache) forget(uid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key := range c.tokens {
		if key.pod == uid {
			delete(c.tokens, key)
		}
	}
}

// rotateTokens replaces tokens before they expire, for as long as ctx lives.
func (a *Agent) rotateTokens(ctx context.Context) {
	for pause(ctx, tokenCheck) {
		a.renewTokens()
	}
}

func (a *Agent) renewTokens() {
	now := a.cfg.Now().Round(0)
	a.eachWorker(func(w *worker) {
		if a.tokens.staleFor(w.uid, now) {
			w.post(func() {
				if w.s.sandbox == sandboxReady && !w.s.ending() {
					w.refreshVolumes()
				}
			})
		}
	})
}
