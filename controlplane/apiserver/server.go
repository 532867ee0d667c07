package apiserver

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/pkg/server/filters"
	"k8s.io/apiserver/pkg/util/compatibility"
	restclient "k8s.io/client-go/rest"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"gitk8s.dev/gitk8s/controlplane/apiserver/authz"
)

// Server is the API server. New makes it ready to serve, Run serves.
type Server struct {
	config          Config
	types           *types
	options         *restOptions
	stores          map[schema.GroupResource]*store
	addresses       []*addresses // of each range, the first family first
	ports           *nodePorts
	authz           *authz.Authorizer
	tokens          *tokens
	accountTokens   *accountTokens
	memory          *pairListener
	generic         *genericapiserver.GenericAPIServer
	workerTransport *http.Transport
	directTransport *http.Transport
	stopCompactor   func()
	ready           chan struct{}
	readyOnce       sync.Once
	// fail ends Run with an error; it is set by it.
	fail context.CancelCauseFunc
}

// New builds a server. It reads nothing from etcd yet; its listeners are not
// accepted from until Run.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	t, err := newTypes()
	if err != nil {
		return nil, err
	}
	s := &Server{
		config: cfg,
		types:  t,
		stores: map[schema.GroupResource]*store{},
		memory: newPairListener(),
		tokens: newTokens(),
		ready:  make(chan struct{}),
	}
	for _, cidr := range cfg.ServiceCIDRs {
		a, err := newAddresses(cfg.Etcd, cidr, cfg.Now)
		if err != nil {
			return nil, err
		}
		s.addresses = append(s.addresses, a)
	}
	s.ports = newNodePorts(cfg.Etcd, cfg.Now)
	if s.workerTransport, err = newWorkerTransport(cfg); err != nil {
		return nil, err
	}
	s.directTransport = newDirectTransport(cfg)
	if s.accountTokens, err = newAccountTokens(s); err != nil {
		return nil, err
	}
	s.authz = authz.New(podReader{s}, volumeReader{s}, ingressReader{s}, gatewayReader{s}, policyReader{s})
	s.options, s.stopCompactor = newRESTOptions(cfg.Etcd, t)
	if err := s.build(); err != nil {
		s.stopCompactor()
		return nil, err
	}
	return s, nil
}

func (s *Server) now() time.Time { return s.config.Now() }

// build makes the generic server and installs the kinds.
func (s *Server) build() error {
	config, err := s.genericConfig()
	if err != nil {
		return err
	}
	s.generic, err = config.Complete(nil).New("gitk8s", genericapiserver.NewEmptyDelegate())
	if err != nil {
		return fmt.Errorf("apiserver: build: %w", err)
	}
	if err := s.install(); err != nil {
		return err
	}
	s.installOpenAPI(config)
	s.installNoDefinitions()
	return s.generic.AddPostStartHook("gitk8s-bootstrap", func(hook genericapiserver.PostStartHookContext) error {
		if err := s.bootstrap(hook); err != nil {
			// The library would end the process on the spot. Ready it does not become.
			s.fail(fmt.Errorf("apiserver: make what every cluster has: %w", err))
			<-hook.Done()
		}
		return nil
	})
}

func (s *Server) genericConfig() (*genericapiserver.Config, error) {
	config := genericapiserver.NewConfig(s.types.codecs)
	config.EffectiveVersion = compatibility.DefaultBuildEffectiveVersion()
	config.ExternalAddress = net.JoinHostPort(s.config.AdvertiseAddress, fmt.Sprint(s.config.AdvertisePort))
	config.PublicAddress = net.ParseIP(s.config.AdvertiseAddress)
	config.LoopbackClientConfig = s.LoopbackConfig()
	config.RESTOptionsGetter = s.options
	config.LongRunningFunc = filters.BasicLongRunningRequestCheck(
		sets.NewString("watch", "proxy"), sets.NewString("attach", "exec", "proxy", "log", "portforward"))
	config.RequestTimeout = time.Minute
	config.EnableProfiling = false
	config.AdmissionControl = admission.NewChainHandler(room{s.config.Room}, namespaceLifecycle{server: s}, storageAdmission{server: s}, ingressAdmission{server: s}, serviceAccounts{s}, priorityAdmission{server: s}, nodeRestriction{s})
	config.Authentication.Authenticator = s.authenticator()
	config.Authentication.APIAudiences = apiAudiences
	config.Authorization.Authorizer = s.authz
	config.RuleResolver = s.authz
	config.StorageObjectCountTracker = nil
	config.ShutdownWatchTerminationGracePeriod = 0

	namer := openapinamer.NewDefinitionNamer(s.types.scheme)
	config.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(definitions, namer)
	config.OpenAPIConfig.Info.Title, config.OpenAPIConfig.GetDefinitionName = "gitk8s", definitionName(namer)
	config.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(definitions, namer)
	config.OpenAPIV3Config.Info.Title, config.OpenAPIV3Config.GetDefinitionName = "gitk8s", definitionName(namer)
	config.SkipOpenAPIInstallation = true // installOpenAPI

	cert, err := dynamiccertificates.NewStaticCertKeyContent("serving-cert", s.config.ServingCert.CertPEM, s.config.ServingCert.KeyPEM)
	if err != nil {
		return nil, fmt.Errorf("apiserver: the serving certificate: %w", err)
	}
	ca, err := dynamiccertificates.NewStaticCAContent("client-ca", s.config.CA.CertPEM())
	if err != nil {
		return nil, fmt.Errorf("apiserver: the client authority: %w", err)
	}
	config.SecureServing = &genericapiserver.SecureServingInfo{
		Listener: joinListeners(s.config.Listeners), Cert: cert, ClientCA: ca,
	}
	return config, nil
}

