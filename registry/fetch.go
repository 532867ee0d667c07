package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// fetchManifest gets the manifest of the digest, out of an index if it is one.
func (s *Store) fetchManifest(ctx context.Context, t *target, digest string) (*manifestInfo, error) {
	got, err := t.puller.Get(ctx, t.ref.Context().Digest(digest))
	if err != nil {
		return nil, err
	}
	var img v1.Image
	switch {
	case got.MediaType.IsIndex():
		if img, err = fromIndex(ctx, got, t); err != nil {
			return nil, err
		}
	case got.MediaType.IsImage():
		if img, err = got.Image(); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("%w: it is of type %s", errBadImage, got.MediaType)
	}
	return s.inspect(t, img)
}

// fromIndex picks this machine's platform.
func fromIndex(ctx context.Context, got *remote.Descriptor, t *target) (v1.Image, error) {
	index, err := got.ImageIndex()
	if err != nil {
		return nil, err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var offered []string
	for _, d := range m.Manifests {
		if d.Platform == nil || !d.MediaType.IsImage() {
			continue
		}
		if d.Platform.OS == "linux" && d.Platform.Architecture == runtime.GOARCH {
			got, err := t.puller.Get(ctx, t.ref.Context().Digest(d.Digest.String()))
			if err != nil {
				return nil, err
			}
			return got.Image()
		}
		offered = append(offered, d.Platform.String())
	}
	return nil, fmt.Errorf("%w: it has no variant for linux/%s, only %q", errBadImage, runtime.GOARCH, offered)
}

// flight is one fetch of a layer, shared by all who want it. It is given up when
// nobody waits any more.
type flight struct {
	cancel  context.CancelFunc
	waiters int
	done    chan struct{}
	err     error
}

func (s *Store) fetchLayers(ctx context.Context, layers []layerRef) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	for _, l := range layers {
		wg.Go(func() {
			if err := s.fetchShared(ctx, l); err != nil {
				once.Do(func() {
					first = err
					cancel()
				})
			}
		})
	}
	wg.Wait()
	return first
}

// fetchShared joins a fetch of the layer under way, or starts one.
func (s *Store) fetchShared(ctx context.Context, l layerRef) error {
	key := l.diffID.Hex
	s.mu.Lock()
	if s.layers[key] {
		s.mu.Unlock()
		return nil
	}
	f := s.flights[key]
	if f == nil {
		// The fetch outlives the context of the caller who happens to start it.
		work, cancel := context.WithCancel(context.WithoutCancel(ctx))
		f = &flight{cancel: cancel, done: make(chan struct{})}
		s.flights[key] = f
		s.background.Go(func() {
			defer cancel()
			err := s.fetchLayer(work, l)
			s.mu.Lock()
			f.err = err
			if s.flights[key] == f {
				delete(s.flights, key)
			}
			s.layers[key] = s.layers[key] || err == nil
			s.mu.Unlock()
			close(f.done)
		})
	}
	f.waiters++
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		s.mu.Lock()
		if f.waiters--; f.waiters == 0 {
			f.cancel()
			if s.flights[key] == f {
				delete(s.flights, key) // who comes now starts anew
			}
		}
		s.mu.Unlock()
		return ctx.Err()
	}
}

// fetchLayer streams a layer from the registry to its directory, checking the
// digest of what comes in and of what comes out.
func (s *Store) fetchLayer(ctx context.Context, l layerRef) (err error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	layer, err := l.from.puller.Layer(ctx, l.from.ref.Context().Digest(l.digest.String()))
	if err != nil {
		return fmt.Errorf("fetch layer %s: %w", l.digest, err)
	}
	blob, err := layer.Compressed() // verifies the digest at its end
	if err != nil {
		return fmt.Errorf("fetch layer %s: %w", l.digest, err)
	}
	defer blob.Close()
	defer context.AfterFunc(ctx, func() { _ = blob.Close() })()

	tmp, err := os.MkdirTemp(filepath.Join(s.cfg.Dir, "tmp"), "layer-")
	if err != nil {
		return local(err)
	}
	defer os.RemoveAll(tmp)
	content := filepath.Join(tmp, "fs")
	if err := os.Mkdir(content, 0o755); err != nil {
		return local(err)
	}
	err = s.unpackVerified(content, blob, l)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		var bad *LayerError
		if errors.As(err, &bad) {
			bad.Layer = l.digest.String()
			return bad
		}
		return fmt.Errorf("layer %s: %w", l.digest, err)
	}
	return s.install(content, l.diffID.Hex)
}

func (s *Store) unpackVerified(dir string, blob io.Reader, l layerRef) error {
	packed := &counter{r: blob}
	plain, closePlain, err := decompress(packed)
	if err != nil {
		return err
	}
	defer closePlain()
	sum := sha256.New()
	bounded := &meter{r: io.TeeReader(plain, sum), limits: s.limits, packed: packed.count}
	if err := unpack(dir, bounded, s.limits); err != nil {
		return err
	}
	// What follows the tar's end belongs to the digests.
	if _, err := io.Copy(io.Discard, bounded); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, packed); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != l.diffID.Hex {
		return &LayerError{Err: fmt.Errorf("it unpacks to sha256:%s, and the image's configuration says %s", got, l.diffID)}
	}
	return nil
}

// counter counts packed bytes.
type counter struct {
	r io.Reader
	n atomic.Int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func (c *counter) count() int64 { return c.n.Load() }
