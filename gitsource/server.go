package gitsource

import (
	"compress/gzip"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"syscall"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
)

// Limits on a push.
const (
	maxPushSize    = 1 << 30   // bytes of a pack
	maxObjectSize  = 128 << 20 // bytes of one object, unpacked
	maxObjects     = 2_000_000
	maxRefUpdates  = 1000
	maxRequestSize = 8 << 20 // of a fetch's negotiation
)

// Push is one branch or tag that a push moves.
type Push struct {
	// Key of the repository: "<namespace>/<name>" of its application.
	Key string
	// Ref is the full name, "refs/heads/main".
	Ref string
	// Old and New are SHAs; empty where the ref is made or deleted.
	Old, New string
	// Commit is New's; zero for a deletion.
	Commit Commit
	// Files of New; nil for a deletion. Valid during the call.
	Files fs.FS
}

// Hooks is what the server asks of the rest. Its writers reach the pusher as
// "remote:" lines at once; a pusher that goes away is not an error.
type Hooks interface {
	// Exists says whether there is an application with this key, so that a mistyped
	// URL makes no repository.
	Exists(ctx context.Context, key string) (bool, error)
	// Check may refuse a push before any ref moves. The error is shown to the pusher.
	Check(ctx context.Context, p Push, out io.Writer) error
	// Pushed follows what the push caused, after the ref has moved. Its context does
	// not end when the pusher goes away. An error is told in words; the ref stays.
	Pushed(ctx context.Context, p Push, out io.Writer) error
}

// Server is the embedded Git server: smart HTTP, push and fetch. It serves the
// repositories of a Repositories under "/<namespace>/<name>.git".
type Server struct {
	repos *Repositories
	hooks Hooks
	// background ends with the daemon: rollouts outlive the pusher's connection.
	background context.Context
	user       string
	token      string
}

// NewServer returns a server that lets in who knows user and token. Hooks that
// follow a rollout run until background ends.
func NewServer(background context.Context, repos *Repositories, hooks Hooks, user, token string) *Server {
	return &Server{repos: repos, hooks: hooks, background: background, user: user, token: token}
}

// httpError is an answer other than 200.
type httpError struct {
	code int
	text string
}

