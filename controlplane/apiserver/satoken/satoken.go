// Package satoken makes and reads the tokens of service accounts: JWTs that are
// bound to an audience, a time and an object ("Managing Service Accounts", bound
// service account tokens; KEP-1205).
//
// It knows signatures and claims. Whether what a token is bound to still exists is
// for the caller to find out.
package satoken

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Issuer is who signs the tokens, and the audience of the API itself.
const Issuer = "https://kubernetes.default.svc.cluster.local"

// Object names one version of an object: another of the same name has another UID.
type Object struct {
	Name string `json:"name"`
	UID  string `json:"uid,omitempty"`
}

// Binding says whose a token is and what must exist for it to be valid.
type Binding struct {
	Namespace      string  `json:"namespace"`
	ServiceAccount Object  `json:"serviceaccount"`
	Pod            *Object `json:"pod,omitempty"`
	Secret         *Object `json:"secret,omitempty"`
	// Node is that of the pod, or what the token is bound to where there is no pod.
	Node *Object `json:"node,omitempty"`
}

// Claims are what a token says.
type Claims struct {
	jwt.RegisteredClaims
	Binding Binding `json:"kubernetes.io"`
}

// Signer makes and checks tokens with one key.
type Signer struct {
	key *ecdsa.PrivateKey
	id  string
}

// NewSigner returns a signer with a P-256 key.
func NewSigner(key *ecdsa.PrivateKey) (*Signer, error) {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("service account tokens: encode the public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return &Signer{key: key, id: base64.RawURLEncoding.EncodeToString(sum[:])}, nil
}

// Sign makes a token that is valid from now until expires.
func (s *Signer) Sign(b Binding, audiences []string, now, expires time.Time) (string, error) {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return "", err
	}
	claims := Claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: Issuer, Subject: "system:serviceaccount:" + b.Namespace + ":" + b.ServiceAccount.Name, Audience: audiences,
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(expires),
			ID: hex.EncodeToString(id),
		},
		Binding: b,
	}
	token := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
	token.Header["kid"] = s.id
	signed, err := token.SignedString(s.key)
	if err != nil {
		return "", fmt.Errorf("sign a service account token: %w", err)
	}
	return signed, nil
}

// Issued says whether a token claims to be one of these, without checking it.
func Issued(token string) bool {
	if strings.Count(token, ".") != 2 {
		return false
	}
	var claims Claims
	_, _, err := jwt.NewParser().ParseUnverified(token, &claims)
	return err == nil && claims.Issuer == Issuer
}

// leeway is what the clocks of servers may differ by, as Kubernetes has it.
const leeway = time.Minute

// Verify checks signature, issuer and time of a token.
func (s *Signer) Verify(token string, now time.Time) (*Claims, error) {
	var claims Claims
	_, err := jwt.ParseWithClaims(token, &claims, func(t *jwt.Token) (any, error) {
		if t.Header["kid"] != s.id {
			return nil, fmt.Errorf("signed with another key")
		}
		return s.key.Public(), nil
	}, jwt.WithValidMethods([]string{jwt.SigningMethodES256.Alg()}), jwt.WithIssuer(Issuer), jwt.WithExpirationRequired(), jwt.WithLeeway(leeway),
		jwt.WithTimeFunc(func() time.Time { return now }))
	if err != nil {
		return nil, fmt.Errorf("service account token: %w", err)
	}
	if b := claims.Binding; claims.Subject != "system:serviceaccount:"+b.Namespace+":"+b.ServiceAccount.Name {
		return nil, fmt.Errorf("service account token: subject %q is not the account that it names", claims.Subject)
	}
	return &claims, nil
}
