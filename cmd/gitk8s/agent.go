package main

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	gatewayclient "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned"
	"sigs.k8s.io/yaml"

	"gitk8s.dev/gitk8s/controlplane/apiserver"
	"gitk8s.dev/gitk8s/registry"
	"gitk8s.dev/gitk8s/runtime/agent"
	"gitk8s.dev/gitk8s/runtime/container/driver"
	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/dns"
	"gitk8s.dev/gitk8s/runtime/network/follow"
	"gitk8s.dev/gitk8s/runtime/network/healthcheck"
	"gitk8s.dev/gitk8s/runtime/network/ingress"
	"gitk8s.dev/gitk8s/runtime/network/policy"
	"gitk8s.dev/gitk8s/runtime/network/userspace"
)

// stopWorkloads is the line on a worker's standard input that makes it stop its
// pods before it ends.
const stopWorkloads = "stop workloads"

// workerFiles are the names of a worker's files in its directory, written by
// whoever starts it.
const (
	workerKubeconfig = "kubeconfig"
	workerCert       = "server.crt"
	workerKey        = "server.key"
	workerCA         = "ca.crt"
)

// Those that `gitk8s server enroll` adds: a configuration file, and the password for
// the embedded registry.
const (
	workerConfig = "config.yaml"
	workerToken  = "registry-token"
)

func newAgent(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run a worker on this machine",
		Long: `Run a worker: it registers a node and runs the pods that are bound to it.

Its directory (--node-dir) holds kubeconfig, ca.crt, server.crt and server.key, and
may hold config.yaml with values for the flags below: what ` + "`gitk8s server enroll`" + `
writes is enough.
Ending it, in whatever way, leaves its containers running; the next start goes
on with them. With --attached it also ends when its standard input does.

SIGPWR says that the machine goes down: the node is not Ready any more, its pods end
within --shutdown-grace-period, the critical ones last, and then the worker does.`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return e.runAgent(cmd.Context()) },
	}
	f := cmd.Flags()
	f.String("name", "", "name of the node (default: the host name)")
	f.String("node-dir", "", "directory of the worker (default: DATA-DIR/nodes/NAME)")
	f.String("node-ip", "", "address of the node, or one of IPv4 and one of IPv6 with a comma between")
	rangeFlags(f)
	f.String("registry", "", "address, host:port, that images under gitk8s.local/ come from")
	f.String("registry-token-file", "", "file with the password for it")
	f.String("egress", "", "socket of who dials for the worker what is outside of the cluster (default: the worker itself)")
	f.String("docker-config", "", "docker config file with credentials for image registries")
	f.String("dns-upstream", "", "name servers for names outside of the cluster, host:port with commas between, or none (default: those of /etc/resolv.conf)")
	f.String("container-log-max-size", "10Mi", "size at which a container's log is rotated")
	f.Int("container-log-max-files", 5, "how many files of a container's log are kept, at least 2")
	f.Int("image-gc-high-threshold", 85, "percent of disk usage from which unused images are removed; 100 is never")
	f.Int("image-gc-low-threshold", 80, "percent of disk usage at which that ends")
	f.Duration("minimum-image-ttl-duration", 2*time.Minute, "how long an image stays that nothing uses")
	f.String("eviction-hard", agent.DefaultEvictionHard, "below which memory and disk left the node evicts pods and takes no more, in kubelet's syntax; empty is never")
	f.String("system-reserved", "", "what of the node's cpu, memory and ephemeral-storage is kept from pods, in kubelet's syntax, such as cpu=200m,memory=1Gi")
	f.String("pod-manifest-path", "", "directory with a file for each static pod, which the worker runs without the API")
	f.Duration("shutdown-grace-period", 0, "time that pods have to end when SIGPWR says that the machine goes down; 0 leaves them running")
	f.Duration("shutdown-grace-period-critical-pods", 0, "part of it that is kept for critical pods, which end last")
	f.Bool("masquerade", true, "let pods reach what is outside of the cluster with the node's address in place of theirs, which nobody knows the way to there")
	f.String("proxy-mode", "", "what carries connections to services: nftables or userspace (default: nftables where the kernel has it)")
	f.Int("ingress-http-port", 80, "port at which the node serves Ingresses, once there are some; 0 for none")
	f.Int("ingress-https-port", 443, "the same with TLS")
	ingressLogFlag(f)
	tunnelFlag(f)
	encryptFlag(f)
	cniFlags(f)
	f.Bool("attached", false, "end when standard input does")
	return cmd
}

