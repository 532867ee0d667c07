package registry

import (
	"context"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// PullPolicy says whether a pull may be answered from disk.
type PullPolicy string

const (
	// Always asks the registry what the reference means now; layers that are
	// already on disk are not fetched again.
	Always PullPolicy = "Always"
	// IfNotPresent asks nothing when the reference is known on this machine.
	IfNotPresent PullPolicy = "IfNotPresent"
	// Never fails when the reference is not known on this machine.
	Never PullPolicy = "Never"
)

// Image is an image whose layers are unpacked on this machine.
type Image struct {
	// Reference as asked for.
	Reference string
	// Digest of the image's manifest, "sha256:…".
	Digest string
	// Repository without tag or digest, so that Repository@Digest pulls it again.
	Repository string
	// Config is the image's own configuration: command, environment, user.
	Config v1.Config
	// Layers are the unpacked directories, lowest first, for an overlay mount.
	Layers []string
	// Size in bytes of the layers as fetched.
	Size int64
	// PulledIn is how long the fetch took; zero when nothing was fetched.
	PulledIn time.Duration
}

// Puller is the worker's view of its image store.
type Puller interface {
	// Pull returns the image, fetching and unpacking what is missing. Concurrent
	// pulls of the same layer fetch it once. Credentials come from keychain.
	Pull(ctx context.Context, reference string, policy PullPolicy, keychain authn.Keychain) (*Image, error)
}

// Resolver turns a reference into the digest it means now.
type Resolver interface {
	// Resolve asks the registry. IsNotFound and IsUnavailable classify its errors.
	Resolve(ctx context.Context, reference string, keychain authn.Keychain) (digest string, err error)
}
