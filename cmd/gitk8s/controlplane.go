package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	utilruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/controlplane/apiserver"
	"gitk8s.dev/gitk8s/controlplane/controllers/daemonset"
	"gitk8s.dev/gitk8s/controlplane/controllers/deployment"
	"gitk8s.dev/gitk8s/controlplane/controllers/endpointslice"
	"gitk8s.dev/gitk8s/controlplane/controllers/garbagecollector"
	"gitk8s.dev/gitk8s/controlplane/controllers/namespace"
	"gitk8s.dev/gitk8s/controlplane/controllers/nodeipam"
	"gitk8s.dev/gitk8s/controlplane/controllers/nodelifecycle"
	"gitk8s.dev/gitk8s/controlplane/controllers/replicaset"
	"gitk8s.dev/gitk8s/controlplane/controllers/statefulset"
	"gitk8s.dev/gitk8s/controlplane/etcd"
	"gitk8s.dev/gitk8s/controlplane/pki"
	"gitk8s.dev/gitk8s/controlplane/scheduler"
	"gitk8s.dev/gitk8s/gitsource"
	"gitk8s.dev/gitk8s/reconciler"
	"gitk8s.dev/gitk8s/registry"
	"gitk8s.dev/gitk8s/runtime/network"
)

// podCIDR is shared out among the nodes, nodeBits each.
const (
	podCIDR  = "10.42.0.0/16"
	nodeBits = 24
)

// Info is what `gitk8s info` prints: where everything is.
type Info struct {
	Kubeconfig   string `json:"kubeconfig"`
	API          string `json:"api"`
	Git          string `json:"git"`
	Registry     string `json:"registry"`
	Metrics      string `json:"metrics"`
	DockerConfig string `json:"dockerConfig"`
	DataDir      string `json:"dataDir"`
}

// controlPlane is a running server: store, API, controllers, scheduler, Git loop,
// Git server and registry in one process.
type controlPlane struct {
	cfg   Config
	hub   string // id of the network topology; empty without one
	ca    *pki.CA
	info  Info
	token string

	api     *apiserver.Server
	store   *etcd.Server
	recon   *reconciler.Reconciler
	repos   *gitsource.Repositories
	images  *registry.Remote
	workers sync.WaitGroup
	failed  chan error
}

// lockDataDir makes the data directory and takes its lock, which the kernel lets
// go of however the process ends.
func lockDataDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		pid, _ := os.ReadFile(f.Name())
		f.Close()
		return nil, fmt.Errorf("%s is in use by another gitk8s (process %s); stop it with `gitk8s down --data-dir %s`, or choose another --data-dir", dir, pid, dir)
	}
	if err := errors.Join(f.Truncate(0), func() error { _, err := f.WriteString(strconv.Itoa(os.Getpid())); return err }()); err != nil {
		f.Close()
		return nil, fmt.Errorf("data directory %s cannot be written: %w", dir, err)
	}
	return f, nil
}

// startControlPlane starts everything and returns when the API is ready. With a
// hub the API and the registry are served in its network namespace too.
func startControlPlane(ctx context.Context, cfg Config, hub string) (*controlPlane, error) {
	thrifty()
	c := &controlPlane{cfg: cfg, hub: hub, failed: make(chan error, 8)}
	storeReady := make(chan error, 1)
	go func() {
		ec := etcd.Config{DataDir: filepath.Join(cfg.DataDir, "etcd")}
		if len(cfg.EtcdEndpoints) > 0 {
			ec = etcd.Config{Endpoints: cfg.EtcdEndpoints, CAFile: cfg.EtcdCAFile, CertFile: cfg.EtcdCertFile, KeyFile: cfg.EtcdKeyFile}
		}
		var err error
		c.store, err = etcd.Start(ctx, ec)
		storeReady <- err
	}()
	listeners, apiErr := c.prepare()
	if err := errors.Join(apiErr, <-storeReady); err != nil {
		for _, l := range listeners {
			l.Close()
		}
		c.close()
		return nil, err
	}
	if err := c.serve(ctx, listeners); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// prepare makes certificates, credentials and the API's listeners.
func (c *controlPlane) prepare() (listeners []net.Listener, err error) {
	if c.ca, err = pki.OpenCA(filepath.Join(c.cfg.DataDir, "pki")); err != nil {
		return nil, err
	}
	if c.token, err = credentials(filepath.Join(c.cfg.DataDir, "token")); err != nil {
		return nil, err
	}
	return c.listen("API", c.cfg.APIPort, 6443)
}

// listen opens a port on the configured address and, where there is a hub, a
// fixed port in its namespace; 0 leaves the hub out.
func (c *controlPlane) listen(what string, port, hubPort int) ([]net.Listener, error) {
	addr := net.JoinHostPort(c.cfg.Listen, strconv.Itoa(port))
	l, err := net.Listen("tcp", addr)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("the port of the %s, %s, is taken; choose another with a flag, or 0 for any free one", what, addr)
		}
		return nil, fmt.Errorf("listen for the %s on %s: %w", what, addr, err)
	}
	if c.hub == "" || hubPort == 0 {
		return []net.Listener{l}, nil
	}
	inHub, err := network.ListenIn(network.HubNetNS(c.hub), "tcp", netip.AddrPortFrom(network.HubIP, uint16(hubPort)).String())
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("listen for the %s in the workers' network: %w", what, err)
	}
	return []net.Listener{l, inHub}, nil
}