func (e *httpError) Error() string { return e.text }

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	err := s.serve(w, r)
	var he *httpError
	switch {
	case err == nil:
	case errors.As(err, &he):
		if he.code == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Basic realm="gitk8s"`)
		}
		http.Error(w, he.text, he.code)
	case errors.Is(err, syscall.ENOSPC):
		http.Error(w, "no space is left in the data directory", http.StatusInsufficientStorage)
	default:
		slog.Warn("git request failed", "path", r.URL.Path, "error", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) error {
	user, token, ok := r.BasicAuth()
	if !ok || subtle.ConstantTimeCompare([]byte(user), []byte(s.user))&subtle.ConstantTimeCompare([]byte(token), []byte(s.token)) != 1 {
		return &httpError{http.StatusUnauthorized, "credentials are needed: see `gitk8s remote APP`"}
	}
	key, service, ok := splitPath(r.URL.Path)
	if !ok {
		return &httpError{http.StatusNotFound, "no such repository; the path is /<namespace>/<application>.git"}
	}
	exists, err := s.hooks.Exists(r.Context(), key)
	if err != nil {
		return err
	}
	if !exists {
		return &httpError{http.StatusNotFound, fmt.Sprintf("there is no application %s; `gitk8s app create` makes one", key)}
	}
	dir, _, err := s.repos.dir(Location{Key: key})
	if err != nil {
		return &httpError{http.StatusNotFound, err.Error()}
	}
	if err := create(dir); err != nil {
		return err
	}
	switch {
	case service == "info/refs" && r.Method == http.MethodGet:
		return s.advertise(w, r, dir)
	case service == "git-receive-pack" && r.Method == http.MethodPost:
		return s.post(w, r, func(body io.Reader) error { return s.receive(w, r, key, dir, body) })
	case service == "git-upload-pack" && r.Method == http.MethodPost:
		return s.post(w, r, func(body io.Reader) error { return s.upload(w, dir, body) })
	}
	return &httpError{http.StatusNotFound, "not a request that git makes"}
}

// splitPath takes "/<namespace>/<name>.git/<service>" apart.
func splitPath(p string) (key, service string, ok bool) {
	parts := strings.SplitN(strings.TrimPrefix(p, "/"), "/", 3)
	if len(parts) != 3 {
		return "", "", false
	}
	name, isGit := strings.CutSuffix(parts[1], ".git")
	if !isGit || !validName(parts[0]) || !validName(name) {
		return "", "", false
	}
	return parts[0] + "/" + name, parts[2], true
}

// validName accepts what Kubernetes accepts as a name.
func validName(s string) bool {
	return s != "" && len(s) <= 253 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-.") == "" && s[0] != '.' && s[0] != '-'
}

// post hands the request's body on, unpacked and bounded.
func (s *Server) post(w http.ResponseWriter, r *http.Request, f func(io.Reader) error) error {
	body := io.Reader(http.MaxBytesReader(w, r.Body, maxPushSize))
	if r.Header.Get("Content-Encoding") == "gzip" {
		zip, err := gzip.NewReader(body)
		if err != nil {
			return &httpError{http.StatusBadRequest, "the body is not gzip"}
		}
		defer zip.Close()
		body = io.LimitReader(zip, maxPushSize)
	}
	// Progress is written while the client may still be sending.
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return f(body)
}

// advertise answers /info/refs.
func (s *Server) advertise(w http.ResponseWriter, r *http.Request, dir string) error {
	service := r.URL.Query().Get("service")
	adv := packp.NewAdvRefs()
	adv.Prefix = [][]byte{[]byte("# service=" + service), {}}
	caps := []capability.Capability{capability.OFSDelta}
	switch service {
	case "git-receive-pack":
		caps = append(caps, capability.ReportStatus, capability.Sideband64k, capability.DeleteRefs, capability.Atomic,
			capability.PushOptions, "no-thin")
	case "git-upload-pack":
		caps = append(caps, capability.MultiACKDetailed, capability.Sideband64k, capability.NoProgress)
	default:
		return &httpError{http.StatusForbidden, "only the smart protocol is spoken here"}
	}
	for _, c := range caps {
		if err := adv.Capabilities.Add(c); err != nil {
			return err
		}
	}
	_ = adv.Capabilities.Set(capability.Agent, "gitk8s")
	lock := s.repos.lock(dir)
	lock.RLock()
	defer lock.RUnlock()
	repo, err := open(dir)
	if err != nil {
		return err
	}
	defer repo.close()
	it, err := repo.storage.IterReferences()
	if err != nil {
		return err
	}
	err = it.ForEach(func(ref *plumbing.Reference) error {
		if ref.Type() == plumbing.HashReference && !strings.HasPrefix(string(ref.Name()), keepPrefix) {
			adv.References[string(ref.Name())] = ref.Hash()
		}
		return nil
	})
	if err != nil {
		return err
	}
	if service == "git-upload-pack" {
		head, err := repo.storage.Reference(plumbing.HEAD)
		if err == nil && head.Type() == plumbing.SymbolicReference {
			if h, ok := adv.References[string(head.Target())]; ok {
				adv.Head = &h
				_ = adv.Capabilities.Add(capability.SymRef, "HEAD:"+string(head.Target()))
			}
		}
	}
	w.Header().Set("Content-Type", "application/x-"+service+"-advertisement")
	w.Header().Set("Cache-Control", "no-cache")
	return adv.Encode(w)
}

// Remove deletes the repository of an application that is gone.
func (r *Repositories) Remove(key string) error {
	dir, _, err := r.dir(Location{Key: key})
	if err != nil {
		return err
	}
	lock := r.lock(dir)
	lock.Lock()
	defer lock.Unlock()
	return os.RemoveAll(dir)
}
