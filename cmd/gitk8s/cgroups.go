package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// cgroupParent is where a worker's pods have their cgroups.
func cgroupParent(nodeDir string) string {
	return "/gitk8s/" + topologyID(filepath.Dir(filepath.Dir(nodeDir))) + "/" + filepath.Base(nodeDir)
}

// removeCgroups removes the empty cgroups of a worker, and those above it that no
// other worker uses, in every hierarchy.
func removeCgroups(nodeDir string) error {
	if oneUser() {
		return nil // who may not make any
	}
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		roots, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, root := range roots {
			errs = append(errs, removeEmpty(root, cgroupParent(nodeDir)))
		}
	}
	return errors.Join(errs...)
}

// removeEmpty removes the folders of a path below root, innermost first, until one
// is in use.
func removeEmpty(root, path string) error {
	for p := path; p != "/"; p = filepath.Dir(p) {
		err := syscall.Rmdir(filepath.Join(root, p))
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		case errors.Is(err, syscall.EBUSY), errors.Is(err, syscall.ENOTEMPTY):
			if p == path {
				return &os.PathError{Op: "remove cgroup", Path: filepath.Join(root, p), Err: err}
			}
			return nil
		default:
			return &os.PathError{Op: "remove cgroup", Path: filepath.Join(root, p), Err: err}
		}
	}
	return nil
}
