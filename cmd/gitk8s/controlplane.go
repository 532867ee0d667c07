package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	gatewayclient "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned"

	"gitk8s.dev/gitk8s/controlplane/apiserver"
	"gitk8s.dev/gitk8s/controlplane/etcd"
	"gitk8s.dev/gitk8s/controlplane/pki"
	"gitk8s.dev/gitk8s/gitsource"
	"gitk8s.dev/gitk8s/registry"
	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/ingress"
)

// Info is what `gitk8s info` prints: where everything is.
type Info struct {
	Kubeconfig string `json:"kubeconfig"`
	API        string `json:"api"`
	Git        string `json:"git"`
	Registry   string `json:"registry"`
	Metrics    string `json:"metrics"`
	// IngressHTTP and IngressHTTPS are where Ingresses are reached; empty where they
	// are at the nodes.
	IngressHTTP  string `json:"ingressHTTP,omitempty"`
	IngressHTTPS string `json:"ingressHTTPS,omitempty"`
	DockerConfig string `json:"dockerConfig"`
	DataDir      string `json:"dataDir"`
	// ClusterCIDR and ServiceCIDR are the addresses of pods and services.
	ClusterCIDR string `json:"clusterCIDR"`
	ServiceCIDR string `json:"serviceCIDR"`
}

// controlPlane is a running server: store, API, controllers, scheduler, Git loop,
// Git server and registry in one process.
type controlPlane struct {
	cfg Config
	// nodes are those of `up`; nil for a server alone.
	nodes nodes
	// ranges are the cluster's addresses.
	ranges network.Ranges
	ca     *pki.CA
	info   Info
	token  string

	apiAddress string // host:port at which others reach the API

	api    *apiserver.Server
	store  *etcd.Server
	repos  *gitsource.Repositories
	images *registry.Remote
	git    gate // Git server and webhooks
	// watched is what this process follows whoever runs the loops: nodes, and with `up`
	// what is served on the machine. watcher is the client that it uses,
	// and gateways for the Gateway API.
	watcher  kubernetes.Interface
	gateways gatewayclient.Interface
	watched  informers.SharedInformerFactory
	// ingress serves Ingresses on this machine; nil where the nodes alone do.
	ingress *ingress.Proxy
	// stepDown ends the loops, if they run here and could run elsewhere.
	stepDown func()
	end      context.CancelFunc // of all parts
	parts
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
	if err := writePID(f, os.Getpid()); err != nil {
		f.Close()
		return nil, fmt.Errorf("data directory %s cannot be written: %w", dir, err)
	}
	return f, nil
}

// writePID writes into a lock whose it is.
func writePID(lock *os.File, pid int) error {
	return errors.Join(lock.Truncate(0), func() error { _, err := lock.WriteString(strconv.Itoa(pid)); return err }())
}

// startControlPlane starts everything and returns when the API is ready. With nodes the
// API and the registry are served in their hub, too.
func startControlPlane(ctx context.Context, cfg Config, ranges network.Ranges, nodes nodes) (*controlPlane, error) {
	thrifty()
	c := &controlPlane{cfg: cfg, nodes: nodes, ranges: ranges, stepDown: func() {}, parts: parts{failed: make(chan error, 1)}}
	ctx, c.end = context.WithCancel(ctx)
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
	err := errors.Join(c.prepare(), <-storeReady)
	if err == nil {
		err = sameRanges(ctx, c.store.Client(), ranges)
	}
	if err == nil && nodes != nil {
		err = nodes.Make()
	}
	if err != nil {
		c.close()
		return nil, err
	}
	listeners, err := c.listen("API", c.cfg.APIPort, 6443)
	if err != nil {
		c.close()
		return nil, err
	}
	if err := c.serve(ctx, listeners); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// replicated says whether other servers may work on the same store.
func (c *controlPlane) replicated() bool { return len(c.cfg.EtcdEndpoints) > 0 }

// prepare makes certificates and credentials.
func (c *controlPlane) prepare() (err error) {
	if c.ca, err = pki.OpenCA(filepath.Join(c.cfg.DataDir, "pki")); err != nil {
		return err
	}
	c.token, err = credentials(filepath.Join(c.cfg.DataDir, "token"))
	return err
}

// listen opens a port on the configured address and, where there are nodes, a fixed port
// in their hub; 0 leaves the hub out.
func (c *controlPlane) listen(what string, port, hubPort int) ([]net.Listener, error) {
	addr := net.JoinHostPort(c.cfg.Listen, strconv.Itoa(port))
	l, err := net.Listen("tcp", addr)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("the port of the %s, %s, is taken; choose another with a flag, or 0 for any free one", what, addr)
		}
		return nil, fmt.Errorf("listen for the %s on %s: %w", what, addr, err)
	}
	if c.nodes == nil || hubPort == 0 {
		return []net.Listener{l}, nil
	}
	inHub, err := c.nodes.Listen(netip.AddrPortFrom(c.ranges.Hub()[0], uint16(hubPort)).String())
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
	c.apiAddress = net.JoinHostPort(c.cfg.advertised(), strconv.Itoa(port))
	if c.replicated() {
		if err := sameAuthority(ctx, c.store.Client(), c.ca, c.cfg.DataDir); err != nil {
			return err
		}
	}
	names := []string{c.cfg.Listen, c.cfg.AdvertiseAddress}
	for _, ip := range slices.Concat(c.ranges.API(), c.ranges.Hub()) {
		names = append(names, ip.String())
	}
	serving, err := c.ca.Ensure(pki.APIServer(append(names, c.cfg.TLSSANs...)...))
	if err != nil {
		return err
	}
	toWorkers, err := c.ca.Ensure(pki.Component("apiserver-worker-client", pki.UserAPIServer))
	if err != nil {
		return err
	}
	ends, err := firstEnd(serving, toWorkers)
	if err != nil {
		return err
	}
	c.run("expiry of certificates", func() error {
		expiry{ends: func() time.Time { return ends }, whose: "the API server's certificates", remedy: "start gitk8s anew, which renews them"}.watch(ctx, func(string) {})
		return nil
	})
	ac := apiserver.Config{
		Etcd: c.store.Client(), CA: c.ca, ServingCert: serving, WorkerClientCert: toWorkers, Listeners: listeners,
		AdvertiseAddress: c.cfg.advertised(), AdvertisePort: port, Replicated: c.replicated(),
		ServiceCIDRs: c.ranges.Services,
	}
	if c.store.Embedded() {
		ac.Room = roomIn(c.cfg.DataDir)
	}
	if c.nodes != nil {
		ac.AdvertiseAddress, ac.AdvertisePort = c.ranges.Hub()[0].String(), 6443
		ac.NodeDialer = c.nodes.Dial
	}
	if c.api, err = apiserver.New(ac); err != nil {
		return err
	}
	c.run("API server", func() error { return c.api.Run(ctx) })
	watcher := c.api.ClientConfig(pki.UserControllerManager)
	if c.watcher, _, err = client(watcher); err != nil {
		return err
	}
	if c.gateways, err = gatewayclient.NewForConfig(watcher); err != nil {
		return err
	}
	c.watched = informers.NewSharedInformerFactory(c.watcher, 0)
	if err := c.openServers(ctx); err != nil {
		return err
	}
	if err := c.followRoutes(ctx); err != nil {
		return err
	}
	c.run("watches", func() error {
		c.watched.StartWithContext(ctx)
		<-ctx.Done()
		c.watched.Shutdown()
		return nil
	})
	start := func() error { return c.startLoops(ctx, &c.parts) }
	if c.replicated() {
		start = func() error { return c.startCampaign(ctx) }
	}
	if err := start(); err != nil {
		return err
	}
	select {
	case <-c.api.Ready():
	case err := <-c.failed:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
	return c.publish()
}

