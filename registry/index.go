package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const unsyncedSuffix = ".unsynced"

func (s *Store) layerDir(hex string) string { return filepath.Join(s.cfg.Dir, "layers", hex) }

func (s *Store) imageFile(digest string) string {
	return filepath.Join(s.cfg.Dir, "images", strings.ReplaceAll(digest, ":", "-")+".json")
}

func (s *Store) referencesFile() string { return filepath.Join(s.cfg.Dir, "references.json") }

// bootID tells one run of the kernel from the next.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// load reads the index and drops what a crash left half done.
func (s *Store) load() error {
	for _, d := range []string{"layers", "images", "tmp"} {
		if err := os.MkdirAll(filepath.Join(s.cfg.Dir, d), 0o700); err != nil {
			return err
		}
	}
	// Containers of any user look things up below.
	for _, d := range []string{".", "layers"} {
		if err := os.Chmod(filepath.Join(s.cfg.Dir, d), 0o711); err != nil {
			return err
		}
	}
	leftovers, err := filepath.Glob(filepath.Join(s.cfg.Dir, "tmp", "*"))
	if err != nil {
		return err
	}
	for _, l := range leftovers {
		if err := os.RemoveAll(l); err != nil {
			return err
		}
	}
	if err := s.loadLayers(); err != nil {
		return err
	}
	images, err := filepath.Glob(filepath.Join(s.cfg.Dir, "images", "*.json"))
	if err != nil {
		return err
	}
	for _, file := range images {
		var r record
		if err := readJSON(file, &r); err != nil || r.Digest == "" {
			s.log.Warn("image record can't be read: the image is fetched again when it is needed", "file", file, "err", err)
			if err := os.Remove(file); err != nil {
				return err
			}
			continue
		}
		s.images[r.Digest] = &r
	}
	if err := readJSON(s.referencesFile(), &s.references); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log.Warn("index of references can't be read: tags are asked for again", "err", err)
		s.references = map[string]string{}
	}
	return nil
}

// loadLayers trusts a layer that was written to the disk for sure, or in this run
// of the kernel.
func (s *Store) loadLayers() error {
	entries, err := os.ReadDir(filepath.Join(s.cfg.Dir, "layers"))
	if err != nil {
		return err
	}
	boot := bootID()
	for _, e := range entries {
		hex, marker := strings.CutSuffix(e.Name(), unsyncedSuffix)
		if !marker {
			continue
		}
		at, err := os.ReadFile(s.layerDir(e.Name()))
		if err == nil && string(at) == boot && boot != "" {
			s.syncLater(hex)
			continue
		}
		if err := os.RemoveAll(s.layerDir(hex)); err != nil {
			return err
		}
		if err := os.Remove(s.layerDir(e.Name())); err != nil {
			return err
		}
	}
	for _, e := range entries {
		if e.IsDir() {
			if _, err := os.Stat(s.layerDir(e.Name())); err == nil {
				s.layers[e.Name()] = true
			}
		}
	}
	return nil
}

// install gives a complete layer its name. Writing it through to the disk would
// take longer than the rest of a small pull, so that is done in the background; a
// marker tells the next start of the machine not to trust the layer until then.
func (s *Store) install(content, hex string) error {
	target := s.layerDir(hex)
	if err := os.WriteFile(target+unsyncedSuffix, []byte(bootID()), 0o600); err != nil {
		return local(err)
	}
	if err := os.Rename(content, target); err != nil {
		if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTEMPTY) {
			return nil // another fetch, given up by its callers, was faster
		}
		_ = os.Remove(target + unsyncedSuffix)
		return local(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.syncLater(hex)
	return nil
}

// syncLater is called with mu held, or before anybody else has the store.
func (s *Store) syncLater(hex string) {
	s.unsynced = append(s.unsynced, hex)
	if s.syncing {
		return
	}
	s.syncing = true
	s.background.Go(s.sync)
}

func (s *Store) sync() {
	for {
		s.mu.Lock()
		batch := s.unsynced
		s.unsynced = nil
		s.syncing = len(batch) > 0
		s.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		if err := syncFilesystem(s.cfg.Dir); err != nil {
			s.log.Error("write layers through to the disk", "err", err)
			continue
		}
		for _, hex := range batch {
			if err := os.Remove(s.layerDir(hex) + unsyncedSuffix); err != nil && !errors.Is(err, os.ErrNotExist) {
				s.log.Error("layer stays marked as not on disk", "layer", hex, "err", err)
			}
		}
	}
}

func syncFilesystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// remember writes down an image and what its reference means.
func (s *Store) remember(t *target, r *record) error {
	if r == nil {
		return nil // pruned meanwhile; the caller's copy is as good as any
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.images[r.Digest] == nil {
		if err := writeJSON(s.imageFile(r.Digest), r); err != nil {
			return local(fmt.Errorf("write image record: %w", err))
		}
		s.images[r.Digest] = r
	}
	if strings.Contains(t.ref.Identifier(), ":") || s.references[t.canonical] == r.Digest {
		return nil
	}
	s.references[t.canonical] = r.Digest
	return s.saveReferences()
}

// saveReferences is called with mu held.
func (s *Store) saveReferences() error {
	if err := writeJSON(s.referencesFile(), s.references); err != nil {
		return local(fmt.Errorf("write index of references: %w", err))
	}
	return nil
}

func readJSON(file string, v any) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// writeJSON replaces a file as a whole.
func writeJSON(file string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := file + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return os.Rename(tmp, file)
}