func credentials(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err == nil && len(b) > 0 {
		return string(b), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	raw := make([]byte, 20)
	if _, err := rand.Read(raw); err != nil {
		return "", err
	}
	token := hex.EncodeToString(raw)
	return token, pki.WriteFile(file, []byte(token))
}

func (c *controlPlane) serve(ctx context.Context, listeners []net.Listener) error {
	port := listeners[0].Addr().(*net.TCPAddr).Port
	serving, err := c.ca.Ensure(pki.APIServer(c.cfg.Listen))
	if err != nil {
		return err
	}
	toWorkers, err := c.ca.Ensure(pki.Component("apiserver-worker-client", pki.UserAPIServer))
	if err != nil {
		return err
	}
	ac := apiserver.Config{
		Etcd: c.store.Client(), CA: c.ca, ServingCert: serving, WorkerClientCert: toWorkers, Listeners: listeners,
		AdvertiseAddress: c.cfg.Listen, AdvertisePort: port,
	}
	if c.hub != "" {
		ac.AdvertiseAddress, ac.AdvertisePort = network.HubIP.String(), 6443
		ac.NodeDialer = network.DialIn(network.HubNetNS(c.hub))
	}
	if c.api, err = apiserver.New(ac); err != nil {
		return err
	}
	c.run("API server", func() error { return c.api.Run(ctx) })
	if err := c.startLoops(ctx); err != nil {
		return err
	}
	select {
	case <-c.api.Ready():
	case err := <-c.failed:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
	return c.publish(port)
}

// run runs a part until the context ends; one that ends early takes the rest along.
func (c *controlPlane) run(name string, f func() error) {
	c.workers.Go(func() {
		if err := f(); err != nil && !errors.Is(err, context.Canceled) {
			c.failed <- fmt.Errorf("%s: %w", name, err)
		}
	})
}

func client(cfg *rest.Config) (kubernetes.Interface, dynamic.Interface, error) {
	k, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, nil, err
	}
	d, err := dynamic.NewForConfig(cfg)
	return k, d, err
}

// events records in the API under a component's name.
func (c *controlPlane) events(ctx context.Context, k kubernetes.Interface, component string) record.EventRecorder {
	b := record.NewBroadcaster(record.WithContext(ctx))
	b.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: k.CoreV1().Events("")})
	s := utilruntime.NewScheme()
	for _, add := range []func(*utilruntime.Scheme) error{clientscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(s); err != nil {
			slog.Error("scheme", "error", err) // two types under one name: a mistake in this program
		}
	}
	return b.NewRecorder(s, corev1.EventSource{Component: component})
}

// startLoops starts controllers, scheduler and reconciler. They wait for the API
// by themselves.
func (c *controlPlane) startLoops(ctx context.Context) error {
	cfg := c.api.ClientConfig("system:kube-controller-manager")
	k, _, err := client(cfg)
	if err != nil {
		return err
	}
	f := informers.NewSharedInformerFactory(k, 0)
	rec := c.events(ctx, k, "controller-manager")
	lifecycle, err := nodelifecycle.New(k, f, rec)
	if err != nil {
		return err
	}
	loops := map[string]interface{ Run(context.Context) error }{
		"deployment controller":     deployment.New(k, f, rec),
		"replicaset controller":     replicaset.New(k, f, rec),
		"statefulset controller":    statefulset.New(k, f, rec),
		"daemonset controller":      daemonset.New(k, f, rec),
		"endpointslice controller":  endpointslice.New(k, f),
		"node lifecycle controller": lifecycle,
		"pod network controller":    nodeipam.New(k, f, netip.MustParsePrefix(podCIDR), nodeBits),
	}
	meta, err := metadata.NewForConfig(cfg)
	if err != nil {
		return err
	}
	loops["garbage collector"] = garbagecollector.New(k.Discovery(), meta, slog.Default())
	loops["namespace controller"] = namespace.New(k, meta, slog.Default())
	scfg := c.api.ClientConfig("system:kube-scheduler")
	sk, _, err := client(scfg)
	if err != nil {
		return err
	}
	loops["scheduler"] = scheduler.New(sk, f, c.events(ctx, sk, "default-scheduler"))
	if c.hub != "" {
		if err := c.followHubRoutes(ctx, f); err != nil {
			return err
		}
	}
	for name, l := range loops {
		c.run(name, func() error { return l.Run(ctx) })
	}
	c.run("informers", func() error {
		f.StartWithContext(ctx)
		<-ctx.Done()
		f.Shutdown()
		return nil
	})
	return c.startReconciler(ctx)
}

