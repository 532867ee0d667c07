package registry

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// TestServer pushes and pulls with an OCI client, through a restart and a sweep.
func TestServer(t *testing.T) {
	dir := t.TempDir()
	s, err := NewServer(dir, "gitk8s", "secret", "reader")
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.ServeHTTP(w, r) }))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	auth := remote.WithAuth(&authn.Basic{Username: "gitk8s", Password: "secret"})
	ref := func(s string) name.Reference {
		r, err := name.ParseReference(host + "/" + s)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	push := func(to string) v1.Image {
		t.Helper()
		img, err := random.Image(2048, 3)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref(to), img, auth); err != nil {
			t.Fatalf("push %s: %v", to, err)
		}
		return img
	}
	first := push("acme/web:v1")
	old, err := first.Digest()
	if err != nil {
		t.Fatal(err)
	}
	second := push("acme/web:v1") // the tag moves
	gone := push("acme/other:x")
	goneDigest, _ := gone.Digest()
	idx, err := random.Index(512, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref("multi:latest"), idx, auth); err != nil {
		t.Fatal(err)
	}
	if err := remote.Delete(ref("acme/other:x"), auth); err != nil {
		t.Fatal(err)
	}

	if s, err = NewServer(dir, "gitk8s", "secret", "reader"); err != nil { // as after a restart
		t.Fatal(err)
	}
	removed, _, err := s.Sweep(map[string]bool{old.String(): true}, -1)
	if err != nil || removed != 5 { // manifest, configuration and three layers of the untagged image
		t.Errorf("swept %d files, %v; want 5", removed, err)
	}
	for what, want := range map[string]v1.Image{"acme/web:v1": second, "acme/web@" + old.String(): first} {
		got, err := remote.Image(ref(what), auth)
		if err != nil {
			t.Fatalf("pull %s: %v", what, err)
		}
		if err := validate.Image(got); err != nil {
			t.Errorf("%s is damaged: %v", what, err)
		}
		a, _ := got.Digest()
		b, _ := want.Digest()
		if a != b {
			t.Errorf("%s is %s, want %s", what, a, b)
		}
	}
	if got, err := remote.Index(ref("multi:latest"), auth); err != nil {
		t.Error(err)
	} else if err := validate.Index(got); err != nil {
		t.Errorf("the index is damaged: %v", err)
	}
	if _, err := remote.Image(ref("acme/other@"+goneDigest.String()), auth); err == nil {
		t.Error("a swept image can be pulled")
	}
	tags, err := remote.List(ref("acme/web:v1").Context(), auth)
	if err != nil || len(tags) != 1 || tags[0] != "v1" {
		t.Errorf("tags: %v, %v", tags, err)
	}
	if _, err := remote.Image(ref("acme/web:v1")); err == nil {
		t.Error("pulled without credentials")
	}
}

func TestServerRefuses(t *testing.T) {
	s, err := NewServer(t.TempDir(), "gitk8s", "secret", "reader")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/v2/../../etc/passwd", "", 404},
		{"GET", "/v2/a/../b/manifests/x", "", 404},
		{"PUT", "/v2/a/manifests/..", "{}", 400},
		{"PUT", "/v2/a/manifests/v1", "not json", 400},
		{"PUT", "/v2/a/manifests/v1", `{"layers":[{"digest":"sha256:` + strings.Repeat("0", 64) + `"}]}`, 404},
		{"PUT", "/v2/a/manifests/v1", `{"layers":[{"digest":"../../x"}]}`, 404},
		{"PUT", "/v2/a/manifests/v1", strings.Repeat(" ", maxManifest+1), 413},
		{"PATCH", "/v2/a/blobs/uploads/" + strings.Repeat("0", 32), "x", 404},
		{"POST", "/v2/a/blobs/uploads/?digest=sha256:" + strings.Repeat("0", 64), "x", 400},
		{"POST", "/v2/a/blobs/uploads/?digest=md5:0", "x", 400},
		{"DELETE", "/v2/a/manifests/v1", "", 404},
	} {
		r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
		r.SetBasicAuth("gitk8s", "secret")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != c.status {
			t.Errorf("%s %s: %d, want %d: %s", c.method, c.path, w.Code, c.status, w.Body)
		}
	}
}

func TestPullToken(t *testing.T) {
	s, err := NewServer(t.TempDir(), "gitk8s", "secret", "reader")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		token, method string
		want          int
	}{
		{"secret", http.MethodGet, http.StatusOK},
		{"reader", http.MethodGet, http.StatusOK},
		{"reader", http.MethodHead, http.StatusOK},
		{"reader", http.MethodPost, http.StatusForbidden},
		{"reader", http.MethodPut, http.StatusForbidden},
		{"reader", http.MethodDelete, http.StatusForbidden},
		{"", http.MethodGet, http.StatusUnauthorized},
		{"other", http.MethodGet, http.StatusUnauthorized},
	} {
		r := httptest.NewRequest(c.method, "/v2/", nil)
		r.SetBasicAuth("gitk8s", c.token)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%s with %q: %d, want %d", c.method, c.token, w.Code, c.want)
		}
	}
}
