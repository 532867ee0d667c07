package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// LocalName is the registry name that means the embedded registry, whatever its
// address.
const LocalName = "gitk8s.local"

// maxManifest bounds what is read of a manifest: 4 MiB, as the OCI distribution
// specification lets registries do.
const maxManifest = 4 << 20

// RemoteConfig says how registries are reached.
type RemoteConfig struct {
	// Local is the address, host:port, of the registry that LocalName means; empty
	// makes such references an error.
	Local string
	// LocalAuth are the credentials for it; nil means none.
	LocalAuth authn.Authenticator
	// LocalTransport reaches it, with the cluster's CA and a dialer into another
	// network namespace where needed; nil means Transport.
	LocalTransport http.RoundTripper
	// LocalPlainHTTP allows it to speak HTTP without TLS.
	LocalPlainHTTP bool
	// Transport reaches all other registries; nil means one with bounded timeouts.
	Transport http.RoundTripper
	// PlainHTTP lists registries (host or host:port) that may be spoken to without
	// TLS. Loopback and 10.0.0.0/8 may always.
	PlainHTTP []string
}

// Remote speaks to registries. It implements Resolver.
type Remote struct {
	cfg   RemoteConfig
	other http.RoundTripper
	local http.RoundTripper
}

var _ Resolver = (*Remote)(nil)

// NewRemote returns a Remote.
func NewRemote(cfg RemoteConfig) *Remote {
	if cfg.Transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.ResponseHeaderTimeout = 30 * time.Second
		cfg.Transport = t
	}
	if cfg.LocalTransport == nil {
		cfg.LocalTransport = cfg.Transport
	}
	r := &Remote{cfg: cfg}
	r.other = &guard{next: cfg.Transport, plain: func(host string) bool { return plainHTTPAllowed(host, cfg.PlainHTTP) }}
	r.local = &guard{next: cfg.LocalTransport, plain: func(string) bool { return cfg.LocalPlainHTTP }}
	return r
}

// guard keeps credentials off unencrypted connections that nobody allowed, and
// manifests within bounds.
type guard struct {
	next  http.RoundTripper
	plain func(host string) bool
}

var errPlainHTTP = errors.New("the registry offers no TLS: list it as one that may be spoken to over plain HTTP, or give it a certificate")

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !g.plain(req.URL.Host) {
		return nil, fmt.Errorf("%s: %w", req.URL.Host, errPlainHTTP)
	}
	resp, err := g.next.RoundTrip(req)
	if err == nil && strings.Contains(req.URL.Path, "/manifests/") && req.Method == http.MethodGet {
		resp.Body = &boundedBody{ReadCloser: resp.Body, left: maxManifest}
	}
	return resp, err
}

type boundedBody struct {
	io.ReadCloser
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("the manifest is larger than %d bytes", maxManifest)
	}
	return n, err
}

func plainHTTPAllowed(host string, allowed []string) bool {
	bare := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		bare = h
	}
	for _, a := range allowed {
		if a == host || a == bare {
			return true
		}
	}
	if bare == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(bare, "[]"))
	return err == nil && (ip.IsLoopback() || netip.MustParsePrefix("10.0.0.0/8").Contains(ip.Unmap()))
}

// target is a reference with everything needed to ask for it.
type target struct {
	asked      string // as given
	canonical  string // the key under which it is remembered
	repository string // as people write it, without tag or digest
	ref        name.Reference
	puller     *remote.Puller
}

func (r *Remote) target(reference string, keychain authn.Keychain) (*target, error) {
	ref, err := name.ParseReference(reference)
	if err != nil {
		return nil, &Error{Reference: reference, Kind: KindInvalid, Err: err}
	}
	t := &target{asked: reference, canonical: ref.Name(), repository: ref.Context().Name(), ref: ref}
	// Two tries within about a second: the caller has its own back-off.
	options := []remote.Option{
		remote.WithRetryBackoff(remote.Backoff{Duration: 200 * time.Millisecond, Factor: 3, Jitter: 0.1, Steps: 2}),
	}
	if ref.Context().RegistryStr() == LocalName {
		if r.cfg.Local == "" {
			return nil, &Error{Reference: reference, Kind: KindUnavailable, Err: errors.New("this machine knows no embedded registry")}
		}
		if t.ref, err = r.rewrite(ref); err != nil {
			return nil, &Error{Reference: reference, Kind: KindInvalid, Err: err}
		}
		auth := r.cfg.LocalAuth
		if auth == nil {
			auth = authn.Anonymous
		}
		t.puller, err = remote.NewPuller(append(options, remote.WithTransport(r.local), remote.WithAuth(auth))...)
		return t, err
	}
	if plainHTTPAllowed(ref.Context().RegistryStr(), r.cfg.PlainHTTP) {
		if ref, err = name.ParseReference(reference, name.Insecure); err != nil {
			return nil, &Error{Reference: reference, Kind: KindInvalid, Err: err}
		}
		t.ref = ref
	}
	if keychain == nil {
		keychain = authn.NewMultiKeychain()
	}
	t.puller, err = remote.NewPuller(append(options, remote.WithTransport(r.other), remote.WithAuthFromKeychain(keychain))...)
	return t, err
}

// rewrite replaces the embedded registry's name by its address.
func (r *Remote) rewrite(ref name.Reference) (name.Reference, error) {
	var opts []name.Option
	if r.cfg.LocalPlainHTTP {
		opts = append(opts, name.Insecure)
	}
	repo, err := name.NewRepository(r.cfg.Local+"/"+ref.Context().RepositoryStr(), opts...)
	if err != nil {
		return nil, err
	}
	if _, ok := ref.(name.Digest); ok {
		return repo.Digest(ref.Identifier()), nil
	}
	return repo.Tag(ref.Identifier()), nil
}

// resolveTimeout bounds a question of one or two small requests: a registry that
// accepts connections and says nothing holds up whoever pushed a commit.
const resolveTimeout = 15 * time.Second

// Resolve implements Resolver: one HEAD, or a GET from registries whose HEAD does
// not name the digest.
func (r *Remote) Resolve(ctx context.Context, reference string, keychain authn.Keychain) (string, error) {
	t, err := r.target(reference, keychain)
	if err != nil {
		return "", err
	}
	asking, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	digest, err := t.resolve(asking)
	if err != nil && asking.Err() != nil && ctx.Err() == nil {
		return "", &Error{Reference: t.asked, Kind: KindUnavailable, Err: fmt.Errorf("no answer within %s", resolveTimeout)}
	}
	if err != nil {
		return "", newError(t.asked, err)
	}
	return digest, nil
}

func (t *target) resolve(ctx context.Context) (string, error) {
	head, err := t.puller.Head(ctx, t.ref)
	if err == nil {
		return head.Digest.String(), nil
	}
	if k := kindOf(err); k == KindNotFound || k == KindCanceled {
		return "", err
	}
	got, getErr := t.puller.Get(ctx, t.ref)
	if getErr != nil {
		return "", getErr // a GET's answer has a body that tells more
	}
	return got.Digest.String(), nil
}