// install opens the storage of every kind and installs the groups.
func (s *Server) install() error {
	storage := map[schema.GroupVersion]map[string]rest.Storage{}
	add := func(gv schema.GroupVersion, path string, st rest.Storage) {
		if storage[gv] == nil {
			storage[gv] = map[string]rest.Storage{}
		}
		storage[gv][path] = st
	}
	for _, r := range resources() {
		st, err := s.openStore(r)
		if err != nil {
			return err
		}
		s.stores[r.groupResource(r.plural)] = st
		for _, gv := range append(r.alsoIn, r.gv) {
			add(gv, r.plural, st)
			if r.status {
				add(gv, r.plural+"/status", openStatus(st))
			}
		}
		if r.subresources == nil {
			continue
		}
		for name, sub := range r.subresources(s, st) {
			// The empty name replaces the main endpoint.
			add(r.gv, strings.TrimSuffix(r.plural+"/"+name, "/"), sub)
		}
	}
	for gv, reviews := range s.reviews() {
		for path, st := range reviews {
			add(gv, path, st)
		}
	}
	for path, st := range s.metrics() {
		add(metricsv1beta1.SchemeGroupVersion, path, st)
	}
	return s.installGroups(storage)
}

func (s *Server) installGroups(storage map[schema.GroupVersion]map[string]rest.Storage) error {
	var groups []*genericapiserver.APIGroupInfo
	for _, g := range servedGroups {
		versions := slices.DeleteFunc(versionsOf(g.gv.Group), func(gv schema.GroupVersion) bool { return storage[gv] == nil })
		if len(versions) == 0 || versions[0] != g.gv {
			continue
		}
		info := genericapiserver.NewDefaultAPIGroupInfo(g.gv.Group, s.types.scheme, s.types.parameters, s.types.codecs)
		info.PrioritizedVersions = versions
		for _, gv := range versions {
			info.VersionedResourcesStorageMap[gv.Version] = storage[gv]
		}
		if !hasProtobuf(g.gv.Group) {
			info.NegotiatedSerializer = withoutProtobuf{s.types.codecs}
		}
		if g.gv.Group == "" {
			if err := s.generic.InstallLegacyAPIGroup(genericapiserver.DefaultLegacyAPIPrefix, &info); err != nil {
				return fmt.Errorf("apiserver: install the core group: %w", err)
			}
			continue
		}
		groups = append(groups, &info)
	}
	// One call: the server-side apply models are built once per call.
	if err := s.generic.InstallAPIGroups(groups...); err != nil {
		return fmt.Errorf("apiserver: install the groups: %w", err)
	}
	return nil
}

// Run serves until its context ends or serving fails, and then closes the listeners and
// the storage. It is called once.
func (s *Server) Run(until context.Context) error {
	var ctx context.Context
	ctx, s.fail = context.WithCancelCause(until)
	defer s.fail(nil)
	defer s.stopCompactor()
	s.generic.ShutdownTimeout = shutdownTimeout
	prepared := s.generic.PrepareRun()

	inner := &http.Server{
		Handler:     s.generic.Handler,
		ErrorLog:    slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	done := make(chan error, 1)
	go func() { done <- inner.Serve(s.memory) }()
	go s.awaitReady(ctx)

	err := prepared.RunWithContext(ctx)
	_ = inner.Close()
	if serr := <-done; serr != nil && !errors.Is(serr, http.ErrServerClosed) {
		slog.Warn("in-process API listener", "error", serr)
	}
	if err != nil {
		return fmt.Errorf("apiserver: serve: %w", err)
	}
	if until.Err() != nil {
		return nil
	}
	return context.Cause(ctx)
}

// Ready is closed when the server answers /readyz with ok for the first time.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Address is the host and port of the first listener.
func (s *Server) Address() string { return s.config.Listeners[0].Addr().String() }

// awaitReady closes the ready channel once /readyz answers with ok.
func (s *Server) awaitReady(ctx context.Context) {
	client, err := restclient.HTTPClientFor(s.LoopbackConfig())
	if err != nil {
		slog.Error("no client for the readiness check", "error", err)
		return
	}
	defer client.CloseIdleConnections()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/readyz", nil)
		if err != nil {
			slog.Error("no request for the readiness check", "error", err)
			return
		}
		resp, err := client.Do(req)
		if err != nil {
			continue
		}
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			s.readyOnce.Do(func() { close(s.ready) })
			return
		}
	}
}

// LoopbackConfig is the configuration of an all-powerful client in this process.
func (s *Server) LoopbackConfig() *restclient.Config {
	return s.ClientConfig(user.APIServerUser, user.SystemPrivilegedGroup)
}

// ClientConfig is the configuration of a client in this process under the given
// name and groups: a component's own identity, with its own rights. It does not
// leave the process, is not rate-limited, and may be used before Run, where calls
// wait until the server serves.
func (s *Server) ClientConfig(name string, groups ...string) *restclient.Config {
	return &restclient.Config{
		// The address is not dialled; it must not be one that a proxy is asked for.
		Host:        "http://localhost",
		BearerToken: s.tokens.issue(name, groups),
		QPS:         -1,
		Burst:       -1,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return s.memory.DialContext(ctx)
		},
		UserAgent: "gitk8s/" + name,
		// Memory to memory: each watch would keep 50 KB of a decompressor's.
		DisableCompression: true,
	}
}

// newToken returns 256 random bits.
func newToken() string {
	b := make([]byte, 32)
	if _, err := rand.Read(b); err != nil {
		panic(err) // crypto/rand does not fail on a working system
	}
	return hex.EncodeToString(b)
}
