package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"gitk8s.dev/gitk8s/controlplane/pki"
	"gitk8s.dev/gitk8s/runtime/network"
)

// stopTimeout bounds how long `up` waits for workloads to stop.
const stopTimeout = 90 * time.Second

// egressFile is the socket on which `up` dials for its workers.
const egressFile = "egress"

func newUp(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "up [DIR|URL]",
		Short: "Run the control plane and two workers on this machine, in the foreground",
		Long: `Run the control plane and two workers on this machine, in the foreground.

With DIR (a Git repository here) or URL (a remote one) the first application is
made from it and kept equal to its branch.

Ctrl-C stops the workloads and removes every process, mount, network namespace
and cgroup. After a crash the next start goes on with the running containers;
` + "`gitk8s down`" + ` cleans up without starting.`,
		Args: maxArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			source := ""
			if len(args) == 1 {
				source = args[0]
			}
			return e.up(cmd.Context(), source)
		},
	}
	serverFlags(cmd)
	cmd.Flags().Int("http-port", 8080, "port at which Ingresses are reached; 0 for any free one")
	cmd.Flags().Int("https-port", 8443, "the same with TLS")
	ingressLogFlag(cmd.Flags())
	serviceFlags(cmd.Flags())
	nodesRangeFlag(cmd.Flags())
	cmd.Flags().Int("workers", 2, "how many workers to run")
	cmd.Flags().Bool("pod-egress", true, "let pods reach what this machine reaches, by TCP and UDP")
	// A disk that others fill is not emptied by evicting pods.
	cmd.Flags().String("eviction-hard", "memory.available<100Mi", "below which memory and disk left the workers evict pods, as for `gitk8s agent`")
	cmd.Flags().String("dns-upstream", "", "name servers for names outside of the cluster, host:port with commas between, or none (default: those of /etc/resolv.conf)")
	return cmd
}

func newServer(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run the control plane alone, for workers on other machines",
		Args:  exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := e.config()
			if err != nil {
				return err
			}
			ranges, err := cfg.ranges(false)
			if err != nil {
				return err
			}
			if ip := net.ParseIP(cfg.advertised()); ip != nil && ip.IsUnspecified() {
				return usageError("--listen %s says nothing about where workers reach this server; add --advertise-address", cfg.Listen)
			}
			if err := advertisesFirst(cfg, ranges); err != nil {
				return err
			}
			lock, err := lockDataDir(cfg.DataDir)
			if err != nil {
				return err
			}
			defer lock.Close()
			return e.serve(cmd.Context(), cfg, ranges)
		},
	}
	serverFlags(cmd)
	tunnelFlag(cmd.Flags())
	cmd.AddCommand(newEnroll(e))
	return cmd
}

// serve runs the control plane until ctx ends.
func (e *env) serve(ctx context.Context, cfg Config, ranges network.Ranges) error {
	// Parts outlive the signal that ends us: the lease of the loops is given back
	// through the API.
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	started := context.AfterFunc(ctx, cancel)
	c, err := startControlPlane(run, cfg, ranges, nil)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.close()
	defer cancel()
	if !started() {
		return nil
	}
	e.say("API ready at %s, kubeconfig %s", c.info.API, c.info.Kubeconfig)
	err = c.wait(ctx)
	c.stepDown()
	return err
}

// topologyID names the network namespaces of a data directory.
func topologyID(dataDir string) string {
	abs, err := filepath.Abs(dataDir)
	if err != nil {
		abs = dataDir
	}
	sum := sha256.Sum256([]byte(abs))
	return hex.EncodeToString(sum[:4])
}

func (e *env) up(ctx context.Context, source string) error {
	started := time.Now()
	cfg, err := e.config()
	if err != nil {
		return err
	}
	ranges, err := cfg.ranges(true)
	if err != nil {
		return err
	}
	if err := poolOfUp(cfg, ranges); err != nil {
		return err
	}
	if isEntered() {
		return e.serveHolder(cfg, ranges)
	}
	if os.Geteuid() == 0 {
		if err := rootOnly(cfg.DataDir); err != nil {
			return err
		}
		if err := e.canRunWorkers(cfg.DataDir); err != nil {
			return err
		}
	}
	lock, err := lockDataDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	// Parts outlive the signal that ends us: workloads are stopped through them.
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	ctx, lost := context.WithCancelCause(ctx)
	defer lost(nil)
	nodes, err := e.openNodes(run, cfg, ranges, lost)
	if err != nil {
		return err
	}
	starting := context.AfterFunc(ctx, cancel)
	c, err := startControlPlane(run, cfg, ranges, nodes)
	if l := (*holderLost)(nil); err != nil && errors.As(context.Cause(ctx), &l) {
		return l
	}
	if err == nil && !starting() {
		c.close()
		err = ctx.Err()
	}
	if err != nil {
		if errors.Is(err, context.Canceled) && ctx.Err() != nil {
			err = nil
		}
		return errors.Join(err, nodes.Leave())
	}
	e.say("API ready after %s: %s", round(time.Since(started)), c.info.API)
	err = nodes.Start()
	if err == nil {
		err = c.exposeServices(run)
	}
	if err == nil {
		err = e.settle(ctx, c, cfg, started, source)
	}
	if err == nil {
		err = c.wait(ctx)
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		err = nil
	}
	if l := (*holderLost)(nil); errors.As(context.Cause(ctx), &l) {
		cancel()
		c.close()
		return l
	}
	e.say("stopping workloads")
	err = errors.Join(err, nodes.Stop())
	cancel()
	c.close()
	return errors.Join(err, nodes.Remove())
}

