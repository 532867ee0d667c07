package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// runTar is as much of tar as `kubectl cp` calls in a container: `tar cf - PATH` and
// `tar [--no-same-…] -xmf - [-C DIR]`.
func runTar(args []string) error {
	args = slices.DeleteFunc(slices.Clone(args), func(a string) bool { return strings.HasPrefix(a, "--") })
	if len(args) < 2 || args[1] != "-" {
		return fmt.Errorf("tar: cannot do %q", args)
	}
	switch how, rest := strings.TrimPrefix(args[0], "-"), args[2:]; {
	case how == "cf" && len(rest) == 1:
		return pack(os.Stdout, rest[0])
	case how == "xmf" && len(rest) == 0:
		return unpack(os.Stdin, ".")
	case how == "xmf" && len(rest) == 2 && rest[0] == "-C":
		return unpack(os.Stdin, rest[1])
	}
	return fmt.Errorf("tar: cannot do %q", args)
}

// pack writes a file, or a directory with all that is in it. As with tar, its members
// have no slash before their names.
func pack(out io.Writer, root string) error {
	w := tar.NewWriter(out)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		h, err := tar.FileInfoHeader(info, "")
		if err != nil {
			return err
		}
		h.Name = strings.TrimLeft(path, "/")
		if err := w.WriteHeader(h); err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	})
	return errors.Join(err, w.Close())
}

func unpack(in io.Reader, dir string) error {
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, h.Name)
		if h.FileInfo().IsDir() {
			if err := os.MkdirAll(path, 0o755); err != nil {
				return err
			}
			continue
		}
		b, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b, h.FileInfo().Mode().Perm())); err != nil {
			return err
		}
	}
}
