package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// cgroupsOf is the cgroup below which all those of gitk8s are.
const cgroupsOf = "gitk8s"

// cgroupParent is where a worker's pods have their cgroups; nowhere if it may make none.
func cgroupParent(nodeDir string) string {
	in, ok := entered()
	if ok && in.Cgroup == "" {
		return ""
	}
	return filepath.Join("/", in.Cgroup, cgroupsOf) + "/" + topologyID(filepath.Dir(filepath.Dir(nodeDir))) + "/" + filepath.Base(nodeDir)
}

// removeCgroups removes the empty cgroup of a worker, and those above it that no other
// worker uses, in every hierarchy.
func removeCgroups(parent string) error {
	if parent == "" {
		return nil
	}
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		roots, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, root := range roots {
			errs = append(errs, removeEmpty(root, parent))
		}
	}
	return errors.Join(errs...)
}

// removeEmpty removes the folders of a path below root, innermost first, until one
// is in use, or the last that is ours is gone.
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
		if filepath.Base(p) == cgroupsOf {
			return nil
		}
	}
	return nil
}