func (e *env) runAgent(ctx context.Context) error {
	unhurried()
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	e.v.SetDefault("name", host)
	dir := e.v.GetString("node-dir")
	if dir == "" {
		dir = filepath.Join(e.v.GetString("data-dir"), "nodes", e.v.GetString("name"))
	}
	if err := e.readWorkerConfig(dir); err != nil {
		return err
	}
	name := e.v.GetString("name")
	ranges, err := parseRanges(e.v.GetString(podsFlag), e.v.GetString(servicesFlag), "")
	if err != nil {
		return err
	}
	ips, err := parseNodeIPs(e.v.GetString("node-ip"), ranges)
	if err != nil {
		return usageError("--node-ip: %w", err)
	}
	lock, err := lockDataDir(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	w, err := e.newWorker(name, dir, ips, ranges)
	if err != nil {
		return err
	}
	defer w.close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go w.powerOff(ctx, cancel)
	if e.v.GetBool("attached") {
		go w.obey(ctx, e.io.in, cancel)
	}
	return w.run(ctx)
}

// readWorkerConfig adds what was written for this very worker to the configuration:
// below flags and variables, above the machine's configuration file.
func (e *env) readWorkerConfig(dir string) error {
	file := filepath.Join(dir, workerConfig)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	values := map[string]any{}
	if err := yaml.Unmarshal(b, &values); err != nil {
		return fmt.Errorf("configuration file %s: %w", file, err)
	}
	if _, err := os.Stat(filepath.Join(dir, workerToken)); err == nil && values["registry-token-file"] == nil {
		values["registry-token-file"] = filepath.Join(dir, workerToken)
	}
	return e.v.MergeConfigMap(values)
}

// worker is a running agent with what it needs.
type worker struct {
	name     string
	ips      []netip.Addr
	ranges   network.Ranges
	dir      string
	client   kubernetes.Interface
	gateways gatewayclient.Interface
	images   *registry.Store
	driver   *driver.Driver
	proxy    serviceProxy
	zone     *dns.Zone
	names    *dns.Server
	agent    *agent.Agent
	pods     podNetwork
	links    follow.PodLinks
	drain    follow.Drain
	mesh     *network.Mesh
	// publicKey is the node's for WireGuard, empty for none.
	publicKey string

	enforcer *policy.Enforcer
	policies *policy.Follower

	ingress             *ingress.Proxy
	httpPort, httpsPort int

	certificates *workerCertificates
}

func (e *env) newWorker(name, dir string, ips []netip.Addr, ranges network.Ranges) (w *worker, err error) {
	w = &worker{name: name, dir: dir, ips: ips, ranges: ranges, httpPort: e.v.GetInt("ingress-http-port"), httpsPort: e.v.GetInt("ingress-https-port")}
	made := w // what is returned with an error is not it
	defer func() {
		if err != nil {
			made.close()
		}
	}()
	rc, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dir, workerKubeconfig))
	if err != nil {
		return nil, err
	}
	rc.QPS, rc.Burst = -1, -1
	rc.ContentType = "application/vnd.kubernetes.protobuf"
	rc.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	if w.certificates, err = openWorkerCertificates(dir, rc); err != nil {
		return nil, err
	}
	if w.client, err = kubernetes.NewForConfig(rc); err != nil {
		return nil, err
	}
	asJSON := rest.CopyConfig(rc) // the Gateway API has no protobuf form
	asJSON.ContentType, asJSON.AcceptContentTypes = "", ""
	if w.gateways, err = gatewayclient.NewForConfig(asJSON); err != nil {
		return nil, err
	}
	caPEM, err := os.ReadFile(filepath.Join(dir, workerCA))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(caPEM) {
		return nil, fmt.Errorf("%s holds no certificate", filepath.Join(dir, workerCA))
	}
	remote, err := e.workerRemote()
	if err != nil {
		return nil, err
	}
	if w.images, err = registry.OpenStore(registry.StoreConfig{Dir: filepath.Join(dir, "images"), Remote: remote}); err != nil {
		return nil, err
	}
	if w.driver, err = driver.New(driver.Config{StateDir: filepath.Join(dir, "run")}); err != nil {
		return nil, err
	}
	if err := w.openNetwork(e); err != nil {
		return nil, err
	}
	if w.proxy, err = e.openServiceProxy(ranges.Services); err != nil {
		w.proxy = nil // not an interface with nothing in it
		return nil, err
	}
	if err := w.openPolicies(); err != nil {
		return nil, err
	}
	upstream, err := e.upstream(ranges)
	if err != nil {
		return nil, err
	}
	w.zone = dns.NewZone(clusterDomain, slices.Concat(ranges.Pods, ranges.Services)...)
	w.names = dns.NewServer(w.zone, upstream)
	l, err := net.Listen("tcp", netip.AddrPortFrom(ips[0], workerPort).String())
	if err != nil {
		return nil, fmt.Errorf("listen on the node's address: %w", err)
	}
	logSize, err := resource.ParseQuantity(e.v.GetString("container-log-max-size"))
	if err != nil {
		return nil, usageError("--container-log-max-size: %w", err)
	}
	eviction, err := agent.ParseEvictionHard(e.v.GetString("eviction-hard"))
	if err != nil {
		return nil, usageError("--eviction-hard: %w", err)
	}
	reserved, err := agent.ParseReserved(e.v.GetString("system-reserved"))
	if err != nil {
		return nil, usageError("--system-reserved: %w", err)
	}
	access, err := e.accessLog()
	if err != nil {
		return nil, err
	}
	w.ingress = ingress.NewProxy(ingress.Config{Dial: (&net.Dialer{}).DialContext, AccessLog: access})
	w.agent, err = agent.New(agent.Config{
		NodeName: name, NodeIPs: ips, Client: w.client, Runtime: w.driver, Images: w.images,
		Network: w.pods, PodCIDRAssigned: w.pods.Assign, Policies: w.policies, Drained: w.drain.Wait, DataDir: dir,
		ClusterDNS: []string{ranges.DNS()[0].String()}, ClusterDomain: clusterDomain,
		CgroupParent: cgroupParent(dir), Listener: l, ServingCert: w.certificates.serving.Load, ClientCA: pool, DockerConfig: e.v.GetString("docker-config"),
		NodeAnnotations: map[string]string{follow.AnnotationWireGuardKey: w.publicKey},
		ImageStore:      w.images,
		ImageGC: agent.ImageGCPolicy{
			HighThresholdPercent: e.v.GetInt("image-gc-high-threshold"), LowThresholdPercent: e.v.GetInt("image-gc-low-threshold"),
			MinimumAge: e.v.GetDuration("minimum-image-ttl-duration"),
		},
		Logger:       slog.Default(),
		EvictionHard: eviction, SystemReserved: reserved, MoreMetrics: w.ingress.WriteMetrics, NetworkState: w.networkState,
		StaticPods: agent.StaticPodPolicy{Dir: e.v.GetString("pod-manifest-path"), Complete: apiserver.CompleteStaticPod},
		Shutdown: agent.ShutdownPolicy{
			GracePeriod: e.v.GetDuration("shutdown-grace-period"), CriticalPods: e.v.GetDuration("shutdown-grace-period-critical-pods"),
		},
		ContainerLogMaxSize: logSize.Value(), ContainerLogMaxFiles: e.v.GetInt("container-log-max-files"),
	})
	return w, err
}

