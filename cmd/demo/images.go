package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	goruntime "runtime"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// release is one image of the demo: all hold the same server, told apart by the
// environment in their configuration.
type release struct {
	tag string
	env []string
}

var releases = []release{
	{"v1", []string{"VERSION=v1"}},
	{"v2", []string{"VERSION=v2"}},
	{"v3", []string{"VERSION=v3", "READY=never"}},
}

// pushImages builds the releases of the server and pushes them to the registry at
// address with the credentials of a docker config file, as any OCI client would.
func pushImages(ctx context.Context, address, dockerConfig, server string) error {
	layer, err := serverLayer(server)
	if err != nil {
		return err
	}
	// The keychain of the docker tools finds its file through this variable alone.
	if err := os.Setenv("DOCKER_CONFIG", filepath.Dir(dockerConfig)); err != nil {
		return err
	}
	for _, r := range releases {
		img, err := image(layer, r.env)
		if err != nil {
			return fmt.Errorf("image %s: %w", r.tag, err)
		}
		ref, err := name.ParseReference(address + "/shop/web:" + r.tag)
		if err != nil {
			return err
		}
		if err := remote.Write(ref, img, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
			return fmt.Errorf("push %s: %w", ref, err)
		}
	}
	return nil
}

// serverLayer is a layer with the server at /web and the folder that its
// ConfigMap is mounted on.
func serverLayer(server string) (v1.Layer, error) {
	body, err := os.ReadFile(server)
	if err != nil {
		return nil, fmt.Errorf("the server of the images: %w; `make demo` builds it", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o755},
		{Typeflag: tar.TypeDir, Name: "etc/shop/", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: "web", Mode: 0o755, Size: int64(len(body))},
	} {
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
	}
	if _, err := w.Write(body); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
}

func image(layer v1.Layer, env []string) (v1.Image, error) {
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", goruntime.GOARCH
	// It names no user: an ordinary user's cluster may have no other than user 0.
	file.Config = v1.Config{Entrypoint: []string{"/web"}, Env: env, ExposedPorts: map[string]struct{}{"8080/tcp": {}}}
	return mutate.ConfigFile(img, file)
}