// openNodes returns the nodes of `up`; lost is called if they are lost to this process.
func (e *env) openNodes(run context.Context, cfg Config, ranges network.Ranges, lost context.CancelCauseFunc) (nodes, error) {
	if os.Geteuid() == 0 {
		return newOwnNodes(run, e, cfg, ranges), nil
	}
	return e.holdNodes(cfg, lost)
}

// settle waits for the nodes and makes the first application.
func (e *env) settle(ctx context.Context, c *controlPlane, cfg Config, started time.Time, source string) error {
	k, d, err := client(c.api.ClientConfig(pki.UserAdmin, pki.GroupMasters))
	if err != nil {
		return err
	}
	if err := waitForNodes(ctx, k, cfg.Workers, started); err != nil {
		return err
	}
	e.say("%d nodes Ready after %s", cfg.Workers, round(time.Since(started)))
	e.say("")
	e.say("  export KUBECONFIG=%s", c.info.Kubeconfig)
	e.say("  kubectl get nodes                  or: gitk8s kubectl get nodes")
	e.say("  git server %s    registry %s", c.info.Git, c.info.Registry)
	if source == "" {
		e.say("  gitk8s remote shop --add           makes an application to push to")
		return nil
	}
	app, err := applicationFrom(source)
	if err != nil {
		return err
	}
	if err := createApplication(ctx, d, app, true); err != nil {
		return err
	}
	e.say("  application %s follows %s at %s", app.Name, app.Spec.Source.RepoURL, app.Spec.Source.Ref)
	return nil
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// waitForNodes returns when n nodes are Ready and have said so since the given
// time: after a restart the API still has what they said before.
func waitForNodes(ctx context.Context, k kubernetes.Interface, n int, since time.Time) error {
	if n == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	alive := map[string]bool{}
	leases := cache.NewListWatchFromClient(k.CoordinationV1().RESTClient(), "leases", corev1.NamespaceNodeLease, fields.Everything())
	_, err := watchtools.UntilWithSync(ctx, leases, &coordinationv1.Lease{}, nil, func(ev watch.Event) (bool, error) {
		if l, ok := ev.Object.(*coordinationv1.Lease); ok && l.Spec.RenewTime != nil && l.Spec.RenewTime.After(since) {
			alive[l.Name] = true
		}
		return len(alive) >= n, nil
	})
	if err != nil {
		return fmt.Errorf("the workers do not report: %w; their logs are in the data directory under nodes/*/worker.log", err)
	}
	ready := map[string]bool{}
	lw := cache.NewListWatchFromClient(k.CoreV1().RESTClient(), "nodes", "", fields.Everything())
	_, err = watchtools.UntilWithSync(ctx, lw, &corev1.Node{}, nil, func(ev watch.Event) (bool, error) {
		node, ok := ev.Object.(*corev1.Node)
		if !ok {
			return false, nil
		}
		ready[node.Name] = ev.Type != watch.Deleted && nodeReady(node)
		count := 0
		for _, r := range ready {
			if r {
				count++
			}
		}
		return count >= n, nil
	})
	if err != nil {
		return fmt.Errorf("the nodes did not become Ready: %w; the workers' logs are in the data directory under nodes/*/worker.log", err)
	}
	return nil
}

func nodeReady(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// createApplication makes an Application, or with mayExist leaves one that exists.
func createApplication(ctx context.Context, d dynamicClient, app *application, mayExist bool) error {
	m, err := apiruntime.DefaultUnstructuredConverter.ToUnstructured(app)
	if err != nil {
		return err
	}
	_, err = d.Resource(applications).Namespace(app.Namespace).Create(ctx, unstructuredOf(m), metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
	if mayExist && isAlreadyExists(err) {
		return nil
	}
	return err
}
