package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/viper"

	"gitk8s.dev/gitk8s/controlplane/controllers/serviceloadbalancer"
	"gitk8s.dev/gitk8s/runtime/network"
)

// Config is everything that can be set, by flag, by GITK8S_* variable or by file,
// in this order of precedence. Keys of the file are the flags' names.
type Config struct {
	// DataDir is where everything is kept.
	DataDir string `mapstructure:"data-dir"`
	// Listen is the address that the ports below are opened on.
	Listen string `mapstructure:"listen"`
	// AdvertiseAddress is where others reach this server; Listen when empty.
	AdvertiseAddress string `mapstructure:"advertise-address"`
	// TLSSANs are more names and addresses in the API's certificate.
	TLSSANs []string `mapstructure:"tls-san"`
	// APIPort, GitPort, RegistryPort and MetricsPort are TCP ports; 0 means any free one.
	APIPort      int `mapstructure:"api-port"`
	GitPort      int `mapstructure:"git-port"`
	RegistryPort int `mapstructure:"registry-port"`
	MetricsPort  int `mapstructure:"metrics-port"`
	// HTTPPort and HTTPSPort are where `up` serves Ingresses; 0 means any free one.
	HTTPPort  int `mapstructure:"http-port"`
	HTTPSPort int `mapstructure:"https-port"`
	// IngressAccessLog is the file that requests to Ingresses are logged to.
	IngressAccessLog string `mapstructure:"ingress-access-log"`
	// Workers is how many workers `up` runs on this machine.
	Workers int `mapstructure:"workers"`
	// EtcdEndpoints of an existing etcd; empty means the embedded one.
	EtcdEndpoints []string `mapstructure:"etcd-endpoints"`
	// EtcdCAFile, EtcdCertFile and EtcdKeyFile are for TLS with EtcdEndpoints.
	EtcdCAFile   string `mapstructure:"etcd-cafile"`
	EtcdCertFile string `mapstructure:"etcd-certfile"`
	EtcdKeyFile  string `mapstructure:"etcd-keyfile"`
	// DockerConfig has credentials for image registries.
	DockerConfig string `mapstructure:"docker-config"`
	// DNSUpstream are the name servers that the workers ask for other names.
	DNSUpstream string `mapstructure:"dns-upstream"`
	// PodEgress lets the pods of `up` reach what is outside of the cluster.
	PodEgress bool `mapstructure:"pod-egress"`
	// ServiceAddress is where node ports and load balancers are reached on this machine.
	ServiceAddress string `mapstructure:"service-address"`
	// LoadBalancerPool has the addresses of load balancers; empty means the nodes'.
	LoadBalancerPool string `mapstructure:"load-balancer-pool"`
	// ClusterCIDR, ServiceCIDR and NodeNetworkCIDR are the ranges of addresses of pods,
	// services and the nodes of `up`.
	ClusterCIDR     string `mapstructure:"cluster-cidr"`
	ServiceCIDR     string `mapstructure:"service-cidr"`
	NodeNetworkCIDR string `mapstructure:"node-network-cidr"`
	// EvictionHard is when the workers of `up` evict pods.
	EvictionHard string `mapstructure:"eviction-hard"`
	// Tunnel says which nodes' pods a server reaches in VXLAN.
	Tunnel network.Tunnel `mapstructure:"tunnel"`
}

// maxWorkers is how many `up` may run on one machine.
const maxWorkers = 200

func newViper() *viper.Viper {
	v := viper.New()
	v.SetEnvPrefix("GITK8S")
	v.SetEnvKeyReplacer(strings.NewReplacer("-", "_"))
	v.AutomaticEnv()
	return v
}

// readConfig binds the flags of the command that runs and reads the file.
func readConfig(v *viper.Viper, cmd *cobra.Command) error {
	if err := v.BindPFlags(cmd.Flags()); err != nil {
		return err
	}
	file := v.GetString("config")
	explicit := file != ""
	if !explicit {
		file = "/etc/gitk8s/config.yaml"
	}
	v.SetConfigFile(file)
	err := v.ReadInConfig()
	if err != nil && !explicit && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("configuration file %s: %w", file, err)
	}
	return nil
}

