package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	dataLink    = "..data"
	dataLinkTmp = "..data_tmp"
)

// Write makes dir hold exactly payload and says whether anything changed. Readers
// see either all old or all new files: the files are in a new directory, the link
// "..data" is moved onto it by rename, and each visible name is a link through
// "..data" (the layout that Kubernetes documents for ConfigMap volumes). gid owns
// the files when it is not nil.
func Write(dir string, payload Payload, gid *int64) (changed bool, err error) {
	if err := payload.Validate(); err != nil {
		return false, err
	}
	old, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("read link %s: %w", filepath.Join(dir, dataLink), err)
	}
	if old != "" && sameContent(filepath.Join(dir, old), payload) {
		return false, linkNames(dir, payload)
	}

	fresh, err := os.MkdirTemp(dir, time.Now().UTC().Format("..2006_01_02_15_04_05."))
	if err != nil {
		return false, fmt.Errorf("make data directory in %s: %w", dir, err)
	}
	defer func() {
		if err != nil {
			os.RemoveAll(fresh)
		}
	}()
	if err := writeFiles(fresh, payload, gid); err != nil {
		return false, err
	}
	tmp := filepath.Join(dir, dataLinkTmp)
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("remove stale %s: %w", tmp, err)
	}
	if err := os.Symlink(filepath.Base(fresh), tmp); err != nil {
		return false, fmt.Errorf("link %s: %w", tmp, err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, dataLink)); err != nil {
		return false, fmt.Errorf("swap %s: %w", filepath.Join(dir, dataLink), err)
	}
	if err := linkNames(dir, payload); err != nil {
		return true, err
	}
	return true, sweep(dir, filepath.Base(fresh))
}

func writeFiles(root string, payload Payload, gid *int64) error {
	// Chmod and not the mode of Mkdir: the process's umask must not show.
	if err := setOwner(root, 0o755, gid); err != nil {
		return err
	}
	for name, file := range payload {
		full := filepath.Join(root, filepath.FromSlash(name))
		for dir := filepath.Dir(full); dir != root; dir = filepath.Dir(dir) {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("make %s: %w", dir, err)
			}
			if err := setOwner(dir, 0o755, gid); err != nil {
				return err
			}
		}
		if err := os.WriteFile(full, file.Data, 0o600); err != nil {
			return fmt.Errorf("write %s: %w", full, err)
		}
		mode := file.Mode
		if gid != nil {
			mode |= 0o440
		}
		if err := setOwner(full, mode, gid); err != nil {
			return err
		}
	}
	return nil
}

func setOwner(path string, mode fs.FileMode, gid *int64) error {
	if gid != nil {
		if err := ifExists(os.Lchown(path, -1, int(*gid))); err != nil {
			return fmt.Errorf("give %s to group %d: %w", path, *gid, err)
		}
	}
	if err := os.Chmod(path, mode); err != nil {
		return fmt.Errorf("set mode of %s: %w", path, err)
	}
	return nil
}

// ifExists takes the error of giving a file to a group that does not exist in the user
// namespace of an ordinary user's node. The file stays with its owner: who has but one
// id is that owner in every container, and elsewhere the container is refused.
func ifExists(err error) error {
	if errors.Is(err, syscall.EINVAL) {
		return nil
	}
	return err
}

// topNames are the first path elements of payload: what is visible in the volume.
func topNames(payload Payload) map[string]bool {
	names := make(map[string]bool, len(payload))
	for name := range payload {
		first, _, _ := strings.Cut(name, "/")
		names[first] = true
	}
	return names
}

func linkNames(dir string, payload Payload) error {
	for name := range topNames(payload) {
		link, target := filepath.Join(dir, name), filepath.Join(dataLink, name)
		if have, err := os.Readlink(link); err == nil && have == target {
			continue
		}
		if err := os.RemoveAll(link); err != nil {
			return fmt.Errorf("remove %s: %w", link, err)
		}
		if err := os.Symlink(target, link); err != nil {
			return fmt.Errorf("link %s: %w", link, err)
		}
	}
	want := topNames(payload)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list %s: %w", dir, err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "..") && !want[e.Name()] {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("remove stale %s: %w", e.Name(), err)
			}
		}
	}
	return nil
}

// sweep removes data directories other than the current one, also those that a
// killed process left.
func sweep(dir, current string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list %s: %w", dir, err)
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), "..") && e.Name() != current {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("remove old data of %s: %w", dir, err)
			}
		}
	}
	return nil
}

// sameContent says whether the files below root are exactly payload.
func sameContent(root string, payload Payload) bool {
	seen := 0
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		want, ok := payload[filepath.ToSlash(rel)]
		if !ok {
			return fs.ErrNotExist
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Size() != int64(len(want.Data)) || info.Mode().Perm()&^0o440 != want.Mode&^0o440 {
			return fs.ErrInvalid
		}
		have, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if !bytes.Equal(have, want.Data) {
			return fs.ErrInvalid
		}
		seen++
		return nil
	})
	return err == nil && seen == len(payload)
}
