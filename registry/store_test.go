package registry

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// testRegistry is a real registry on loopback that counts what is asked of it.
type testRegistry struct {
	*httptest.Server
	host      string
	manifests atomic.Int64
	blobs     atomic.Int64
	hook      atomic.Pointer[func(w http.ResponseWriter, r *http.Request) bool]
}

func newRegistry(t *testing.T) *testRegistry {
	t.Helper()
	r := &testRegistry{}
	next := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if hook := r.hook.Load(); hook != nil && (*hook)(w, req) {
			return
		}
		if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/manifests/") {
			r.manifests.Add(1)
		}
		if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
			r.blobs.Add(1)
		}
		next.ServeHTTP(w, req)
	}))
	r.host = strings.TrimPrefix(r.URL, "http://")
	t.Cleanup(r.Close)
	return r
}

func (r *testRegistry) intercept(fn func(w http.ResponseWriter, req *http.Request) bool) {
	r.hook.Store(&fn)
}

func (r *testRegistry) push(t *testing.T, repo string, what remote.Taggable) string {
	t.Helper()
	ref, err := name.ParseReference(r.host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	switch v := what.(type) {
	case v1.Image:
		err = remote.Write(ref, v)
	case v1.ImageIndex:
		err = remote.WriteIndex(ref, v)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

func layerOf(t *testing.T, headers ...tar.Header) v1.Layer {
	t.Helper()
	body := makeTar(t, headers...)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func imageOf(t *testing.T, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	img, err = mutate.Config(img, v1.Config{Cmd: []string{"/app"}, User: "web"})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func openStore(t *testing.T, cfg StoreConfig) *Store {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	s, err := OpenStore(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func pull(t *testing.T, s *Store, ref string, policy PullPolicy) *Image {
	t.Helper()
	img, err := s.Pull(context.Background(), ref, policy, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func digestOf(t *testing.T, what interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	d, err := what.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

func TestPull(t *testing.T) {
	r := newRegistry(t)
	base := layerOf(t, dir("bin"), file("bin/app", "base"))
	v1Image, v2Image := imageOf(t, base, layerOf(t, file("v", "1"))), imageOf(t, base, layerOf(t, file("v", "2")))
	ref := r.push(t, "shop/web:latest", v1Image)
	s := openStore(t, StoreConfig{})
	if _, err := s.Pull(context.Background(), ref, Never, nil); !IsNotFound(err) {
		t.Errorf("never: %v", err)
	}
	img := pull(t, s, ref, IfNotPresent)
	if img.Digest != digestOf(t, v1Image) || len(img.Layers) != 2 || img.Config.User != "web" || img.Reference != ref ||
		img.Repository != r.host+"/shop/web" || img.PulledIn == 0 || img.Size == 0 {
		t.Errorf("%+v", img)
	}
	for i, want := range map[int]string{0: "bin/app=base", 1: "v=1"} {
		path, content, _ := strings.Cut(want, "=")
		if b, err := os.ReadFile(filepath.Join(img.Layers[i], path)); err != nil || string(b) != content {
			t.Errorf("layer %d: %q %v", i, b, err)
		}
	}

	// The tag moves: IfNotPresent and Never don't notice, Always fetches one layer.
	r.push(t, "shop/web:latest", v2Image)
	manifests, blobs := r.manifests.Load(), r.blobs.Load()
	for _, p := range []PullPolicy{IfNotPresent, Never} {
		if again := pull(t, s, ref, p); again.Digest != img.Digest || again.PulledIn != 0 {
			t.Errorf("%s: %+v", p, again)
		}
	}
	if r.manifests.Load() != manifests || r.blobs.Load() != blobs {
		t.Error("asked the registry")
	}
	if img2 := pull(t, s, ref, Always); img2.Digest != digestOf(t, v2Image) || r.blobs.Load() != blobs+2 {
		t.Errorf("always: %+v, %d blobs", img2, r.blobs.Load()-blobs)
	}
	blobs = r.blobs.Load()
	if img2 := pull(t, s, ref, Always); img2.PulledIn != 0 || r.blobs.Load() != blobs {
		t.Errorf("always again: %+v", img2)
	}

	// By digest, also when the registry is gone.
	byDigest := r.host + "/shop/web@" + img.Digest
	pull(t, s, byDigest, Always)
	r.Close()
	pull(t, s, byDigest, IfNotPresent)
	if _, err := s.Pull(context.Background(), ref, Always, nil); !IsUnavailable(err) {
		t.Errorf("registry gone: %v", err)
	}
}

func TestStoreSurvivesRestart(t *testing.T) {
	r := newRegistry(t)
	ref := r.push(t, "app:1", imageOf(t, layerOf(t, file("f", "x"))))
	where := t.TempDir()
	s := openStore(t, StoreConfig{Dir: where})
	first := pull(t, s, ref, IfNotPresent)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	// What a crash leaves.
	if err := os.MkdirAll(filepath.Join(where, "tmp", "layer-half", "fs"), 0o755); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, StoreConfig{Dir: where})
	if img := pull(t, s, ref, Never); img.Digest != first.Digest || img.Config.User != "web" {
		t.Errorf("%+v", img)
	}
	if left, _ := os.ReadDir(filepath.Join(where, "tmp")); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// A layer that another boot of the machine may not have written to the disk.
	marker := first.Layers[0] + unsyncedSuffix
	if _, err := os.Stat(marker); !os.IsNotExist(err) {
		t.Errorf("layer is still marked: %v", err)
	}
	if err := os.WriteFile(marker, []byte("another boot"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, StoreConfig{Dir: where})
	if _, err := s.Pull(context.Background(), ref, Never, nil); !IsNotFound(err) {
		t.Errorf("doubtful layer is used: %v", err)
	}
}

func TestPullOfIndex(t *testing.T) {
	r := newRegistry(t)
	mine := imageOf(t, layerOf(t, file("arch", runtime.GOARCH)))
	other := imageOf(t, layerOf(t, file("arch", "s390x")))
	add := func(img v1.Image, arch string) mutate.IndexAddendum {
		return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}}
	}
	index := mutate.AppendManifests(empty.Index, add(other, "s390x"), add(mine, runtime.GOARCH))
	ref := r.push(t, "multi:1", index)
	s := openStore(t, StoreConfig{})
	img := pull(t, s, ref, Always)
	if b, err := os.ReadFile(filepath.Join(img.Layers[0], "arch")); err != nil || string(b) != runtime.GOARCH {
		t.Errorf("%q %v", b, err)
	}
	digest, err := s.Resolve(context.Background(), ref, nil)
	if err != nil || digest != img.Digest || digest != digestOf(t, index) {
		t.Errorf("resolved %s (%v), pulled %s", digest, err, img.Digest)
	}
	foreign := r.push(t, "multi:2", mutate.AppendManifests(empty.Index, add(other, "s390x")))
	if _, err := s.Pull(context.Background(), foreign, Always, nil); !IsInvalid(err) || !strings.Contains(err.Error(), "s390x") {
		t.Errorf("foreign platform: %v", err)
	}
}

func TestConcurrentPullsFetchOnce(t *testing.T) {
	r := newRegistry(t)
	layer := layerOf(t, file("f", strings.Repeat("x", 100000)))
	ref := r.push(t, "app:1", imageOf(t, layer))
	other := r.push(t, "other:1", imageOf(t, layer, layerOf(t, file("g", "y"))))
	digest := digestOf(t, layer)
	var fetched atomic.Int64
	started, proceed := make(chan struct{}, 10), make(chan struct{})
	r.intercept(func(_ http.ResponseWriter, req *http.Request) bool {
		if strings.HasSuffix(req.URL.Path, digest) {
			fetched.Add(1)
			started <- struct{}{}
			<-proceed
		}
		return false
	})
	s := openStore(t, StoreConfig{})
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, ref, Always, nil)
		first <- err
	}()
	<-started
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			if _, err := s.Pull(context.Background(), []string{ref, other}[i%2], Always, nil); err != nil {
				t.Error(err)
			}
		})
	}
	waiting := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		n := 0
		for _, f := range s.flights {
			n = max(n, f.waiters)
		}
		return n
	}
	deadline := time.Now().Add(10 * time.Second)
	for waiting() < 7 && time.Now().Before(deadline) {
		runtime.Gosched()
	}
	// The caller that began the fetch goes away; the others still get the layer.
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	close(proceed)
	wg.Wait()
	if fetched.Load() != 1 {
		t.Errorf("fetched %d times", fetched.Load())
	}
}

func TestLocalName(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "shop/web:v1", imageOf(t, layerOf(t, file("f", "x"))))
	r.intercept(func(w http.ResponseWriter, req *http.Request) bool {
		user, password, ok := req.BasicAuth()
		if ok && user == "node" && password == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="gitk8s"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	auth := &authn.Basic{Username: "node", Password: "secret"}
	s := openStore(t, StoreConfig{Remote: RemoteConfig{Local: r.host, LocalAuth: auth, LocalPlainHTTP: true}})
	img := pull(t, s, "gitk8s.local/shop/web:v1", Always)
	if img.Repository != "gitk8s.local/shop/web" || img.Reference != "gitk8s.local/shop/web:v1" {
		t.Errorf("%+v", img)
	}
	pull(t, s, img.Repository+"@"+img.Digest, IfNotPresent)
	if _, err := s.Pull(context.Background(), r.host+"/shop/web:v1", Always, nil); !IsUnauthorized(err) {
		t.Errorf("the local credentials went elsewhere: %v", err)
	}
	strict := openStore(t, StoreConfig{Remote: RemoteConfig{Local: r.host, LocalAuth: auth}})
	if _, err := strict.Pull(context.Background(), "gitk8s.local/shop/web:v1", Always, nil); err == nil {
		t.Error("credentials sent in the clear")
	}
	none := openStore(t, StoreConfig{})
	if _, err := none.Pull(context.Background(), "gitk8s.local/x:1", Always, nil); !IsUnavailable(err) {
		t.Errorf("no embedded registry: %v", err)
	}
}

func TestErrors(t *testing.T) {
	r := newRegistry(t)
	ref := r.push(t, "app:1", imageOf(t, layerOf(t, file("f", "x"))))
	s := openStore(t, StoreConfig{})
	ctx := context.Background()
	for _, c := range []struct {
		name, ref string
		is        func(error) bool
		hook      func(w http.ResponseWriter, req *http.Request) bool
	}{
		{"no such tag", r.host + "/app:2", IsNotFound, nil},
		{"no such repository", r.host + "/nope:1", IsNotFound, nil},
		{"no such digest", r.host + "/app@sha256:" + strings.Repeat("0", 64), IsNotFound, nil},
		{"bad reference", "UPPER:case:x", IsInvalid, nil},
		{"down", "127.0.0.1:1/app:1", IsUnavailable, nil},
		{"refused", ref, IsUnauthorized, func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(403); return true }},
		{"broken", ref, IsUnavailable, func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(500); return true }},
		{"too many", ref, IsUnavailable, func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(429); return true }},
		{"huge manifest", ref, IsUnavailable, func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.Contains(req.URL.Path, "/manifests/") || req.Method != http.MethodGet {
				return false
			}
			w.Header().Set("Content-Type", string(types.DockerManifestSchema2))
			for range 5 << 10 {
				if _, err := w.Write(make([]byte, 1<<10)); err != nil {
					break
				}
			}
			return true
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.hook == nil {
				c.hook = func(http.ResponseWriter, *http.Request) bool { return false }
			}
			r.intercept(c.hook)
			_, err := s.Pull(ctx, c.ref, Always, nil)
			if !c.is(err) || !strings.Contains(err.Error(), c.ref) {
				t.Errorf("pull: %v", err)
			}
			if c.name == "huge manifest" {
				return // HEAD answers
			}
			if _, err := s.Resolve(ctx, c.ref, nil); !c.is(err) || strings.Contains(err.Error(), "no body") {
				t.Errorf("resolve: %v", err)
			}
		})
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	r.intercept(func(http.ResponseWriter, *http.Request) bool { return false })
	if _, err := s.Pull(canceled, ref, Always, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func TestResolveWithoutDigestInHead(t *testing.T) {
	r := newRegistry(t)
	img := imageOf(t, layerOf(t, file("f", "x")))
	ref := r.push(t, "app:1", img)
	r.intercept(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodHead {
			return false
		}
		w.WriteHeader(http.StatusMethodNotAllowed)
		return true
	})
	digest, err := NewRemote(RemoteConfig{}).Resolve(context.Background(), ref, nil)
	if err != nil || digest != digestOf(t, img) {
		t.Errorf("%s %v", digest, err)
	}
}

func TestEvilLayersAndBlobs(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t, StoreConfig{Limits: Limits{LayerBytes: 1 << 20, Layers: 3}})
	ctx := context.Background()
	evil := layerOf(t, file("../evil", "x"))
	ref := r.push(t, "evil:1", imageOf(t, evil))
	_, err := s.Pull(ctx, ref, Always, nil)
	if !IsInvalid(err) || !strings.Contains(err.Error(), digestOf(t, evil)) || !strings.Contains(err.Error(), "../evil") {
		t.Errorf("evil: %v", err)
	}
	ref = r.push(t, "big:1", imageOf(t, layerOf(t, file("big", string(make([]byte, 2<<20))))))
	if _, err = s.Pull(ctx, ref, Always, nil); !IsInvalid(err) || !errors.Is(err, errTooBig) {
		t.Errorf("big: %v", err)
	}
	l := layerOf(t, file("x", "x"))
	ref = r.push(t, "deep:1", imageOf(t, l, l, l, l))
	if _, err = s.Pull(ctx, ref, Always, nil); !IsInvalid(err) {
		t.Errorf("many layers: %v", err)
	}
	// The registry sends other bytes than the manifest says.
	good := layerOf(t, file("good", "x"))
	ref = r.push(t, "swapped:1", imageOf(t, good))
	r.intercept(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, digestOf(t, good)) {
			return false
		}
		rc, err := layerOf(t, file("good", "y")).Compressed()
		if err != nil {
			t.Error(err)
		}
		_, _ = io.Copy(w, rc)
		return true
	})
	if _, err = s.Pull(ctx, ref, Always, nil); err == nil {
		t.Error("swapped layer is taken")
	}
	// It stops in the middle.
	r.intercept(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, digestOf(t, good)) {
			return false
		}
		_, _ = w.Write([]byte{0x1f, 0x8b, 8, 0})
		panic(http.ErrAbortHandler)
	})
	if _, err = s.Pull(ctx, ref, Always, nil); !IsUnavailable(err) {
		t.Errorf("cut off: %v", err)
	}
	r.intercept(func(http.ResponseWriter, *http.Request) bool { return false })
	pull(t, s, ref, Always)
	if left, _ := os.ReadDir(filepath.Join(s.cfg.Dir, "tmp")); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
}

