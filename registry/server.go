package registry

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// Limits of what a push may bring.
const (
	maxBlob = 16 << 30
)

// Server is the embedded registry: the OCI distribution protocol, version 1.1,
// with its content on disk. Safe for concurrent use.
type Server struct {
	content           *content
	user, token, pull string
}

// NewServer serves the content of dir, which is made if it does not exist, to who
// knows user and token. With the password pull in place of token one can only read.
func NewServer(dir, user, token, pull string) (*Server, error) {
	c, err := openContent(dir)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return &Server{content: c, user: user, token: token, pull: pull}, nil
}

// wireError is an error as the protocol words it.
type wireError struct {
	status        int
	code, message string
}

func (e *wireError) Error() string { return e.message }

func notKnown(code, what string) error {
	return &wireError{http.StatusNotFound, code, what + " is not known here"}
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	err := s.serve(w, r)
	if err == nil {
		return
	}
	var we *wireError
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &we):
	case errors.As(err, &large):
		we = &wireError{http.StatusRequestEntityTooLarge, "SIZE_INVALID", "too large"}
	case errors.Is(err, syscall.ENOSPC):
		we = &wireError{http.StatusInsufficientStorage, "DENIED", "no space is left in the data directory"}
	default:
		slog.Warn("registry request failed", "method", r.Method, "path", r.URL.Path, "error", err)
		we = &wireError{http.StatusInternalServerError, "UNKNOWN", "internal error"}
	}
	if we.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="gitk8s"`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(we.status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": we.code, "message": we.message}}})
}

// Names and tags by the grammar of the specification, section "Pulling manifests".
const namePattern = `[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*`

var (
	route  = regexp.MustCompile(`^/v2/(` + namePattern + `)/(manifests|blobs|tags)/(.+)$`)
	tag    = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	digest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	upload = regexp.MustCompile(`^uploads/([0-9a-f]{32})?$`)
)

func (s *Server) authorize(r *http.Request) error {
	equal := func(a, b string) bool { return b != "" && subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
	user, token, ok := r.BasicAuth()
	switch {
	case ok && equal(user, s.user) && equal(token, s.token):
		return nil
	case !ok || !equal(user, s.user) || !equal(token, s.pull):
		return &wireError{http.StatusUnauthorized, "UNAUTHORIZED", "credentials are needed; `gitk8s info` names a docker config file that has them"}
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return &wireError{http.StatusForbidden, "DENIED", "these credentials are for pulling alone"}
	}
	return nil
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) error {
	if err := s.authorize(r); err != nil {
		return err
	}
	switch r.URL.Path {
	case "/v2", "/v2/":
		return sendJSON(w, struct{}{})
	case "/v2/_catalog":
		return s.catalog(w)
	}
	m := route.FindStringSubmatch(r.URL.Path)
	if m == nil || len(m[1]) > 255 {
		return notKnown("NAME_UNKNOWN", r.URL.Path)
	}
	name, what := m[1], m[3]
	switch {
	case m[2] == "manifests":
		return s.manifest(w, r, name, what)
	case m[2] == "tags" && what == "list":
		return s.tags(w, name)
	case m[2] == "blobs" && digest.MatchString(what):
		return s.blob(w, r, what)
	case m[2] == "blobs" && upload.MatchString(what):
		return s.upload(w, r, name, upload.FindStringSubmatch(what)[1])
	}
	return notKnown("NAME_UNKNOWN", r.URL.Path)
}

func sendJSON(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(v)
}

func (s *Server) catalog(w http.ResponseWriter) error {
	names, err := s.content.repositories()
	if err != nil {
		return err
	}
	return sendJSON(w, map[string][]string{"repositories": names})
}

func (s *Server) tags(w http.ResponseWriter, name string) error {
	tags, err := s.content.tags(name)
	if errors.Is(err, fs.ErrNotExist) {
		return notKnown("NAME_UNKNOWN", name)
	}
	if err != nil {
		return err
	}
	return sendJSON(w, map[string]any{"name": name, "tags": tags})
}

func (s *Server) manifest(w http.ResponseWriter, r *http.Request, name, ref string) error {
	if !digest.MatchString(ref) && !tag.MatchString(ref) {
		return &wireError{http.StatusBadRequest, "TAG_INVALID", "neither a tag nor a digest: " + ref}
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		m, err := s.content.manifest(name, ref)
		if errors.Is(err, fs.ErrNotExist) {
			return notKnown("MANIFEST_UNKNOWN", name+":"+ref)
		}
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", m.mediaType)
		w.Header().Set("Docker-Content-Digest", m.digest)
		w.Header().Set("Content-Length", strconv.Itoa(len(m.body)))
		if r.Method == http.MethodGet {
			_, err = w.Write(m.body)
		}
		return err
	case http.MethodPut:
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxManifest))
		if err != nil {
			return err
		}
		d, err := s.content.putManifest(name, ref, r.Header.Get("Content-Type"), body)
		if err != nil {
			return err
		}
		w.Header().Set("Docker-Content-Digest", d)
		w.Header().Set("Location", "/v2/"+name+"/manifests/"+d)
		w.WriteHeader(http.StatusCreated)
		return nil
	case http.MethodDelete:
		if err := s.content.deleteManifest(name, ref); errors.Is(err, fs.ErrNotExist) {
			return notKnown("MANIFEST_UNKNOWN", name+":"+ref)
		} else if err != nil {
			return err
		}
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	return &wireError{http.StatusMethodNotAllowed, "UNSUPPORTED", r.Method}
}

func (s *Server) blob(w http.ResponseWriter, r *http.Request, d string) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return &wireError{http.StatusMethodNotAllowed, "UNSUPPORTED", "blobs go when nothing refers to them"}
	}
	f, err := os.Open(s.content.blob(d))
	if errors.Is(err, fs.ErrNotExist) {
		return notKnown("BLOB_UNKNOWN", d)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", d)
	http.ServeContent(w, r, "", info.ModTime(), f) // ranges too
	return nil
}

// upload takes a blob: in one request, or begun by POST, continued by PATCH and
// ended by PUT.
func (s *Server) upload(w http.ResponseWriter, r *http.Request, name, id string) error {
	q := r.URL.Query()
	switch {
	case r.Method == http.MethodPost && id == "":
		// A blob is stored once for all repositories, so that a mount is a look.
		if d := q.Get("mount"); digest.MatchString(d) && s.content.hasBlob(d) {
			return created(w, name, d)
		}
		id, err := s.content.beginUpload()
		if err != nil {
			return err
		}
		if d := q.Get("digest"); d != "" {
			return s.finish(w, r, name, id, d)
		}
		return accepted(w, name, id, 0)
	case id == "":
	case r.Method == http.MethodPatch:
		n, err := s.content.appendUpload(id, r.Header.Get("Content-Range"), http.MaxBytesReader(w, r.Body, maxBlob))
		if err != nil {
			return err
		}
		return accepted(w, name, id, n)
	case r.Method == http.MethodPut:
		return s.finish(w, r, name, id, q.Get("digest"))
	case r.Method == http.MethodGet:
		n, err := s.content.uploaded(id)
		if err != nil {
			return err
		}
		w.Header().Set("Range", fmt.Sprintf("0-%d", max(n-1, 0)))
		w.WriteHeader(http.StatusNoContent)
		return nil
	case r.Method == http.MethodDelete:
		s.content.dropUpload(id)
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return &wireError{http.StatusMethodNotAllowed, "UNSUPPORTED", r.Method}
}

func (s *Server) finish(w http.ResponseWriter, r *http.Request, name, id, d string) error {
	if !digest.MatchString(d) {
		return &wireError{http.StatusBadRequest, "DIGEST_INVALID", "only sha256 digests are taken"}
	}
	if _, err := s.content.appendUpload(id, r.Header.Get("Content-Range"), http.MaxBytesReader(w, r.Body, maxBlob)); err != nil {
		return err
	}
	if err := s.content.commitUpload(id, d); err != nil {
		return err
	}
	return created(w, name, d)
}

func created(w http.ResponseWriter, name, d string) error {
	w.Header().Set("Docker-Content-Digest", d)
	w.Header().Set("Location", "/v2/"+name+"/blobs/"+d)
	w.WriteHeader(http.StatusCreated)
	return nil
}

func accepted(w http.ResponseWriter, name, id string, n int64) error {
	w.Header().Set("Location", "/v2/"+name+"/blobs/uploads/"+id)
	w.Header().Set("Docker-Upload-UUID", id)
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(n-1, 0)))
	w.WriteHeader(http.StatusAccepted)
	return nil
}

func newUploadID() (string, error) {
	b := make([]byte, 16)
	_, err := rand.Read(b)
	return hex.EncodeToString(b), err
}

// cleanMediaType keeps a media type from being used to inject anything.
func cleanMediaType(s string) string {
	s, _, _ = strings.Cut(s, ";")
	if s = strings.TrimSpace(s); len(s) > 200 || strings.ContainsAny(s, "\r\n\"") {
		return ""
	}
	return s
}
