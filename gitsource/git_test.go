package gitsource

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// clone is a work tree driven by the real git.
type clone struct {
	t   *testing.T
	dir string
}

func newClone(t *testing.T) *clone {
	t.Helper()
	c := &clone{t, t.TempDir()}
	c.git("init", "-q", "-b", "main")
	return c
}

func (c *clone) command(args ...string) *exec.Cmd {
	cmd := exec.Command("git", args...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_TERMINAL_PROMPT=0", "GIT_AUTHOR_NAME=A", "GIT_AUTHOR_EMAIL=a@example.com",
		"GIT_COMMITTER_NAME=A", "GIT_COMMITTER_EMAIL=a@example.com")
	return cmd
}

func (c *clone) try(args ...string) (string, error) {
	out, err := c.command(args...).CombinedOutput()
	return string(out), err
}

func (c *clone) git(args ...string) string {
	c.t.Helper()
	out, err := c.try(args...)
	if err != nil {
		c.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(out)
}

func (c *clone) write(name, content string) {
	c.t.Helper()
	full := filepath.Join(c.dir, name)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(full, []byte(content), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

func (c *clone) commit(name, content string) (sha string) {
	c.t.Helper()
	c.write(name, content)
	c.git("add", "-A")
	c.git("commit", "-q", "-m", "change "+name)
	return c.git("rev-parse", "HEAD")
}

// hooks records pushes and refuses what contains "bad".
type hooks struct {
	mu     sync.Mutex
	pushed []Push
}

func (h *hooks) Exists(_ context.Context, key string) (bool, error) {
	return key == "default/shop", nil
}

func (h *hooks) Check(_ context.Context, p Push, out io.Writer) error {
	fmt.Fprintf(out, "checking %s\n", p.Ref)
	if p.Files == nil {
		return nil
	}
	b, err := fs.ReadFile(p.Files, "app.yaml")
	if err == nil && bytes.Contains(b, []byte("bad")) {
		return errors.New("app.yaml:1: bad manifest")
	}
	return nil
}

func (h *hooks) Pushed(_ context.Context, p Push, out io.Writer) error {
	fmt.Fprintln(out, "web: 3 of 3 pods ready")
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pushed = append(h.pushed, p)
	return nil
}

func serve(t *testing.T) (repos *Repositories, h *hooks, url string) {
	t.Helper()
	dir := t.TempDir()
	repos = NewRepositories(filepath.Join(dir, "mirrors"), filepath.Join(dir, "git"))
	h = &hooks{}
	srv := httptest.NewServer(NewServer(t.Context(), repos, h, "gitk8s", "secret"))
	t.Cleanup(srv.Close)
	return repos, h, strings.Replace(srv.URL, "http://", "http://gitk8s:secret@", 1) + "/default/shop.git"
}

func TestPush(t *testing.T) {
	repos, h, url := serve(t)
	ctx, here := t.Context(), Location{Key: "default/shop", Ref: "main"}
	if _, err := repos.Fetch(ctx, here); !errors.Is(err, ErrEmpty) {
		t.Fatalf("before the first push: %v, want ErrEmpty", err)
	}
	c := newClone(t)
	first := c.commit("app.yaml", "v1")
	out := c.git("push", url, "main")
	for _, want := range []string{"remote: checking refs/heads/main", "remote: web: 3 of 3 pods ready"} {
		if !strings.Contains(out, want) {
			t.Errorf("the pusher does not see %q:\n%s", want, out)
		}
	}
	got, err := repos.Fetch(ctx, here)
	if err != nil || got.SHA != first || got.Subject != "change app.yaml" || got.Author != "A <a@example.com>" {
		t.Fatalf("fetched %+v, %v", got, err)
	}

	second := c.commit("app.yaml", "bad")
	if out, err := c.try("push", url, "main"); err == nil || !strings.Contains(out, "app.yaml:1: bad manifest") || !strings.Contains(out, "[remote rejected]") {
		t.Fatalf("a bad push: %v\n%s", err, out)
	}
	if got, _ := repos.Fetch(ctx, here); got.SHA != first {
		t.Fatalf("a refused push moved the branch to %s", got.SHA)
	}
	if _, err := repos.Commit(ctx, here, second); err == nil {
		t.Error("the objects of a refused push were let in")
	}

	c.git("reset", "-q", "--hard", first)
	for i := range 3 {
		c.commit(fmt.Sprintf("f%d", i), "x")
	}
	third := c.git("rev-parse", "HEAD")
	c.git("push", url, "main", "HEAD:refs/heads/other")
	if ok, err := repos.IsAncestor(ctx, here, first, third); err != nil || !ok {
		t.Errorf("IsAncestor(first, third) = %v, %v", ok, err)
	}
	if ok, _ := repos.IsAncestor(ctx, here, third, first); ok {
		t.Error("a commit is its descendant's ancestor only")
	}

	// Another clone sees it all, then falls behind and catches up.
	other := &clone{t, t.TempDir()}
	other.git("clone", "-q", url, ".")
	if got := other.git("rev-parse", "HEAD"); got != third {
		t.Errorf("cloned %s, want %s", got, third)
	}
	fourth := c.commit("g", "y")
	c.git("tag", "-a", "v1.2.0", "-m", "release")
	c.git("push", url, "main", "v1.2.0")
	other.git("pull", "-q", "--tags")
	if got := other.git("rev-parse", "HEAD"); got != fourth {
		t.Errorf("pulled %s, want %s", got, fourth)
	}
	for ref, want := range map[string]string{"v1.2.0": fourth, ">=1.0 <2": fourth, fourth[:8]: fourth, third: third, "other": third} {
		if got, err := repos.Fetch(ctx, Location{Key: "default/shop", Ref: ref}); err != nil || got.SHA != want {
			t.Errorf("ref %q is %s, %v; want %s", ref, got.SHA, err, want)
		}
	}
	if _, err := repos.Fetch(ctx, Location{Key: "default/shop", Ref: "nope"}); !errors.Is(err, ErrRefNotFound) || !strings.Contains(err.Error(), "main, other") {
		t.Errorf("a missing ref: %v", err)
	}

	// A force-push that drops a kept commit loses nothing that may be rolled back to.
	if err := repos.Keep(ctx, here, []string{fourth}); err != nil {
		t.Fatal(err)
	}
	c.git("reset", "-q", "--hard", first)
	fifth := c.commit("h", "z")
	if out, err := c.try("push", url, "main"); err == nil {
		t.Fatalf("a non-fast-forward push without --force passed:\n%s", out)
	}
	c.git("push", "--force", url, "main", ":other")
	if got, _ := repos.Fetch(ctx, here); got.SHA != fifth {
		t.Errorf("after the force-push main is %s", got.SHA)
	}
	if _, err := repos.Commit(ctx, here, fourth); err != nil {
		t.Errorf("the kept commit is gone: %v", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.pushed); n != 7 {
		t.Errorf("%d references moved, want 7", n)
	}
}

func TestPushIsRefused(t *testing.T) {
	_, _, url := serve(t)
	c := newClone(t)
	c.commit("app.yaml", "v1")
	for _, u := range []string{
		strings.Replace(url, "gitk8s:secret@", "", 1),
		strings.Replace(url, "secret", "wrong", 1),
	} {
		if out, err := c.try("push", u, "main"); err == nil || !strings.Contains(out, "could not read Username") && !strings.Contains(out, "Authentication failed") {
			t.Errorf("push to %s: %v\n%s", u, err, out)
		}
	}
	if out, err := c.try("push", strings.Replace(url, "shop", "nope", 1), "main"); err == nil || !strings.Contains(out, "not found") {
		t.Errorf("push to an unknown application: %v\n%s", err, out)
	}
	if out, err := c.try("push", url, "HEAD:refs/notes/x"); err == nil || !strings.Contains(out, "is not the name of a branch or tag") {
		t.Errorf("push of notes: %v\n%s", err, out)
	}
	// A file that packs small and unpacks large.
	if err := os.WriteFile(filepath.Join(c.dir, "bomb"), make([]byte, maxObjectSize+1), 0o644); err != nil {
		t.Fatal(err)
	}
	c.git("add", "-A")
	c.git("commit", "-q", "-m", "bomb")
	if out, err := c.try("push", url, "main"); err == nil || !strings.Contains(out, "an object of the push has 128 MiB") {
		t.Errorf("push of a bomb: %v\n%s", err, out)
	}
}

// TestRepackKeepsEverything: many small pushes are repacked, and nothing is lost.
func TestRepackKeepsEverything(t *testing.T) {
	repos, _, url := serve(t)
	c := newClone(t)
	var shas []string
	for i := range repackAt + 5 {
		shas = append(shas, c.commit("f", fmt.Sprint(i)))
		c.git("push", "-q", url, "main")
	}
	packs, err := filepath.Glob(filepath.Join(repos.local, "default/shop.git/objects/pack/*.pack"))
	if err != nil || len(packs) > 10 {
		t.Errorf("%d packs after %d pushes, %v", len(packs), len(shas), err)
	}
	for _, sha := range shas {
		if _, err := repos.Commit(t.Context(), Location{Key: "default/shop"}, sha); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMirror follows a remote over HTTP, counting its round trips.
func TestMirror(t *testing.T) {
	origin, _, url := serve(t)
	_ = origin
	c := newClone(t)
	first := c.commit("deploy/app.yaml", "v1")
	if err := os.Symlink("/etc/passwd", filepath.Join(c.dir, "evil")); err != nil {
		t.Fatal(err)
	}
	c.git("add", "-A")
	c.git("commit", "-q", "-m", "link")
	second := c.git("rev-parse", "HEAD")
	c.git("push", "-q", url, "main")

	requests := 0
	target := url[strings.Index(url, "@")+1:]
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests++
		r.URL.Scheme, r.URL.Host, r.RequestURI = "http", target[:strings.Index(target, "/")], ""
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		for k, v := range resp.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	}))
	defer proxy.Close()

	dir := t.TempDir()
	repos := NewRepositories(filepath.Join(dir, "mirrors"), filepath.Join(dir, "git"))
	l := Location{URL: proxy.URL + "/default/shop.git", Ref: "main", Auth: &Auth{Username: "gitk8s", Password: "secret"}}
	got, err := repos.Fetch(t.Context(), l)
	if err != nil || got.SHA != second {
		t.Fatalf("fetched %+v, %v", got, err)
	}
	requests = 0
	if _, err := repos.Fetch(t.Context(), l); err != nil || requests > 1 {
		t.Errorf("an unchanged remote cost %d round trips, %v; want 1", requests, err)
	}
	files, err := repos.Files(t.Context(), l, second)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := fs.ReadFile(files, "deploy/app.yaml"); err != nil || string(b) != "v1" {
		t.Errorf("deploy/app.yaml is %q, %v", b, err)
	}
	if target, err := fs.ReadLink(files, "evil"); err != nil || target != "/etc/passwd" {
		t.Errorf("link: %q, %v", target, err)
	}
	if info, err := fs.Lstat(files, "evil"); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link is not shown as one: %v, %v", info, err)
	}
	if ok, err := repos.IsAncestor(t.Context(), l, first, second); err != nil || !ok {
		t.Errorf("IsAncestor: %v, %v", ok, err)
	}
	l.Auth.Password = "wrong"
	if _, err := repos.Fetch(t.Context(), l); !errors.Is(err, ErrAuth) {
		t.Errorf("wrong password: %v", err)
	}
	proxy.Close()
	if _, err := repos.Fetch(t.Context(), l); !errors.Is(err, ErrUnreachable) {
		t.Errorf("remote away: %v", err)
	}
	// In a folder of this machine there is nothing to mirror.
	if got, err := repos.Fetch(t.Context(), Location{URL: "file://" + c.dir, Ref: "main"}); err != nil || got.SHA != second {
		t.Errorf("file URL: %+v, %v", got, err)
	}
}

func TestWebhook(t *testing.T) {
	var looked []string
	h := &Webhook{
		Token: func(_ *http.Request, key string) ([]byte, bool, error) {
			return []byte("token"), key == "default/shop", nil
		},
		Trigger: func(key string) { looked = append(looked, key) },
	}
	body := `{"ref":"refs/heads/main"}`
	const mac = "4e8f2dc2fd8fda3ad1c9e1dc39e1fd0a0c6b9d8ea6e1e1b9e3d6a5a9d3b1c0f7" // of nothing in particular
	for _, c := range []struct {
		name, path string
		header     map[string]string
		code       int
		triggers   bool
	}{
		{"github", "/hooks/default/shop", map[string]string{"X-GitHub-Event": "push", "X-Hub-Signature-256": "sha256=" + sign(body, "token")}, 202, true},
		{"gitea", "/hooks/default/shop", map[string]string{"X-Gitea-Event": "push", "X-Gitea-Signature": sign(body, "token")}, 202, true},
		{"gitlab", "/hooks/default/shop", map[string]string{"X-Gitlab-Event": "Push Hook", "X-Gitlab-Token": "token"}, 202, true},
		{"ping", "/hooks/default/shop", map[string]string{"X-GitHub-Event": "ping", "X-Hub-Signature-256": "sha256=" + sign(body, "token")}, 202, false},
		{"wrong signature", "/hooks/default/shop", map[string]string{"X-GitHub-Event": "push", "X-Hub-Signature-256": "sha256=" + mac}, 403, false},
		{"other key", "/hooks/default/shop", map[string]string{"X-GitHub-Event": "push", "X-Hub-Signature-256": "sha256=" + sign(body, "guess")}, 403, false},
		{"no signature", "/hooks/default/shop", map[string]string{"X-GitHub-Event": "push"}, 403, false},
		{"unknown application", "/hooks/default/nope", map[string]string{"X-Gitlab-Event": "Push Hook", "X-Gitlab-Token": "token"}, 403, false},
		{"path", "/hooks/default/../x", nil, 404, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			looked = nil
			r := httptest.NewRequest(http.MethodPost, c.path, strings.NewReader(body))
			for k, v := range c.header {
				r.Header.Set(k, v)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != c.code || (len(looked) == 1) != c.triggers {
				t.Errorf("code %d, looked at %v; want %d, %v\n%s", w.Code, looked, c.code, c.triggers, w.Body)
			}
		})
	}
}

func sign(body, token string) string {
	m := hmac.New(sha256.New, []byte(token))
	m.Write([]byte(body))
	return hex.EncodeToString(m.Sum(nil))
}
