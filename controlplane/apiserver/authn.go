package apiserver

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"net/http"
	"sync"

	apiserverapi "k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/group"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/union"
	x509request "k8s.io/apiserver/pkg/authentication/request/x509"
	tokenunion "k8s.io/apiserver/pkg/authentication/token/union"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
)

// anonymousPaths may be read without saying who one is.
var anonymousPaths = []string{"/healthz", "/livez", "/readyz", "/version"}

// authenticator knows client certificates of the cluster's authority, the tokens of
// components in this process and those of service accounts. Everybody else is refused, but for the
// health endpoints.
func (s *Server) authenticator() authenticator.Request {
	verify := func() (opts x509.VerifyOptions, ok bool) {
		ca, err := dynamiccertificates.NewStaticCAContent("client-ca", s.config.CA.CertPEM())
		if err != nil {
			return opts, false
		}
		return ca.VerifyOptions()
	}
	opts, ok := verify()
	known := union.New(
		x509request.NewDynamic(func() (x509.VerifyOptions, bool) { return opts, ok }, x509request.CommonNameUserConversion),
		bearertoken.New(tokenunion.New(s.tokens, s.accountTokens)),
	)
	conditions := make([]apiserverapi.AnonymousAuthCondition, 0, len(anonymousPaths))
	for _, p := range anonymousPaths {
		conditions = append(conditions, apiserverapi.AnonymousAuthCondition{Path: p})
	}
	return union.NewFailOnError(
		group.NewAuthenticatedGroupAdder(known),
		authenticator.RequestFunc(func(r *http.Request) (*authenticator.Response, bool, error) {
			return anonymous.NewAuthenticator(conditions).AuthenticateRequest(r)
		}),
	)
}

// tokens are the bearer tokens of clients in this process. They are random, are
// kept as hashes and end with the process.
type tokens struct {
	mu    sync.RWMutex
	users map[[sha256.Size]byte]*user.DefaultInfo
}

func newTokens() *tokens { return &tokens{users: map[[sha256.Size]byte]*user.DefaultInfo{}} }

// issue makes a token for a user.
func (t *tokens) issue(name string, groups []string) string {
	token := newToken()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.users[sha256.Sum256([]byte(token))] = &user.DefaultInfo{Name: name, Groups: groups}
	return token
}

// AuthenticateToken implements authenticator.Token.
func (t *tokens) AuthenticateToken(_ context.Context, token string) (*authenticator.Response, bool, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	info, ok := t.users[sha256.Sum256([]byte(token))]
	if !ok {
		return nil, false, nil
	}
	return &authenticator.Response{User: info}, true, nil
}
