package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// SubPath bind-mounts subPath of the volume at root to a place of its own below
// the pod's directory, and returns that place. A container may have written links
// into the volume: the path is opened inside of root, and the open file is
// mounted, so that a later swap of a name changes nothing. A missing subPath is
// made as a directory.
func (m *Manager) SubPath(uid, container string, index int, root, subPath string) (string, error) {
	if err := validatePath(filepath.ToSlash(filepath.Clean(subPath))); err != nil {
		return "", fmt.Errorf("subPath %q: %w", subPath, err)
	}
	handle, err := pathrs.OpenInRoot(root, subPath)
	if errors.Is(err, fs.ErrNotExist) {
		if err = pathrs.MkdirAll(root, subPath, 0o755); err == nil {
			handle, err = pathrs.OpenInRoot(root, subPath)
		}
	}
	if err != nil {
		return "", fmt.Errorf("open subPath %q in %s: %w", subPath, root, err)
	}
	defer handle.Close()
	info, err := handle.Stat()
	if err != nil {
		return "", fmt.Errorf("stat subPath %q: %w", subPath, err)
	}

	target := filepath.Join(m.subPathsDir(uid), container, strconv.Itoa(index))
	if mounted, err := mountinfo.Mounted(target); err == nil && mounted {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			return "", fmt.Errorf("unmount old subPath %s: %w", target, err)
		}
	}
	if err := os.RemoveAll(target); err != nil {
		return "", fmt.Errorf("remove old subPath %s: %w", target, err)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return "", fmt.Errorf("make subPath directory: %w", err)
	}
	if info.IsDir() {
		err = os.Mkdir(target, 0o750)
	} else {
		err = os.WriteFile(target, nil, 0o640)
	}
	if err != nil {
		return "", fmt.Errorf("make subPath target: %w", err)
	}
	source := "/proc/self/fd/" + strconv.Itoa(int(handle.Fd()))
	if err := unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return "", fmt.Errorf("mount subPath %q on %s: %w", subPath, target, err)
	}
	return target, nil
}