// advertised is the address at which others reach this server.
func (c Config) advertised() string {
	if c.AdvertiseAddress != "" {
		return c.AdvertiseAddress
	}
	return c.Listen
}

// config returns the whole configuration, checked.
func (e *env) config() (Config, error) {
	var c Config
	if err := e.v.Unmarshal(&c); err != nil {
		return c, usageError("configuration: %w", err)
	}
	for name, port := range map[string]int{"api-port": c.APIPort, "git-port": c.GitPort, "registry-port": c.RegistryPort, "metrics-port": c.MetricsPort, "http-port": c.HTTPPort, "https-port": c.HTTPSPort} {
		if port < 0 || port > 65535 {
			return c, usageError("--%s: %d is no port", name, port)
		}
	}
	if c.AdvertiseAddress != "" && net.ParseIP(c.AdvertiseAddress) == nil {
		return c, usageError("--advertise-address: %q is no IP address", c.AdvertiseAddress)
	}
	if a := c.ServiceAddress; a != "" && a != noServices && net.ParseIP(a) == nil {
		return c, usageError("--service-address: %q is neither an IP address nor %s", a, noServices)
	}
	if _, err := serviceloadbalancer.ParsePool(c.LoadBalancerPool); err != nil {
		return c, usageError("--load-balancer-pool: %w", err)
	}
	if c.Tunnel != "" {
		if _, err := network.ParseTunnel(string(c.Tunnel)); err != nil {
			return c, usageError("--tunnel: %w", err)
		}
	}
	if c.Workers < 0 || c.Workers > maxWorkers {
		return c, usageError("--workers: %d is not from 0 to %d", c.Workers, maxWorkers)
	}
	return c, nil
}

func serverFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.String("listen", "127.0.0.1", "address that the ports below are opened on")
	f.String("advertise-address", "", "address at which other machines reach this one (default: that of --listen)")
	f.StringSlice("tls-san", nil, "more names and addresses for the API's certificate, such as a load balancer's")
	f.Int("api-port", 6443, "port of the Kubernetes API; 0 for any free one")
	f.Int("git-port", 7080, "port of the embedded Git server; 0 for any free one")
	f.Int("registry-port", 5000, "port of the embedded image registry; 0 for any free one")
	f.Int("metrics-port", 0, "port of the metrics; 0 for any free one")
	f.StringSlice("etcd-endpoints", nil, "URLs of an existing etcd cluster, instead of the embedded one")
	f.String("etcd-cafile", "", "CA of --etcd-endpoints")
	f.String("etcd-certfile", "", "client certificate for --etcd-endpoints")
	f.String("etcd-keyfile", "", "key of --etcd-certfile")
	f.String("load-balancer-pool", "", "addresses for load balancers on the nodes' link, such as 192.0.2.10-192.0.2.20 or 2001:db8::1:0/112, with commas between (default: they share the nodes' addresses)")
	f.String("docker-config", "", "docker config file with credentials for image registries")
	rangeFlags(f)
}

// quiet drops klog's info lines unless debugging, and what it calls errors though
// only a client has gone away.
type quiet struct{ slog.Handler }

// goneAway begins the messages of the API's libraries about a client that has closed
// its connection or given up its request, which is its right.
var goneAway = []string{"Error on socket receive", "Timeout or abort while handling", "Post-timeout activity", "FinishRequest: post-timeout activity", "http: Handler timeout"}

// Handle implements slog.Handler.
func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	if isGoneAway(r) {
		if !q.Handler.Enabled(ctx, slog.LevelDebug) {
			return nil
		}
		r.Level = slog.LevelDebug
	}
	return q.Handler.Handle(ctx, r)
}

func isGoneAway(r slog.Record) bool {
	text := r.Message
	if text == "Unhandled Error" {
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "err" {
				text = a.Value.String()
			}
			return a.Key != "err"
		})
	}
	return slices.ContainsFunc(goneAway, func(s string) bool { return strings.HasSuffix(text, s) || strings.HasPrefix(text, s) })
}

func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	if l < slog.LevelError {
		l = slog.LevelDebug - 1
	}
	return q.Handler.Enabled(ctx, l)
}

func (q quiet) WithAttrs(a []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(a)} }
func (q quiet) WithGroup(g string) slog.Handler      { return quiet{q.Handler.WithGroup(g)} }
