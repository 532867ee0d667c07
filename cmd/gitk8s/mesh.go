package main

import (
	"context"
	"net/netip"

	"github.com/spf13/pflag"

	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/follow"
)

func tunnelFlag(f *pflag.FlagSet) {
	f.String("tunnel", string(network.TunnelAuto), "which machines' pods are reached in VXLAN: auto for those behind a router, always, or never; the same for all workers and servers")
}

// openMesh prepares the ways to the other nodes' pods.
func (w *worker) openMesh(e *env) error {
	tunnel, err := network.ParseTunnel(e.v.GetString("tunnel"))
	if err != nil {
		return usageError("--tunnel: %w", err)
	}
	w.mesh = network.NewMesh(network.MeshConfig{NodeIP: w.ip, Tunnel: tunnel})
	return nil
}

// followRoutes keeps the ways to the pods of all nodes: the API server's proxy
// dials pods, in the hub's network namespace or else in its own.
func (c *controlPlane) followRoutes(ctx context.Context) error {
	mesh := network.MeshConfig{Tunnel: c.cfg.Tunnel, Server: true}
	if c.hub != "" {
		// All nodes are at the hub's bridge.
		mesh.NetNS, mesh.NodeIP, mesh.Tunnel = network.HubNetNS(c.hub), network.HubIP, network.TunnelNever
	} else if ip, err := netip.ParseAddr(c.cfg.advertised()); err == nil && !ip.IsLoopback() {
		mesh.NodeIP = ip
	} else {
		mesh.Tunnel = network.TunnelNever // nobody elsewhere could answer
	}
	return follow.Routes(ctx, c.watched, network.NewMesh(mesh), mesh.NetNS)
}
