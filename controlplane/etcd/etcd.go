// Package etcd opens the store of the control plane: an etcd server embedded in
// this process, or a client of an etcd cluster that somebody else runs.
//
// The embedded server listens on unix sockets alone and is used through an
// in-process client, so that no byte of it goes over a network and nobody but
// this user reaches it. Every write is synced to disk before it is acknowledged:
// what a caller was told is written survives kill -9.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
)

const (
	// DefaultQuotaBytes bounds the database; etcd refuses writes beyond it.
	DefaultQuotaBytes = 4 << 30
	// DefaultStartTimeout bounds the wait for an embedded server to serve.
	DefaultStartTimeout = 60 * time.Second
	// maxRequestBytes leaves room for an object of the API server's request limit.
	maxRequestBytes = 4 << 20
	tickMs          = 20
	electionMs      = 100
	dialTimeout     = 20 * time.Second
)

// Config says which store to open. Either DataDir or Endpoints is set.
type Config struct {
	// DataDir is the folder of an embedded server; it is made with mode 0700.
	DataDir string
	// QuotaBytes bounds the embedded database, DefaultQuotaBytes when 0.
	QuotaBytes int64
	// StartTimeout bounds the start, DefaultStartTimeout when 0. Replaying a long
	// log after a crash takes most of it.
	StartTimeout time.Duration

	// Endpoints are URLs of an existing etcd cluster.
	Endpoints []string
	// CAFile, CertFile and KeyFile are the PEM files for TLS with Endpoints. All
	// empty means plain text.
	CAFile, CertFile, KeyFile string
}

// Validate says what is wrong with a Config.
func (c Config) Validate() error {
	switch {
	case c.DataDir == "" && len(c.Endpoints) == 0:
		return errors.New("etcd: set a data directory for the embedded store or endpoints of an existing one")
	case c.DataDir != "" && len(c.Endpoints) > 0:
		return errors.New("etcd: a data directory and endpoints exclude each other")
	case (c.CertFile == "") != (c.KeyFile == ""):
		return errors.New("etcd: a client certificate needs its key and the reverse")
	}
	return nil
}

// Server is an open store. Its client may be used until Close.
type Server struct {
	client   *clientv3.Client
	embedded *embed.Etcd
	sockets  string
	errs     chan error
	closed   chan struct{}
	once     sync.Once
}

// Start opens the store and returns when it serves, or with an error when ctx or
// the start timeout ends first. The caller closes the Server.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if len(cfg.Endpoints) > 0 {
		return dial(ctx, cfg)
	}
	return startEmbedded(ctx, cfg)
}

// Client returns the client of the store. Close closes it.
func (s *Server) Client() *clientv3.Client { return s.client }

// Embedded tells whether the store runs in this process.
func (s *Server) Embedded() bool { return s.embedded != nil }

// Err delivers an error when the embedded server stops by itself. It never
// delivers anything for an external cluster, and is not closed.
func (s *Server) Err() <-chan error { return s.errs }

// Close closes the client and stops the embedded server. It may be called again.
func (s *Server) Close() {
	s.once.Do(func() {
		close(s.closed)
		// The in-process client has no connection, so closing it reports the
		// cancellation of its own context; there is nothing to act on.
		_ = s.client.Close()
		if s.embedded != nil {
			s.embedded.Close()
			_ = os.RemoveAll(s.sockets)
		}
	})
}

func startEmbedded(ctx context.Context, cfg Config) (*Server, error) {
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("etcd: make the data directory: %w", err)
	}
	sockets, err := socketDir(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	e, err := embed.StartEtcd(embedConfig(cfg, sockets))
	if err != nil {
		_ = os.RemoveAll(sockets)
		return nil, fmt.Errorf("etcd: start on %s: %w", cfg.DataDir, err)
	}
	timeout := cfg.StartTimeout
	if timeout == 0 {
		timeout = DefaultStartTimeout
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	fail := func(err error) (*Server, error) {
		e.Close()
		_ = os.RemoveAll(sockets)
		return nil, fmt.Errorf("etcd: start on %s: %w", cfg.DataDir, err)
	}
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		return fail(err)
	case <-timer.C:
		return fail(fmt.Errorf("not ready within %s", timeout))
	case <-ctx.Done():
		return fail(ctx.Err())
	}
	s := &Server{
		client:   v3client.New(e.Server),
		embedded: e,
		sockets:  sockets,
		errs:     make(chan error, 1),
		closed:   make(chan struct{}),
	}
	go s.watch()
	go s.keepReserve(cfg.DataDir)
	return s, nil
}

// maxSocketDir leaves room for the sockets' names in the 107 bytes of a path.
const maxSocketDir = 90

// socketDir makes the folder of the sockets. It is in the data directory, where
// what a killed process left is replaced, unless that has too long a name.
func socketDir(dataDir string) (string, error) {
	dir, err := filepath.Abs(filepath.Join(dataDir, "sockets"))
	if err == nil && len(dir) <= maxSocketDir {
		err = os.MkdirAll(dir, 0o700)
	} else if err == nil {
		dir, err = os.MkdirTemp("", "gitk8s-etcd-")
	}
	if err != nil {
		return "", fmt.Errorf("etcd: make a directory for its sockets: %w", err)
	}
	return dir, nil
}

// watch hands on the error of a server that ends without having been closed.
func (s *Server) watch() {
	select {
	case <-s.closed:
	case err := <-s.embedded.Err():
		s.errs <- fmt.Errorf("etcd: the embedded server failed: %w", err)
	case <-s.embedded.Server.StopNotify():
		select {
		case <-s.closed:
		default:
			s.errs <- errors.New("etcd: the embedded server stopped")
		}
	}
}

func embedConfig(cfg Config, sockets string) *embed.Config {
	c := embed.NewConfig()
	c.Name = "gitk8s"
	c.Dir = cfg.DataDir
	dummy := url.URL{Scheme: "http", Host: "localhost:0"}
	c.ListenPeerUrls = []url.URL{{Scheme: "unix", Path: filepath.Join(sockets, "peer")}}
	c.ListenClientUrls = []url.URL{{Scheme: "unix", Path: filepath.Join(sockets, "client")}}
	c.AdvertisePeerUrls = []url.URL{dummy}
	c.AdvertiseClientUrls = []url.URL{dummy}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.TickMs = tickMs
	c.ElectionMs = electionMs
	c.QuotaBackendBytes = cfg.QuotaBytes
	if c.QuotaBackendBytes == 0 {
		c.QuotaBackendBytes = DefaultQuotaBytes
	}
	c.MaxRequestBytes = maxRequestBytes
	// The API server compacts by itself, as kube-apiserver does.
	c.AutoCompactionMode = "periodic"
	c.AutoCompactionRetention = "0"
	c.SnapshotCount = 10_000
	c.BootstrapDefragThresholdMegabytes = 256
	c.WatchProgressNotifyInterval = 5 * time.Second
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(lastWords())
	return c
}
