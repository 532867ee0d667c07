package driver

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// embedded holds the executable gitk8s-shim if the build put it there.
//
//go:embed embedded
var embedded embed.FS

const (
	embeddedShim = "embedded/gitk8s-shim"
	selfExe      = "/proc/self/exe"
)

// shimExecutable returns the executable for new sandboxes: the embedded one, written
// to the state directory under the digest of its content, else the running one.
func shimExecutable(files fs.FS, stateDir string) (string, error) {
	body, err := fs.ReadFile(files, embeddedShim)
	if errors.Is(err, fs.ErrNotExist) {
		return selfExe, nil
	}
	if err != nil {
		return "", fmt.Errorf("read embedded shim: %w", err)
	}
	sum := sha256.Sum256(body)
	name := ".shim-" + hex.EncodeToString(sum[:8])
	path := filepath.Join(stateDir, name)
	if st, err := os.Stat(path); err == nil && st.Size() == int64(len(body)) {
		return path, nil
	}
	tmp, err := os.CreateTemp(stateDir, ".tmp-shim-")
	if err != nil {
		return "", fmt.Errorf("write shim: %w", err)
	}
	_, err = tmp.Write(body)
	err = errors.Join(err, tmp.Chmod(0o755), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return "", fmt.Errorf("write shim: %w", err)
	}
	removeOldShims(stateDir, name)
	return path, nil
}

// removeOldShims removes what earlier versions wrote. Sandboxes of theirs have links
// of their own.
func removeOldShims(stateDir, keep string) {
	old, err := filepath.Glob(filepath.Join(stateDir, ".shim-*"))
	if err != nil {
		return
	}
	for _, path := range old {
		if filepath.Base(path) != keep {
			_ = os.Remove(path)
		}
	}
}
