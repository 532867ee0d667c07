package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// content is what the embedded registry has on disk:
//
//	blobs/<hex>                          configurations, layers and manifests
//	repositories/<name>/_manifests/<hex> the media type of a manifest
//	repositories/<name>/_tags/<tag>      the digest that a tag means
//	uploads/<id>                         blobs that are not complete
//
// A file gets its name when it is complete and on disk.
type content struct {
	dir string
	// mu is held exclusively while sweeping and shared by what adds references.
	mu sync.RWMutex
	// uploads serialises the requests of one upload.
	uploads sync.Map
}

func openContent(dir string) (*content, error) {
	c := &content{dir: dir}
	for _, sub := range []string{"blobs", "repositories", "uploads"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *content) blob(digest string) string {
	return filepath.Join(c.dir, "blobs", strings.TrimPrefix(digest, "sha256:"))
}

func (c *content) hasBlob(digest string) bool {
	_, err := os.Stat(c.blob(digest))
	return err == nil
}

func (c *content) repository(name, kind, entry string) string {
	return filepath.Join(c.dir, "repositories", filepath.FromSlash(name), kind, entry)
}

func (c *content) uploadFile(id string) string { return filepath.Join(c.dir, "uploads", id) }

func (c *content) beginUpload() (string, error) {
	id, err := newUploadID()
	if err != nil {
		return "", err
	}
	f, err := os.OpenFile(c.uploadFile(id), os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	return id, f.Close()
}

func (c *content) lockUpload(id string) func() {
	l, _ := c.uploads.LoadOrStore(id, &sync.Mutex{})
	mu := l.(*sync.Mutex)
	mu.Lock()
	return mu.Unlock
}

var errNoUpload = &wireError{http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "no such upload; begin anew"}

func (c *content) uploaded(id string) (int64, error) {
	info, err := os.Stat(c.uploadFile(id))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, errNoUpload
	}
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// appendUpload adds a part, which must begin where the last one ended, and returns
// the size so far.
func (c *content) appendUpload(id, contentRange string, body io.Reader) (int64, error) {
	defer c.lockUpload(id)()
	have, err := c.uploaded(id)
	if err != nil {
		return 0, err
	}
	if contentRange != "" {
		var from, to int64
		if _, err := fmt.Sscanf(strings.TrimPrefix(contentRange, "bytes "), "%d-%d", &from, &to); err != nil || from != have {
			return 0, &wireError{http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", fmt.Sprintf("the next part begins at %d", have)}
		}
	}
	f, err := os.OpenFile(c.uploadFile(id), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(f, body)
	if err := errors.Join(err, f.Close()); err != nil {
		return 0, err
	}
	if have+n > maxBlob {
		c.dropUpload(id)
		return 0, &wireError{http.StatusRequestEntityTooLarge, "SIZE_INVALID", "the blob is too large"}
	}
	return have + n, nil
}

// commitUpload makes an upload a blob, if it is what its digest says.
func (c *content) commitUpload(id, digest string) error {
	defer c.lockUpload(id)()
	f, err := os.Open(c.uploadFile(id))
	if errors.Is(err, fs.ErrNotExist) {
		return errNoUpload
	}
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != digest {
		c.dropUpload(id)
		return &wireError{http.StatusBadRequest, "DIGEST_INVALID", fmt.Sprintf("the content has digest %s, not %s", got, digest)}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	c.uploads.Delete(id)
	c.mu.RLock()
	defer c.mu.RUnlock()
	return os.Rename(c.uploadFile(id), c.blob(digest))
}

func (c *content) dropUpload(id string) {
	_ = os.Remove(c.uploadFile(id))
	c.uploads.Delete(id)
}

type storedManifest struct {
	digest, mediaType string
	body              []byte
}

// manifest finds a manifest by tag or digest; fs.ErrNotExist if there is none.
func (c *content) manifest(name, ref string) (storedManifest, error) {
	m := storedManifest{digest: ref}
	if !digest.MatchString(ref) {
		b, err := os.ReadFile(c.repository(name, "_tags", ref))
		if err != nil {
			return m, err
		}
		m.digest = string(b)
	}
	mediaType, err := os.ReadFile(c.repository(name, "_manifests", strings.TrimPrefix(m.digest, "sha256:")))
	if err != nil {
		return m, err
	}
	m.mediaType = string(mediaType)
	m.body, err = os.ReadFile(c.blob(m.digest))
	return m, err
}

// references are what a manifest or index names.
type references struct {
	Config    *reference  `json:"config"`
	Layers    []reference `json:"layers"`
	Manifests []reference `json:"manifests"`
	MediaType string      `json:"mediaType"`
}

type reference struct {
	Digest string `json:"digest"`
}

func parseReferences(body []byte) (blobs, manifests []string, mediaType string, err error) {
	var r references
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, nil, "", &wireError{http.StatusBadRequest, "MANIFEST_INVALID", "the manifest is not JSON"}
	}
	all := r.Layers
	if r.Config != nil {
		all = append(slices.Clone(all), *r.Config)
	}
	for _, b := range all {
		blobs = append(blobs, b.Digest)
	}
	for _, m := range r.Manifests {
		manifests = append(manifests, m.Digest)
	}
	return blobs, manifests, r.MediaType, nil
}

// putManifest stores a manifest whose content is there, under its digest and, if
// ref is one, a tag.
func (c *content) putManifest(name, ref, mediaType string, body []byte) (string, error) {
	blobs, manifests, own, err := parseReferences(body)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(body)
	d := "sha256:" + hex.EncodeToString(sum[:])
	if digest.MatchString(ref) && ref != d {
		return "", &wireError{http.StatusBadRequest, "DIGEST_INVALID", fmt.Sprintf("the content has digest %s, not %s", d, ref)}
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, b := range slices.Concat(blobs, manifests) {
		if !digest.MatchString(b) || !c.hasBlob(b) {
			return "", &wireError{http.StatusNotFound, "MANIFEST_BLOB_UNKNOWN", fmt.Sprintf("the manifest refers to %q, which was not pushed", b)}
		}
	}
	if mediaType = cleanMediaType(mediaType); mediaType == "" {
		mediaType = cleanMediaType(own)
	}
	if err := writeAtomic(c.blob(d), body); err != nil {
		return "", err
	}
	if err := writeAtomic(c.repository(name, "_manifests", strings.TrimPrefix(d, "sha256:")), []byte(mediaType)); err != nil {
		return "", err
	}
	if !digest.MatchString(ref) {
		err = writeAtomic(c.repository(name, "_tags", ref), []byte(d))
	}
	return d, err
}

// deleteManifest removes a tag, or a manifest with all tags that mean it.
func (c *content) deleteManifest(name, ref string) error {
	if !digest.MatchString(ref) {
		return os.Remove(c.repository(name, "_tags", ref))
	}
	if err := os.Remove(c.repository(name, "_manifests", strings.TrimPrefix(ref, "sha256:"))); err != nil {
		return err
	}
	tags, err := c.tags(name)
	if err != nil {
		return err
	}
	for _, t := range tags {
		if b, err := os.ReadFile(c.repository(name, "_tags", t)); err == nil && string(b) == ref {
			if err := os.Remove(c.repository(name, "_tags", t)); err != nil {
				return err
			}
		}
	}
	return nil
}

// tags of a repository in order; fs.ErrNotExist if there is no such repository.
func (c *content) tags(name string) ([]string, error) {
	if _, err := os.Stat(c.repository(name, "_manifests", "")); err != nil {
		return nil, err
	}
	return list(c.repository(name, "_tags", ""))
}

func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return []string{}, nil
	}
	out := make([]string, 0, len(entries))
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".tmp-") {
			out = append(out, e.Name())
		}
	}
	return out, err
}

// repositories are the names in order.
func (c *content) repositories() ([]string, error) {
	root := filepath.Join(c.dir, "repositories")
	out := []string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if d.Name() == "_manifests" {
			name, err := filepath.Rel(root, filepath.Dir(p))
			if err != nil {
				return err
			}
			out = append(out, filepath.ToSlash(name))
			return fs.SkipDir
		}
		if d.Name() == "_tags" {
			return fs.SkipDir
		}
		return nil
	})
	slices.Sort(out)
	return out, err
}

