package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// StoreConfig of a Store.
type StoreConfig struct {
	// Dir holds the unpacked layers and the index. It must lie on a file system
	// that overlayfs takes as lower layer and that has trusted.* attributes.
	Dir string
	// Remote says how registries are reached.
	Remote RemoteConfig
	// Limits bound what an image may cost.
	Limits Limits
	// Jobs is how many layers are fetched and unpacked at a time: 3.
	Jobs int
	// Log is for what has no caller to go to; nil means slog.Default().
	Log *slog.Logger
}

// Store keeps images unpacked on a worker's disk. It implements Puller, and
// Resolver by its Remote.
//
// On disk: layers/<diff id>/, one directory for each layer, which overlayfs mounts;
// images/<digest>.json, what an image consists of; references.json, what tags meant
// when they were last asked for. A name appears when its content is complete.
type Store struct {
	*Remote
	cfg    StoreConfig
	limits Limits
	slots  chan struct{}
	log    *slog.Logger

	mu         sync.Mutex
	images     map[string]*record // by digest
	references map[string]string  // canonical reference → digest
	layers     map[string]bool    // unpacked, by hex of the diff id
	pins       map[string]int     // layers that a pull under way relies on
	flights    map[string]*flight // layers being fetched
	syncing    bool
	unsynced   []string
	background sync.WaitGroup
}

var (
	_ Puller   = (*Store)(nil)
	_ Resolver = (*Store)(nil)
)

// record is an image on disk.
type record struct {
	Digest     string
	Repository string
	Config     v1.Config
	Layers     []string // hex of the diff ids, lowest first
	Size       int64
	PulledAt   time.Time
}

// OpenStore opens the directory, or makes it. There is one Store for a directory.
func OpenStore(cfg StoreConfig) (*Store, error) {
	if cfg.Jobs <= 0 {
		cfg.Jobs = 3
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	cfg.Dir = dir
	s := &Store{
		Remote:     NewRemote(cfg.Remote),
		cfg:        cfg,
		limits:     cfg.Limits.withDefaults(),
		slots:      make(chan struct{}, cfg.Jobs),
		log:        cfg.Log,
		images:     map[string]*record{},
		references: map[string]string{},
		layers:     map[string]bool{},
		pins:       map[string]int{},
		flights:    map[string]*flight{},
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", dir, err)
	}
	return s, nil
}

// Close waits for work in the background.
func (s *Store) Close() error {
	s.background.Wait()
	return nil
}

// Pull implements Puller.
func (s *Store) Pull(ctx context.Context, reference string, policy PullPolicy, keychain authn.Keychain) (*Image, error) {
	t, err := s.target(reference, keychain)
	if err != nil {
		return nil, err
	}
	if policy != Always {
		if img := s.find(t, s.meaning(t)); img != nil {
			return img, nil
		}
		if policy == Never {
			return nil, &Error{Reference: reference, Kind: KindNotFound, Err: errors.New("it is not on this machine, and imagePullPolicy is Never")}
		}
	}
	img, err := s.pull(ctx, t)
	if err != nil {
		return nil, newError(reference, err)
	}
	return img, nil
}

// meaning is the digest that the reference had when it was last asked for; of a
// reference by digest it is that digest.
func (s *Store) meaning(t *target) string {
	if id := t.ref.Identifier(); strings.Contains(id, ":") {
		return id
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.references[t.canonical]
}

// find returns an image that is on disk as a whole.
func (s *Store) find(t *target, digest string) *Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.images[digest]
	if r == nil {
		return nil
	}
	for _, l := range r.Layers {
		if !s.layers[l] {
			return nil
		}
	}
	return s.image(t, r)
}

func (s *Store) image(t *target, r *record) *Image {
	img := &Image{Reference: t.asked, Digest: r.Digest, Repository: t.repository, Config: r.Config, Size: r.Size}
	for _, l := range r.Layers {
		img.Layers = append(img.Layers, s.layerDir(l))
	}
	return img
}

// pull asks the registry and fetches what is missing.
func (s *Store) pull(ctx context.Context, t *target) (*Image, error) {
	began := time.Now()
	digest, err := t.resolve(ctx)
	if err != nil {
		return nil, err
	}
	if img := s.find(t, digest); img != nil {
		return img, s.remember(t, s.recordOf(digest))
	}
	manifest, err := s.fetchManifest(ctx, t, digest)
	if err != nil {
		return nil, err
	}
	pinned := make([]string, 0, len(manifest.layers))
	for _, l := range manifest.layers {
		pinned = append(pinned, l.diffID.Hex)
	}
	s.pin(pinned, 1)
	defer s.pin(pinned, -1)
	if err := s.fetchLayers(ctx, manifest.layers); err != nil {
		return nil, err
	}
	r := &record{Digest: digest, Repository: t.repository, Config: manifest.config, Layers: pinned, Size: manifest.size, PulledAt: time.Now().UTC()}
	if err := s.remember(t, r); err != nil {
		return nil, err
	}
	img := s.image(t, r)
	img.PulledIn = time.Since(began)
	return img, nil
}

func (s *Store) recordOf(digest string) *record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.images[digest]
}

