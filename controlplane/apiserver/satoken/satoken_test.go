package satoken

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

var t0 = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func signer(t *testing.T) *Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestVerify(t *testing.T) {
	s := signer(t)
	b := Binding{Namespace: "shop", ServiceAccount: Object{"robot", "1"}, Pod: &Object{"web", "2"}}
	token, err := s.Sign(b, []string{"vault"}, t0, t0.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Verify(token, t0.Add(59*time.Minute))
	if err != nil || c.Subject != "system:serviceaccount:shop:robot" || c.Audience[0] != "vault" || *c.Binding.Pod != *b.Pod || c.ID == "" {
		t.Fatalf("%+v, %v", c, err)
	}
	if !Issued(token) || Issued("a.b.c") || Issued("not one") {
		t.Error("tokens are not told apart")
	}
	// The parts of a token, with one of them changed.
	forged := func(header, claims string) string {
		parts := strings.Split(token, ".")
		for i, change := range []string{header, claims} {
			if change == "" {
				continue
			}
			raw, _ := base64.RawURLEncoding.DecodeString(parts[i])
			m := map[string]any{}
			_ = json.Unmarshal(raw, &m)
			k, v, _ := strings.Cut(change, "=")
			m[k] = v
			raw, _ = json.Marshal(m)
			parts[i] = base64.RawURLEncoding.EncodeToString(raw)
		}
		return strings.Join(parts, ".")
	}
	unsigned := jwt.NewWithClaims(jwt.SigningMethodNone, *c)
	unsigned.Header["kid"] = s.id
	none, err := unsigned.SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	other := signer(t)
	foreign, err := other.Sign(b, nil, t0, t0.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]struct {
		token string
		now   time.Time
	}{
		"expired":        {token, t0.Add(time.Hour + leeway + time.Second)},
		"not yet":        {token, t0.Add(-leeway - time.Second)},
		"another key":    {foreign, t0},
		"no signature":   {none, t0},
		"another method": {forged("alg=HS256", ""), t0},
		"changed":        {forged("", "sub=system:serviceaccount:shop:admin"), t0},
		"cut":            {token[:len(token)-4], t0},
	} {
		if _, err := s.Verify(bad.token, bad.now); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
