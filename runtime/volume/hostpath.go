package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	v1 "k8s.io/api/core/v1"
)

// checkHostPath verifies that a hostPath volume is of the type it claims, and
// makes the two …OrCreate types. See "hostPath volume types" in the Kubernetes
// documentation.
func checkHostPath(path string, kind v1.HostPathType) error {
	info, err := os.Stat(path)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return fmt.Errorf("hostPath %s: %w", path, err)
	}
	switch kind {
	case v1.HostPathUnset:
		if missing {
			// Without a type there is no check, and the runtime makes a directory.
			return os.MkdirAll(path, 0o755)
		}
		return nil
	case v1.HostPathDirectoryOrCreate:
		if missing {
			return os.MkdirAll(path, 0o755)
		}
	case v1.HostPathFileOrCreate:
		if missing {
			f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
			if err != nil {
				return fmt.Errorf("hostPath %s: %w", path, err)
			}
			return f.Close()
		}
	}
	if missing {
		return fmt.Errorf("hostPath type check failed: %s does not exist", path)
	}
	mode := info.Mode()
	ok, what := true, ""
	switch kind {
	case v1.HostPathDirectory, v1.HostPathDirectoryOrCreate:
		ok, what = mode.IsDir(), "a directory"
	case v1.HostPathFile, v1.HostPathFileOrCreate:
		ok, what = mode.IsRegular(), "a file"
	case v1.HostPathSocket:
		ok, what = mode&fs.ModeSocket != 0, "a socket file"
	case v1.HostPathCharDev:
		ok, what = mode&fs.ModeCharDevice != 0, "a character device"
	case v1.HostPathBlockDev:
		ok, what = mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0, "a block device"
	default:
		return fmt.Errorf("hostPath %s: unknown type %q", path, kind)
	}
	if !ok {
		return fmt.Errorf("hostPath type check failed: %s is not %s", path, what)
	}
	return nil
}
