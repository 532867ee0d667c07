package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"gitk8s.dev/gitk8s/controlplane/pki"
	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/follow"
)

// nodes are the workers of `up` with the network that joins them: what the server needs
// of them. Root's are this process's own; those of an ordinary user are in namespaces in
// which another process works for this one (heldNodes).
type nodes interface {
	// Mesh keeps the ways from the hub to pods.
	follow.Mesh
	// Make makes the hub, unless it is there from before a crash.
	Make() error
	// Leave undoes Make after a start that failed: what runs from before a crash runs on.
	Leave() error
	// Listen opens a TCP port in the hub.
	Listen(addr string) (net.Listener, error)
	// Dial makes a connection, to a numeric address, that begins in the hub.
	Dial(ctx context.Context, network, addr string) (net.Conn, error)
	// Start starts the workers, and from then on starts each again that ends by itself.
	Start() error
	// Stop ends the workloads through the API, and then the workers.
	Stop() error
	// Remove takes away what is left of the nodes on the machine.
	Remove() error
}

// ownNodes are those of a process that has the rights for them.
type ownNodes struct {
	*network.Mesh
	e      *env
	cfg    Config
	ranges network.Ranges
	id     string // of the network topology
	// ctx ends what works for the nodes in this process.
	ctx    context.Context
	fresh  bool // there was no hub before
	ca     *pki.CA
	wayOut bool // the hub leads outside of the cluster
	crew   crew
}

func newOwnNodes(ctx context.Context, e *env, cfg Config, ranges network.Ranges) *ownNodes {
	id := topologyID(cfg.DataDir)
	return &ownNodes{e: e, cfg: cfg, ranges: ranges, id: id, ctx: ctx, fresh: !network.HasHub(id), Mesh: network.NewMesh(network.MeshConfig{
		// All nodes are at the hub's bridge.
		NetNS: network.HubNetNS(id), NodeIPs: ranges.Hub(), Tunnel: network.TunnelNever,
		Server: true, Pods: ranges.Pods, Services: ranges.Services,
	})}
}

// canRunWorkers says what this machine lacks for that, and with what it runs them less well.
func (e *env) canRunWorkers(dataDir string) error {
	machine := lookAround(dataDir)
	if missing := missing(machine); len(missing) > 0 {
		for _, m := range missing {
			e.say("missing: %s", m)
		}
		return errors.New("this machine cannot run workers; `gitk8s check` tells more")
	}
	for _, l := range limits(machine) {
		e.say("%s", l)
	}
	return nil
}

// Make implements nodes.
func (n *ownNodes) Make() error {
	return network.EnsureHub(n.id, n.ranges)
}

// Leave implements nodes.
func (n *ownNodes) Leave() error {
	if !n.fresh {
		return nil
	}
	return network.DeleteTopology(n.id)
}

// Listen implements nodes.
func (n *ownNodes) Listen(addr string) (net.Listener, error) {
	return network.ListenIn(network.HubNetNS(n.id), "tcp", addr)
}

// Dial implements nodes.
func (n *ownNodes) Dial(ctx context.Context, netw, addr string) (net.Conn, error) {
	return network.DialIn(network.HubNetNS(n.id))(ctx, netw, addr)
}

// Start implements nodes.
func (n *ownNodes) Start() (err error) {
	if n.ca, err = pki.OpenCA(filepath.Join(n.cfg.DataDir, "pki")); err != nil {
		return err
	}
	egress, err := network.ServeEgress(n.egressSocket())
	if err != nil {
		return err
	}
	context.AfterFunc(n.ctx, func() { _ = egress.Close() })
	n.openWayOut()
	for i := 1; i <= n.cfg.Workers; i++ {
		m, err := n.startWorker(i)
		if err != nil {
			return fmt.Errorf("worker %d: %w", i, err)
		}
		n.crew = append(n.crew, m)
		go n.keepRunning(i, m)
	}
	return nil
}

// Stop implements nodes.
func (n *ownNodes) Stop() error { return n.crew.stop() }

// Remove implements nodes.
func (n *ownNodes) Remove() error {
	return errors.Join(network.DeleteTopology(n.id), cleanNodes(n.cfg.DataDir))
}