// writeAtomic writes a file that is complete or not there, through a crash too.
func writeAtomic(file string, b []byte) error {
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".tmp-")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), file)
}

// Sweep removes what nothing refers to: untagged manifests that inUse does not
// name by digest, and blobs of no manifest. What is younger than minAge stays: it
// may belong to a push under way. It returns how much was removed.
func (s *Server) Sweep(inUse map[string]bool, minAge time.Duration) (removed int, bytes int64, err error) {
	c := s.content
	c.mu.Lock()
	defer c.mu.Unlock()
	before := time.Now().Add(-minAge)
	marked := map[string]bool{}
	names, err := c.repositories()
	if err != nil {
		return 0, 0, err
	}
	for _, name := range names {
		if err := c.markRepository(name, inUse, before, marked); err != nil {
			return 0, 0, err
		}
	}
	for _, dir := range []string{"blobs", "uploads"} {
		entries, err := os.ReadDir(filepath.Join(c.dir, dir))
		if err != nil {
			return removed, bytes, err
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil || info.ModTime().After(before) || marked["sha256:"+e.Name()] {
				continue
			}
			if err := os.Remove(filepath.Join(c.dir, dir, e.Name())); err != nil {
				return removed, bytes, err
			}
			removed++
			bytes += info.Size()
		}
	}
	return removed, bytes, nil
}

// markRepository marks everything that is reachable from a repository's tags, from
// what is in use and from what is young, and unlinks its other manifests.
func (c *content) markRepository(name string, inUse map[string]bool, before time.Time, marked map[string]bool) error {
	tags, err := c.tags(name)
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, t := range tags {
		b, err := os.ReadFile(c.repository(name, "_tags", t))
		if err != nil {
			return err
		}
		keep[string(b)] = true
	}
	entries, err := os.ReadDir(c.repository(name, "_manifests", ""))
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if d := "sha256:" + e.Name(); err == nil && (inUse[d] || info.ModTime().After(before)) {
			keep[d] = true
		}
	}
	local := map[string]bool{}
	var mark func(d string, depth int)
	mark = func(d string, depth int) {
		if local[d] || depth > 4 {
			return
		}
		local[d], marked[d] = true, true
		body, err := os.ReadFile(c.blob(d))
		if err != nil {
			return
		}
		blobs, manifests, _, err := parseReferences(body)
		if err != nil {
			return
		}
		for _, b := range blobs {
			marked[b] = true
		}
		for _, m := range manifests {
			mark(m, depth+1)
		}
	}
	for d := range keep {
		mark(d, 0)
	}
	for _, e := range entries {
		if !local["sha256:"+e.Name()] {
			if err := os.Remove(c.repository(name, "_manifests", e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
