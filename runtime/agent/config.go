package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"

	"gitk8s.dev/gitk8s/registry"
	"gitk8s.dev/gitk8s/runtime/container"
)

// PodNetwork gives pods a network namespace and an address.
type PodNetwork interface {
	// Setup makes the pod's network namespace, or finds it, and returns its path and
	// the pod's addresses, one of each family. It may be repeated. With ownUsers the namespace belongs to a
	// user namespace with the users from network.UserBase on.
	Setup(ctx context.Context, podUID, namespace, name string, ownUsers bool) (netnsPath string, ips []netip.Addr, err error)
	// Teardown removes it. Removing what is gone succeeds.
	Teardown(ctx context.Context, podUID string) error
}

// PodPolicies holds pods with a network of their own to the NetworkPolicies.
type PodPolicies interface {
	// Starts is called when the pod's network has been made and before anything of it
	// runs; on an error nothing does. It may be repeated.
	Starts(pod *v1.Pod, ips []netip.Addr) error
	// Runs is called for a pod that an earlier agent has started.
	Runs(pod *v1.Pod, ips []netip.Addr)
	// Ends is called when nothing of the pod runs any more, before its addresses are free.
	Ends(podUID types.UID)
}

// Config of an Agent. Fields without "optional" must be set.
type Config struct {
	// NodeName is the name of the Node object.
	NodeName string
	// NodeIPs are the node's addresses, one of each family that its pods have. At the
	// first one its HTTPS server is reached.
	NodeIPs []netip.Addr
	// Client talks to the API with the identity system:node:<NodeName>.
	Client kubernetes.Interface
	// Runtime runs the containers. The agent reads its Events and does not Close it.
	Runtime container.Runtime
	// Images pulls and unpacks images.
	Images registry.Puller
	// Network of the pods. It is asked only after Node.spec.podCIDR is set.
	Network PodNetwork
	// PodCIDRAssigned, optional, is called once with the node's podCIDRs before the
	// first Setup. An error is retried.
	PodCIDRAssigned func(ctx context.Context, cidrs []netip.Prefix) error
	// Policies, optional.
	Policies PodPolicies
	// Drained, optional, returns when the services of the cluster lead nobody to a pod any
	// more that is being deleted, or ctx ends. Only then are its containers told to end.
	Drained func(ctx context.Context, podUID types.UID)
	// DataDir is the node's own directory; see docs/contracts.md for what is in it.
	DataDir string

	// Listener of the HTTPS server, on the first of NodeIPs. The agent closes it.
	Listener net.Listener
	// ServingCert returns the server's certificate for NodeName and NodeIPs, which may be
	// another one for each connection.
	ServingCert func() *tls.Certificate
	// ClientCA verifies clients; only the common name system:apiserver is let in.
	ClientCA *x509.CertPool

	// Capacity, optional, is what the node has. What is not in it is detected.
	Capacity v1.ResourceList
	// SystemReserved, optional, is kept from pods: allocatable is capacity less it and
	// less what EvictionHard keeps free; see ParseReserved.
	SystemReserved v1.ResourceList
	// MaxPods, optional, 110 by default.
	MaxPods int64
	// NodeLabels, optional, are put on the Node beside the well-known ones.
	NodeLabels map[string]string
	// NodeAnnotations, optional, are put on the Node; one with an empty value is taken off.
	NodeAnnotations map[string]string
	// CgroupParent, optional, is where the pods' cgroups go, another for each agent of
	// a machine; without it pods have none, and no limits.
	CgroupParent string
	// DockerConfig, optional, is a docker config file with the node's own registry
	// credentials.
	DockerConfig string
	// ResolvConf, optional, is the file that pods with dnsPolicy Default get;
	// /etc/resolv.conf by default.
	ResolvConf string
	// ClusterDNS and ClusterDomain, optional, are what dnsPolicy ClusterFirst puts
	// in front. Without ClusterDNS such pods get the node's configuration.
	ClusterDNS    []string
	ClusterDomain string
	// ContainerLogMaxSize in bytes, optional, 10 MiB by default, is when a container's
	// log is rotated; ContainerLogMaxFiles, optional, 5 by default and at least 2, how
	// many files of it are kept ("Logging Architecture", log rotation).
	ContainerLogMaxSize  int64
	ContainerLogMaxFiles int
	// ImageStore, optional, is where unused images are removed from, by the policy
	// ImageGC; without it none are.
	ImageStore ImageStore
	ImageGC    ImageGCPolicy
	// NetworkState, optional, is what GET /network answers, as JSON: what the node's
	// kernel does for services and policies.
	NetworkState func() (any, error)
	// MoreMetrics, optional, writes metrics of others that are served with the worker's.
	MoreMetrics func(io.Writer) error
	// EvictionHard, optional, is how little memory and disk may be left before the node
	// takes no more pods and evicts some; see ParseEvictionHard.
	EvictionHard []EvictionThreshold
	// StaticPods, optional, are the pods that the node runs of its own.
	StaticPods StaticPodPolicy
	// Shutdown, optional, is how the pods end with the machine.
	Shutdown ShutdownPolicy
	// Logger, optional.
	Logger *slog.Logger
	// Now, optional, is the clock of all decisions.
	Now func() time.Time
}

func (c *Config) complete() error {
	var errs []error
	need := func(ok bool, what string) {
		if !ok {
			errs = append(errs, fmt.Errorf("agent: Config.%s must be set", what))
		}
	}
	need(c.NodeName != "", "NodeName")
	need(len(c.NodeIPs) > 0, "NodeIPs")
	need(c.Client != nil, "Client")
	need(c.Runtime != nil, "Runtime")
	need(c.Images != nil, "Images")
	need(c.Network != nil, "Network")
	need(c.DataDir != "", "DataDir")
	need(c.Listener != nil, "Listener")
	need(c.ServingCert != nil, "ServingCert")
	need(c.ClientCA != nil, "ClientCA")
	if err := c.ImageGC.complete(); err != nil {
		errs = append(errs, err)
	}
	if err := c.StaticPods.complete(); err != nil {
		errs = append(errs, err)
	}
	if err := c.Shutdown.complete(); err != nil {
		errs = append(errs, err)
	}
	if n := c.ContainerLogMaxFiles; n < 0 || n == 1 {
		errs = append(errs, fmt.Errorf("agent: ContainerLogMaxFiles is %d; it must be greater than 1", n))
	}
	if n := c.ContainerLogMaxSize; n < 0 {
		errs = append(errs, fmt.Errorf("agent: ContainerLogMaxSize is %d; it must be positive", n))
	}
	if c.NodeName != "" {
		for _, msg := range validation.IsDNS1123Subdomain(c.NodeName) {
			errs = append(errs, fmt.Errorf("agent: node name %q: %s", c.NodeName, msg))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	abs, err := filepath.Abs(c.DataDir)
	if err != nil {
		return fmt.Errorf("agent: data directory %s: %w", c.DataDir, err)
	}
	c.DataDir = abs
	if c.MaxPods == 0 {
		c.MaxPods = 110
	}
	if c.ContainerLogMaxSize == 0 {
		c.ContainerLogMaxSize = 10 << 20
	}
	if c.ContainerLogMaxFiles == 0 {
		c.ContainerLogMaxFiles = 5
	}
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	if c.ClusterDomain == "" {
		c.ClusterDomain = "cluster.local"
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return nil
}
