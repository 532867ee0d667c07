package gitsource

import (
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// httpsHost is git's own HTTP server for a work tree, behind TLS with a private
// authority, for who sends a header Authorization that allow lets in.
type httpsHost struct {
	*httptest.Server
	ca          []byte
	mu          sync.Mutex
	requests    []*http.Request
	connections int
}

func newHTTPSHost(t *testing.T, c *clone, allow func(*http.Request) bool) *httpsHost {
	t.Helper()
	path, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	git := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(path)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + c.dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null"},
	}
	h := &httpsHost{}
	h.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		h.requests = append(h.requests, r)
		h.mu.Unlock()
		if !allow(r) {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		git.ServeHTTP(w, r)
	}))
	h.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if s == http.StateNew {
			h.connections++
		}
	}
	h.StartTLS()
	t.Cleanup(h.Close)
	h.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw})
	return h
}

// counts returns the requests and connections since the last call.
func (h *httpsHost) counts() (requests []*http.Request, connections int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	requests, connections = h.requests, h.connections
	h.requests, h.connections = nil, 0
	return requests, connections
}

// TestMirrorOverHTTPS follows a repository with a token, trusting a private
// certificate authority.
func TestMirrorOverHTTPS(t *testing.T) {
	c := newClone(t)
	first := c.commit("app.yaml", "v1")
	h := newHTTPSHost(t, c, func(r *http.Request) bool {
		_, password, _ := r.BasicAuth()
		return password == "s3cret" || r.Header.Get("Authorization") == "Bearer s3cret"
	})
	for name, secret := range map[string]map[string][]byte{
		"password":     {"username": []byte("me"), "password": []byte("s3cret"), "ca.crt": h.ca},
		"token":        {"token": []byte("s3cret\n"), "ca.crt": h.ca},
		"bearer token": {"bearerToken": []byte("s3cret\n"), "ca.crt": h.ca},
	} {
		t.Run(name, func(t *testing.T) {
			repos := newMirrors(t)
			l := Location{URL: h.URL + "/.git", Ref: "main", Auth: AuthFrom(secret)}
			if got, err := repos.Fetch(t.Context(), l); err != nil || got.SHA != first {
				t.Fatalf("fetched %+v, %v", got, err)
			}
			h.counts()
			for range 5 {
				if got, err := repos.Fetch(t.Context(), l); err != nil || got.SHA != first {
					t.Fatalf("fetched %+v, %v", got, err)
				}
			}
			requests, connections := h.counts()
			if len(requests) != 5 || connections > 1 {
				t.Errorf("five looks at an unchanged remote made %d requests and %d connections, want 5 and at most 1", len(requests), connections)
			}
		})
	}
	for _, tt := range []struct {
		name   string
		secret map[string][]byte // nil for none
		kind   error
		want   string
	}{
		{"no Secret and no trust", nil, ErrUnreachable, "ca.crt of the Secret"},
		{"untrusted certificate", map[string][]byte{"token": []byte("s3cret")}, ErrUnreachable, "ca.crt of the Secret"},
		{"wrong token", map[string][]byte{"token": []byte("guess"), "ca.crt": h.ca}, ErrAuth, "does not accept the credentials"},
		{"wrong bearer token", map[string][]byte{"bearerToken": []byte("guess"), "ca.crt": h.ca}, ErrAuth, "does not accept the credentials"},
		{"no token", map[string][]byte{"ca.crt": h.ca}, ErrAuth, "has no username and password"},
		{"authority that is none", map[string][]byte{"token": []byte("s3cret"), "ca.crt": []byte("nonsense")}, ErrAuth, "ca.crt has no certificate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := Location{URL: h.URL + "/.git", Ref: "main"}
			if tt.secret != nil {
				l.Auth = AuthFrom(tt.secret)
			}
			_, err := newMirrors(t).Fetch(t.Context(), l)
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), h.URL) {
				t.Errorf("%v\nwant %v with %q", err, tt.kind, tt.want)
			}
			if err != nil && (strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "guess")) {
				t.Errorf("the error tells the token: %v", err)
			}
		})
	}
}

// TestRedirectKeepsCredentials: a remote that sends us elsewhere does not make us
// show its credentials there, neither on the redirect nor afterwards.
func TestRedirectKeepsCredentials(t *testing.T) {
	c := newClone(t)
	first := c.commit("app.yaml", "v1")
	elsewhere := newHTTPSHost(t, c, func(*http.Request) bool { return true })
	for name, auth := range map[string]*Auth{
		"password":     {Username: "me", Password: "s3cret", CA: elsewhere.ca},
		"bearer token": {BearerToken: "s3cret", CA: elsewhere.ca},
	} {
		t.Run(name, func(t *testing.T) {
			elsewhere.counts()
			asked := false
			home := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked = asked || r.Header.Get("Authorization") != ""
				http.Redirect(w, r, elsewhere.URL+r.URL.RequestURI(), http.StatusFound)
			}))
			defer home.Close()
			got, err := newMirrors(t).Fetch(t.Context(), Location{URL: home.URL + "/.git", Ref: "main", Auth: auth})
			if err != nil || got.SHA != first || !asked {
				t.Fatalf("fetched %+v, %v; the first host was shown credentials: %v", got, err, asked)
			}
			requests, _ := elsewhere.counts()
			if len(requests) < 2 {
				t.Errorf("%d requests after the redirect, want those of a fetch", len(requests))
			}
			for _, r := range requests {
				if v := r.Header.Get("Authorization"); v != "" {
					t.Errorf("%s %s was sent %q", r.Method, r.URL.Path, v)
				}
			}
		})
	}
}
