package main

import (
	"context"
	"net/netip"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"gitk8s.dev/gitk8s/controlplane/controllers/serviceloadbalancer"
	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/expose"
	"gitk8s.dev/gitk8s/runtime/network/follow"
)

// noServices in place of an address opens no ports for services.
const noServices = "none"

// workerPort is that of a worker's HTTPS server.
const workerPort = 10250

func serviceFlags(f *pflag.FlagSet) {
	f.String("service-address", "127.0.0.1", "address of this machine at which node ports and load balancers are reached, or none")
}

// exposeServices opens node ports and the ports of load balancers on the machine:
// nodes are in networks of their own, which nobody else reaches.
func (c *controlPlane) exposeServices(ctx context.Context) error {
	if c.cfg.ServiceAddress == noServices {
		return nil
	}
	address, err := netip.ParseAddr(c.cfg.ServiceAddress)
	if err != nil {
		return err
	}
	ports := expose.New(address, c.nodes.Dial, c.events(ctx, c.watcher, "gitk8s"))
	err = follow.Machine(ctx, c.watched, func(services []*corev1.Service, slices []*discoveryv1.EndpointSlice, nodes []*corev1.Node) error {
		return ports.Apply(ctx, expose.Decide(services, slices, nodes))
	})
	if err != nil {
		return err
	}
	c.watched.StartWithContext(ctx) // what follow.Machine has added
	c.run("ports of services", func() error {
		<-ctx.Done()
		ports.Close()
		return nil
	})
	return nil
}

// poolOfUp checks that the addresses of load balancers are on the nodes' link, and not
// those of nodes: nothing leads anywhere else.
func poolOfUp(cfg Config, ranges network.Ranges) error {
	pool, err := serviceloadbalancer.ParsePool(cfg.LoadBalancerPool)
	if err != nil {
		return usageError("--load-balancer-pool: %w", err)
	}
	for _, r := range pool {
		first, last := ranges.SpareNodes(maxWorkers, r.First.Is6())
		if !first.IsValid() {
			return usageError("--load-balancer-pool: the nodes' network %s has no addresses of the family of %s", joinRanges(ranges.Nodes), r.First)
		}
		if r.First.Less(first) || last.Less(r.Last) {
			return usageError("--load-balancer-pool: with `up` it is a part of %s to %s", first, last)
		}
	}
	return nil
}

// balancers configures the built-in load balancers. The ports that servers and
// workers listen on are not given away on the nodes' addresses.
func (c *controlPlane) balancers() serviceloadbalancer.Config {
	cfg := serviceloadbalancer.Config{Reserved: []int32{workerPort}}
	if c.nodes == nil { // the server may be on a machine that is a node, too
		for _, port := range []int{c.cfg.APIPort, c.cfg.GitPort, c.cfg.RegistryPort, c.cfg.MetricsPort} {
			cfg.Reserved = append(cfg.Reserved, int32(port))
		}
	}
	cfg.Pool, _ = serviceloadbalancer.ParsePool(c.cfg.LoadBalancerPool) // checked with the rest of the configuration
	return cfg
}