func (c *controlPlane) startReconciler(ctx context.Context) error {
	cfg := c.api.ClientConfig("gitk8s:reconciler")
	k, d, err := client(cfg)
	if err != nil {
		return err
	}
	disco, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return err
	}
	regListeners, err := c.listen("registry", c.cfg.RegistryPort, registryHubPort)
	if err != nil {
		return err
	}
	regAddr := regListeners[0].Addr().String()
	c.images = registry.NewRemote(registry.RemoteConfig{Local: regAddr, LocalAuth: localAuth(c.token), LocalPlainHTTP: true})
	c.repos = gitsource.NewRepositories(filepath.Join(c.cfg.DataDir, "mirrors"), filepath.Join(c.cfg.DataDir, "git"))
	c.recon = reconciler.New(reconciler.Config{
		Dynamic: d, Discovery: disco, Events: c.events(ctx, k, "gitk8s"), Source: c.repos,
		Images: &imageResolver{remote: c.images, secrets: k, dockerConfig: c.cfg.DockerConfig},
	})
	c.run("reconciler", func() error {
		select {
		case <-c.api.Ready():
		case <-ctx.Done():
			return nil
		}
		return c.recon.Run(ctx)
	})
	gitListeners, err := c.listenOne("Git server", c.cfg.GitPort)
	if err != nil {
		return err
	}
	metricsListener, err := c.listenOne("metrics", c.cfg.MetricsPort)
	if err != nil {
		return err
	}
	hooks := &gitHooks{recon: c.recon, apps: d}
	mux := http.NewServeMux()
	mux.Handle("/hooks/", &gitsource.Webhook{Token: hooks.webhookToken, Trigger: func(key string) { c.recon.Trigger(key, "webhook") }})
	mux.Handle("/", gitsource.NewServer(ctx, c.repos, hooks, gitUser, c.token))
	c.serveHTTP(ctx, "Git server", mux, gitListeners)
	reg, err := registry.NewServer(filepath.Join(c.cfg.DataDir, "registry"), gitUser, c.token)
	if err != nil {
		return err
	}
	c.serveHTTP(ctx, "registry", reg, regListeners...)
	c.run("registry sweep", func() error {
		sweepRegistry(ctx, reg, d)
		return nil
	})
	c.serveHTTP(ctx, "metrics", metricsHandler(c.token), metricsListener)
	c.info = Info{
		Git: "http://" + gitListeners.Addr().String(), Registry: regAddr, Metrics: "http://" + metricsListener.Addr().String() + "/metrics",
		DataDir: c.cfg.DataDir, DockerConfig: filepath.Join(c.cfg.DataDir, "docker", "config.json"),
		Kubeconfig: filepath.Join(c.cfg.DataDir, "admin.kubeconfig"),
	}
	return nil
}

// gitUser is the name that goes with the token on the Git server and registry.
const gitUser = "gitk8s"

// registryHubPort is where workers reach the embedded registry in the hub.
const registryHubPort = 5000

func (c *controlPlane) listenOne(what string, port int) (net.Listener, error) {
	l, err := c.listen(what, port, 0)
	if err != nil {
		return nil, err
	}
	return l[0], nil
}

func (c *controlPlane) serveHTTP(ctx context.Context, name string, h http.Handler, listeners ...net.Listener) {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10}
	for _, l := range listeners {
		c.run(name, func() error {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	context.AfterFunc(ctx, func() { srv.Close() })
}

// publish writes the files by which others find the cluster.
func (c *controlPlane) publish(port int) error {
	admin, err := c.ca.Ensure(pki.Admin())
	if err != nil {
		return err
	}
	c.info.API = "https://" + net.JoinHostPort(c.cfg.Listen, strconv.Itoa(port))
	if err := c.ca.WriteKubeconfig(c.info.Kubeconfig, c.info.API, pki.UserAdmin, admin); err != nil {
		return err
	}
	if err := writeDockerConfig(c.info.DockerConfig, c.info.Registry, c.token); err != nil {
		return err
	}
	b, err := json.MarshalIndent(c.info, "", "  ")
	if err != nil {
		return err
	}
	return pki.WriteFile(filepath.Join(c.cfg.DataDir, "info.json"), append(b, '\n'))
}

// wait returns when a part fails or ctx ends.
func (c *controlPlane) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-c.failed:
		return err
	case err := <-c.store.Err():
		return fmt.Errorf("etcd: %w", err)
	}
}

// close waits for all parts, whose context has ended, and closes the store.
func (c *controlPlane) close() {
	c.workers.Wait()
	if c.store != nil {
		c.store.Close()
	}
}