// workerRemote says how a worker reaches registries.
func (e *env) workerRemote() (registry.RemoteConfig, error) {
	rc := registry.RemoteConfig{Local: e.v.GetString("registry"), LocalPlainHTTP: true}
	if file := e.v.GetString("registry-token-file"); file != "" {
		token, err := os.ReadFile(file)
		if err != nil {
			return rc, err
		}
		rc.LocalAuth = localAuth(string(token))
	}
	socket := e.v.GetString("egress")
	if socket == "" {
		return rc, nil
	}
	dial := network.DialThrough(socket)
	// Names are looked up that way too: the node's own network has no resolver.
	names := &net.Resolver{PreferGo: true, Dial: dial}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = func(ctx context.Context, netw, addr string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		ips, err := names.LookupNetIP(ctx, "ip", host)
		if err != nil {
			return nil, err
		}
		var errs []error
		for _, ip := range ips {
			c, err := dial(ctx, netw, net.JoinHostPort(ip.Unmap().String(), port))
			if err == nil {
				return c, nil
			}
			errs = append(errs, err)
		}
		return nil, errors.Join(errs...)
	}
	rc.Transport = t
	rc.LocalTransport = http.DefaultTransport
	return rc, nil
}

// run runs the worker until ctx ends or a part fails.
func (w *worker) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make(chan error, 4)
	f := informers.NewSharedInformerFactory(w.client, 0) // services and endpoints are followed once for all
	pods := coreinformers.NewFilteredPodInformer(w.client, metav1.NamespaceAll, 0, cache.Indexers{}, func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", w.name).String()
	})
	if err := pods.SetTransform(policy.Reduce); err != nil {
		return err
	}
	wg.Go(func() { pods.RunWithContext(ctx) })
	wg.Go(func() {
		defer cancel()
		errs <- w.agent.Run(ctx)
	})
	events := recorder(ctx, w.client, "gitk8s-agent", w.name)
	_, inUserSpace := w.proxy.(*userspace.Proxy)
	wg.Go(func() {
		defer cancel()
		errs <- follow.Node(ctx, follow.Config{
			Informers: f, Pods: pods, Node: w.name, IPs: w.ips, Ranges: w.ranges, Proxy: w.proxy, UserSpace: inUserSpace, Zone: w.zone,
			Mesh: w.mesh, Links: w.links, Drain: &w.drain,
			Checks: healthcheck.New(""), Events: events,
		})
	})
	wg.Go(func() {
		defer cancel()
		errs <- w.serveIngress(ctx, f)
	})
	wg.Go(func() {
		defer cancel()
		errs <- w.policies.Run(ctx)
	})
	wg.Go(func() { serveNames(ctx, w.names, w.ranges) })
	wg.Go(func() { w.keepCertificates(ctx, events) })
	wg.Wait()
	err := errors.Join(<-errs, <-errs, <-errs, <-errs)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// obey ends the worker when its standard input ends, and stops its pods first if
// it is told to.
func (w *worker) obey(ctx context.Context, in io.Reader, end func()) {
	defer end()
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if lines.Text() != stopWorkloads {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
		if err := w.agent.StopAll(ctx); err != nil {
			slog.Error("not all pods have stopped", "node", w.name, "error", err)
		}
		cancel()
		return
	}
}

// powerOff ends the pods, then the worker, when the machine goes down. The signal is
// that of a power failure; `manifests/install/gitk8s-agent.service` sends it.
func (w *worker) powerOff(ctx context.Context, end func()) {
	down := make(chan os.Signal, 1)
	signal.Notify(down, syscall.SIGPWR)
	defer signal.Stop(down)
	select {
	case <-ctx.Done():
		return
	case <-down:
	}
	slog.Info("the machine goes down", "node", w.name)
	if err := w.agent.Shutdown(ctx); err != nil {
		slog.Error("not all pods have ended", "node", w.name, "error", err)
	}
	end()
}

func (w *worker) close() {
	if w.proxy != nil {
		w.proxy.Close()
	}
	if w.enforcer != nil {
		w.enforcer.Close()
	}
	if w.driver != nil {
		w.driver.Close()
	}
	if w.images != nil {
		w.images.Close()
	}
}