func client(cfg *rest.Config) (kubernetes.Interface, dynamic.Interface, error) {
	k, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, nil, err
	}
	d, err := dynamic.NewForConfig(cfg)
	return k, d, err
}

// openServers opens what is served besides the API: Git, the registry and metrics.
func (c *controlPlane) openServers(ctx context.Context) error {
	_, d, err := client(c.api.ClientConfig(pki.UserReconciler))
	if err != nil {
		return err
	}
	regListeners, err := c.listen("registry", c.cfg.RegistryPort, registryHubPort)
	if err != nil {
		return err
	}
	gitListener, err := c.listenOne("Git server", c.cfg.GitPort)
	if err != nil {
		return err
	}
	metricsListener, err := c.listenOne("metrics", c.cfg.MetricsPort)
	if err != nil {
		return err
	}
	c.images = registry.NewRemote(registry.RemoteConfig{Local: regListeners[0].Addr().String(), LocalAuth: localAuth(c.token), LocalPlainHTTP: true})
	c.repos = gitsource.NewRepositories(filepath.Join(c.cfg.DataDir, "mirrors"), filepath.Join(c.cfg.DataDir, "git"))
	reg, err := registry.NewServer(filepath.Join(c.cfg.DataDir, "registry"), gitUser, c.token, pullToken(c.token))
	if err != nil {
		return err
	}
	c.serveHTTP(ctx, "Git server", &c.git, gitListener)
	c.serveHTTP(ctx, "registry", reg, regListeners...)
	c.run("registry sweep", func() error {
		sweepRegistry(ctx, reg, d)
		return nil
	})
	c.info = Info{
		Git: "http://" + c.reach(gitListener), Registry: c.reach(regListeners[0]), Metrics: "http://" + c.reach(metricsListener) + "/metrics",
		DataDir: c.cfg.DataDir, DockerConfig: filepath.Join(c.cfg.DataDir, "docker", "config.json"),
		Kubeconfig: filepath.Join(c.cfg.DataDir, "admin.kubeconfig"), ClusterCIDR: joinRanges(c.ranges.Pods), ServiceCIDR: joinRanges(c.ranges.Services),
	}
	if c.nodes != nil {
		if err := c.openIngress(ctx); err != nil {
			return err
		}
	}
	c.serveHTTP(ctx, "metrics", metricsHandler(c.token, c.ingress), metricsListener)
	return nil
}

// reach is the address at which others reach a listener of ours.
func (c *controlPlane) reach(l net.Listener) string {
	return net.JoinHostPort(c.cfg.advertised(), strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
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
func (c *controlPlane) publish() error {
	admin, err := c.ca.Ensure(pki.Admin())
	if err != nil {
		return err
	}
	c.info.API = "https://" + c.apiAddress
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

// close ends all parts, waits for them, and closes the store.
func (c *controlPlane) close() {
	c.end()
	c.wg.Wait()
	if c.store != nil {
		c.store.Close()
	}
}