// TestWrongDiffID: a layer whose content is not what the configuration says.
func TestWrongDiffID(t *testing.T) {
	r := newRegistry(t)
	img := imageOf(t, layerOf(t, file("f", "x")))
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.RootFS.DiffIDs[0].Hex = strings.Repeat("0", 64)
	lying, err := mutate.ConfigFile(img, config)
	if err != nil {
		t.Fatal(err)
	}
	ref := r.push(t, "lying:1", lying)
	if _, err := openStore(t, StoreConfig{}).Pull(context.Background(), ref, Always, nil); !IsInvalid(err) {
		t.Errorf("%v", err)
	}
}

func TestZstdLayer(t *testing.T) {
	r := newRegistry(t)
	plain := makeTar(t, file("f", "zstd"))
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	base := imageOf(t, layerOf(t, file("f", "zstd")))
	packed := static.NewLayer(enc.EncodeAll(plain, nil), types.OCILayerZStd)
	layers, err := base.Layers()
	if err != nil {
		t.Fatal(err)
	}
	diffID, err := layers[0].DiffID()
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.Append(empty.Image, mutate.Addendum{Layer: zstdLayer{packed, diffID}, MediaType: types.OCILayerZStd})
	if err != nil {
		t.Fatal(err)
	}
	got := pull(t, openStore(t, StoreConfig{}), r.push(t, "zstd:1", img), Always)
	if b, err := os.ReadFile(filepath.Join(got.Layers[0], "f")); err != nil || string(b) != "zstd" {
		t.Errorf("%q %v", b, err)
	}
}