func (s *Store) pin(layers []string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range layers {
		if s.pins[l] += n; s.pins[l] == 0 {
			delete(s.pins, l)
		}
	}
}

// layerRef is a layer to fetch.
type layerRef struct {
	from   *target
	diffID v1.Hash
	digest v1.Hash
}

type manifestInfo struct {
	config v1.Config
	layers []layerRef
	size   int64
}

// inspect checks a manifest and its configuration against the limits.
func (s *Store) inspect(t *target, img v1.Image) (*manifestInfo, error) {
	m, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", errBadImage, fmt.Sprintf(format, args...))
	}
	if m.Config.Size > s.limits.ConfigBytes || m.Config.Size < 0 {
		return nil, bad("its configuration has %d bytes, more than %d", m.Config.Size, s.limits.ConfigBytes)
	}
	if len(m.Layers) > s.limits.Layers {
		return nil, bad("it has %d layers, more than %d", len(m.Layers), s.limits.Layers)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read image configuration: %w", err)
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return nil, bad("it has %d layers and %d diff ids", len(m.Layers), len(config.RootFS.DiffIDs))
	}
	info := &manifestInfo{config: config.Config}
	for i, d := range m.Layers {
		if !isLayer(d.MediaType) {
			return nil, bad("layer %d is of type %s, not a file system", i, d.MediaType)
		}
		diffID := config.RootFS.DiffIDs[i]
		if diffID.Algorithm != "sha256" || len(diffID.Hex) != 64 {
			return nil, bad("diff id %s is not a sha256", diffID)
		}
		if d.Size < 0 || d.Size > s.limits.LayerBytes {
			return nil, bad("layer %s has %d bytes, more than %d", d.Digest, d.Size, s.limits.LayerBytes)
		}
		info.layers = append(info.layers, layerRef{from: t, diffID: diffID, digest: d.Digest})
		info.size += d.Size
	}
	return info, nil
}

func isLayer(m types.MediaType) bool {
	return m.IsLayer() || strings.HasPrefix(string(m), "application/vnd.oci.image.layer.v1.tar")
}

// ImageInfo describes an image on disk.
type ImageInfo struct {
	Digest string
	// References that mean it, sorted.
	References []string
	Size       int64
	PulledAt   time.Time
}

// Images lists what is on disk, sorted by digest.
func (s *Store) Images() []ImageInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]ImageInfo, 0, len(s.images))
	for _, r := range s.images {
		info := ImageInfo{Digest: r.Digest, Size: r.Size, PulledAt: r.PulledAt}
		for ref, digest := range s.references {
			if digest == r.Digest {
				info.References = append(info.References, ref)
			}
		}
		slices.Sort(info.References)
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b ImageInfo) int { return strings.Compare(a.Digest, b.Digest) })
	return out
}

// Prune removes the images that keep does not want, what refers to them, and the
// layers that no other image uses. Layers of a pull under way stay. The caller
// keeps what containers run from.
func (s *Store) Prune(keep func(digest string) bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	used := map[string]bool{}
	for digest, r := range s.images {
		if keep(digest) {
			for _, l := range r.Layers {
				used[l] = true
			}
			continue
		}
		for ref, d := range s.references {
			if d == digest {
				delete(s.references, ref)
			}
		}
		if err := os.Remove(s.imageFile(digest)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
			continue
		}
		delete(s.images, digest)
	}
	errs = append(errs, s.saveReferences())
	for l := range s.layers {
		if used[l] || s.pins[l] > 0 {
			continue
		}
		// Out of the way first, so that half a layer never has its name.
		trash := filepath.Join(s.cfg.Dir, "tmp", "pruned-"+l)
		if err := os.Rename(s.layerDir(l), trash); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(s.layers, l)
		errs = append(errs, os.RemoveAll(trash))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("prune images: %w", err)
	}
	return nil
}
