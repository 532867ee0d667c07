package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"

	"gitk8s.dev/gitk8s/runtime/agent"
	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/follow"
)

func tunnelFlag(f *pflag.FlagSet) {
	f.String("tunnel", string(network.TunnelAuto), "which machines' pods are reached in VXLAN: auto for those behind a router, always, or never; the same for all workers and servers")
}

func encryptFlag(f *pflag.FlagSet) {
	f.String("encrypt", "", "how what pods exchange with other nodes is encrypted: "+encryptWireGuard+", the same for all workers; empty is not at all")
}

// encryptWireGuard is the value of --encrypt.
const encryptWireGuard = "wireguard"

// podNetwork is what the worker needs of either network of pods.
type podNetwork interface {
	agent.PodNetwork
	Assign(ctx context.Context, cidrs []netip.Prefix) error
}

func cniFlags(f *pflag.FlagSet) {
	f.String("cni-conf-dir", "", "directory with the configuration of CNI plugins, which then make the pods' network; empty for the built-in one")
	f.StringSlice("cni-bin-dir", []string{"/opt/cni/bin", "/usr/lib/cni"}, "directories with CNI plugins")
}

// The directories of a worker with the records of the two networks.
const (
	networkDir = "network"
	cniDir     = "cni"
)

// openNetwork prepares the pods' network: the built-in one with the ways to other
// nodes, or that of plugins.
func (w *worker) openNetwork(e *env) error {
	builtIn, plugins := filepath.Join(w.dir, networkDir), filepath.Join(w.dir, cniDir)
	conf := e.v.GetString("cni-conf-dir")
	for _, of := range []struct {
		dir  string
		used bool
	}{{builtIn, conf == ""}, {plugins, conf != ""}} {
		if !of.used && network.HasRecords(of.dir) {
			return fmt.Errorf("pods of this node have their network from before --cni-conf-dir was changed (%s): change it back, drain the node, and then change it", of.dir)
		}
	}
	if conf == "" {
		if err := network.CheckOverlap("", w.ranges); err != nil {
			return err
		}
		pods := agent.NewNodeNetwork(builtIn, w.ips, w.ranges.Services)
		w.pods, w.links = pods, pods
		return w.openMesh(e)
	}
	if e.v.GetString("encrypt") != "" {
		return usageError("--encrypt is for the built-in network; with --cni-conf-dir encryption is the plugins' business")
	}
	if w.ranges.HasIPv6() {
		return usageError("--cni-conf-dir is for clusters of IPv4 alone")
	}
	if err := network.LeaveMesh("", w.ranges.Pods); err != nil {
		return err
	}
	var err error
	w.pods, err = agent.NewCNINetwork(network.CNIConfig{Dir: plugins, Services: w.ranges.Services, NodeIPs: w.ips, ConfDir: conf, BinDirs: e.v.GetStringSlice("cni-bin-dir")})
	return err
}

// openMesh prepares the ways to the other nodes' pods, with the key in the worker's
// directory if they are to be encrypted.
func (w *worker) openMesh(e *env) error {
	tunnel, err := network.ParseTunnel(e.v.GetString("tunnel"))
	if err != nil {
		return usageError("--tunnel: %w", err)
	}
	cfg := network.MeshConfig{Node: w.name, NodeIPs: w.ips, Tunnel: tunnel, Pods: w.ranges.Pods, Services: w.ranges.Services, Masquerade: e.v.GetBool("masquerade")}
	switch how := e.v.GetString("encrypt"); how {
	case "":
	case encryptWireGuard:
		if err := network.CheckWireGuard(""); err != nil {
			return fmt.Errorf("--encrypt %s: %w", how, err)
		}
		if cfg.Key, err = network.EnsureWireGuardKey(w.dir); err != nil {
			return err
		}
	default:
		return usageError("--encrypt: %q is not %s", how, encryptWireGuard)
	}
	if !cfg.Key.IsZero() {
		w.publicKey = cfg.Key.Public().String()
	}
	w.mesh = network.NewMesh(cfg)
	return w.mesh.Seal()
}

// meshFile of a data directory says that its server has added ways to pods to the
// machine's own network.
const meshFile = "peers"

// leaveServer removes what a server has added to the machine's own network. A worker of
// another data directory makes anew what it needs.
func leaveServer(dataDir string) error {
	file := filepath.Join(dataDir, meshFile)
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := network.LeaveMesh("", nil); err != nil {
		return err
	}
	return os.Remove(file)
}

// followRoutes keeps the ways to the pods of all nodes: the API server's proxy
// dials pods, in the hub's network namespace or else in its own.
func (c *controlPlane) followRoutes(ctx context.Context) error {
	if c.nodes != nil {
		return follow.Routes(ctx, c.watched, c.nodes)
	}
	mesh := network.MeshConfig{Tunnel: c.cfg.Tunnel, Server: true, Pods: c.ranges.Pods, Services: c.ranges.Services}
	if ip, err := netip.ParseAddr(c.cfg.advertised()); err == nil && !ip.IsLoopback() {
		mesh.NodeIPs = []netip.Addr{ip}
	} else {
		mesh.Tunnel = network.TunnelNever // nobody elsewhere could answer
	}
	// `down` takes away what is added to the machine's own network.
	if err := os.WriteFile(filepath.Join(c.cfg.DataDir, meshFile), nil, 0o600); err != nil {
		return err
	}
	return follow.Routes(ctx, c.watched, network.NewMesh(mesh))
}