type zstdLayer struct {
	v1.Layer
	diffID v1.Hash
}

func (l zstdLayer) DiffID() (v1.Hash, error) { return l.diffID, nil }

func TestPrune(t *testing.T) {
	r := newRegistry(t)
	shared, own := layerOf(t, file("shared", "x")), layerOf(t, file("own", "y"))
	keep, drop := r.push(t, "keep:1", imageOf(t, shared)), r.push(t, "drop:1", imageOf(t, shared, own))
	s := openStore(t, StoreConfig{})
	kept, dropped := pull(t, s, keep, Always), pull(t, s, drop, Always)
	if n := len(s.Images()); n != 2 {
		t.Errorf("%d images", n)
	}
	if err := s.Prune(func(d string) bool { return d == kept.Digest }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dropped.Layers[1]); !os.IsNotExist(err) {
		t.Errorf("layer stays: %v", err)
	}
	pull(t, s, keep, Never)
	if _, err := s.Pull(context.Background(), drop, Never, nil); !IsNotFound(err) {
		t.Errorf("pruned image: %v", err)
	}
	images := s.Images()
	if len(images) != 1 || images[0].Digest != kept.Digest || len(images[0].References) != 1 {
		t.Errorf("%+v", images)
	}
	if again := pull(t, s, drop, IfNotPresent); again.Digest != dropped.Digest {
		t.Errorf("%+v", again)
	}
}
