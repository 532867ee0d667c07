package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// versions of the image; they share their one layer.
var versions = []string{"v1", "v2"}

// image is the reference with which a pod asks for a version.
func image(version string) string { return "gitk8s.local/bench/web:" + version }

// pushImages puts the versions of a static program into the embedded registry.
func (c *cluster) pushImages(ctx context.Context, program string) error {
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	header := &tar.Header{Name: "server", Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}
	if err := tw.WriteHeader(header); err != nil {
		return err
	}
	if _, err := tw.Write(content); err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		return err
	}
	for _, v := range versions {
		img, err := mutate.AppendLayers(empty.Image, l)
		if err != nil {
			return err
		}
		img, err = mutate.ConfigFile(img, &v1.ConfigFile{
			Architecture: runtime.GOARCH, OS: "linux", RootFS: v1.RootFS{Type: "layers", DiffIDs: diffIDs(img)},
			Config: v1.Config{Entrypoint: []string{"/server"}, Env: []string{"PATH=/", "VERSION=" + v}},
		})
		if err != nil {
			return err
		}
		ref, err := name.ParseReference(c.info.Registry+"/bench/web:"+v, name.Insecure)
		if err != nil {
			return err
		}
		if err := remote.Write(ref, img, remote.WithContext(ctx), remote.WithAuth(&authn.Basic{Username: "gitk8s", Password: c.token})); err != nil {
			return fmt.Errorf("push %s: %w", ref, err)
		}
	}
	return nil
}

func diffIDs(img v1.Image) []v1.Hash {
	cf, err := img.ConfigFile()
	if err != nil {
		return nil // the push then says what is wrong with it
	}
	return cf.RootFS.DiffIDs
}
