package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"gitk8s.dev/gitk8s/runtime/network"
)

// pushImages puts the images that most tests use into the embedded registry:
// test/web:v1 and v2 differ in what they answer, v3 never becomes ready.
func (c *cluster) pushImages() error {
	for tag, env := range map[string][]string{"v1": {"VERSION=v1"}, "v2": {"VERSION=v2"}, "v3": {"VERSION=v3", "READY=never"}} {
		if _, err := c.pushImage("test/web:"+tag, env...); err != nil {
			return err
		}
	}
	return nil
}

// layerOf is a layer with one executable file, and links to it.
func layerOf(name string, content []byte, links ...string) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
		return nil, err
	}
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	for _, link := range links {
		if err := w.WriteHeader(&tar.Header{Name: link, Linkname: name, Mode: 0o777, Typeflag: tar.TypeSymlink}); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
}

// image makes an image of the test server with an environment.
func image(env ...string) (v1.Image, error) {
	layer, err := layerOf("server", suite.server, "tar", "test")
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.Architecture, cf.OS = "amd64", "linux"
	cf.Config = v1.Config{Entrypoint: []string{"/server"}, Env: append(env, "PATH=/")}
	return mutate.ConfigFile(img, cf)
}

// pushImage pushes an image of the test server with an environment, and returns its
// digest.
func (c *cluster) pushImage(ref string, env ...string) (string, error) {
	img, err := image(env...)
	if err != nil {
		return "", err
	}
	return c.push(ref, img)
}

// pushLarge pushes an image of the test server that has so many bytes more, which
// don't compress.
func (c *cluster) pushLarge(ref string, size int) (string, error) {
	img, err := image()
	if err != nil {
		return "", err
	}
	b := make([]byte, size)
	_, _ = rand.Read(b) // never fails
	layer, err := layerOf("bulk", b)
	if err != nil {
		return "", err
	}
	if img, err = mutate.AppendLayers(img, layer); err != nil {
		return "", err
	}
	return c.push(ref, img)
}

// push pushes an image as any OCI client would, with the credentials of the docker
// config file that `gitk8s info` names, and returns its digest.
func (c *cluster) push(ref string, img v1.Image) (string, error) {
	r, auth, err := c.reference(ref)
	if err != nil {
		return "", err
	}
	transport := remote.DefaultTransport
	if c.netns != "" {
		transport = &http.Transport{DialContext: network.DialIn(c.netns)}
	}
	if err := remote.Write(r, img, auth, remote.WithTransport(transport)); err != nil {
		return "", fmt.Errorf("push %s: %w", ref, err)
	}
	d, err := img.Digest()
	return d.String(), err
}

// reference is where an image of the embedded registry is for a client outside.
func (c *cluster) reference(ref string) (name.Reference, remote.Option, error) {
	b, err := os.ReadFile(c.info.DockerConfig)
	if err != nil {
		return nil, nil, err
	}
	var cfg struct {
		Auths map[string]authn.AuthConfig `json:"auths"`
	}
	if err := json.Unmarshal(b, &cfg); err != nil {
		return nil, nil, err
	}
	creds, ok := cfg.Auths[c.info.Registry]
	if !ok {
		return nil, nil, fmt.Errorf("%s has no credentials for %s", c.info.DockerConfig, c.info.Registry)
	}
	r, err := name.ParseReference(c.info.Registry+"/"+ref, name.Insecure)
	return r, remote.WithAuth(authn.FromConfig(creds)), err
}

// deleteTag removes a tag from the embedded registry.
func (c *cluster) deleteTag(t *testing.T, ref string) {
	t.Helper()
	r, auth, err := c.reference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Delete(r, auth); err != nil {
		t.Fatalf("delete tag %s: %v", ref, err)
	}
}
