package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"gitk8s.dev/gitk8s/runtime/container"
	"gitk8s.dev/gitk8s/runtime/container/driver"
	"gitk8s.dev/gitk8s/runtime/network"
)

// floor measures how long n containers take to start together when nothing else has
// to happen: network, sandbox and process, straight through the packages that a
// worker uses, in network namespaces and cgroups of our own.
func (b *bench) floor(ctx context.Context, n, runs int) (took sample, err error) {
	id := fmt.Sprintf("bench%d", os.Getpid())
	dir := filepath.Join(b.dir, fmt.Sprintf("floor-%d", n))
	cgroup := "/gitk8s-" + id
	defer func() {
		err = errors.Join(err, network.DeletePods(filepath.Join(dir, "network")), network.DeleteTopology(id), removeCgroup(cgroup))
	}()
	layer := filepath.Join(dir, "layer")
	if err := os.MkdirAll(layer, 0o755); err != nil {
		return nil, err
	}
	if err := copyFile(filepath.Join(layer, "server"), b.server); err != nil {
		return nil, err
	}
	if err := network.EnsureHub(id, floorRanges); err != nil {
		return nil, err
	}
	node, err := network.EnsureNode(id, "floor", 1, floorRanges)
	if err != nil {
		return nil, err
	}
	pods, err := network.NewPodNetwork(network.PodConfig{Dir: filepath.Join(dir, "network"), NetNS: node.NetNS, PodCIDRs: floorCIDRs, Services: floorRanges.Services, NodeIPs: node.IPs})
	if err != nil {
		return nil, err
	}
	defer pods.Close()
	d, err := driver.New(driver.Config{StateDir: filepath.Join(dir, "run")})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	for i := range runs + 1 {
		one, err := startTogether(ctx, d, pods, n, func(n int) floorPod {
			return floorPod{id: fmt.Sprintf("floor-%d-%d", i, n), layer: layer, cgroup: cgroup, log: filepath.Join(dir, "logs", fmt.Sprintf("%d-%d", i, n))}
		})
		if err != nil {
			return nil, err
		}
		if i > 0 { // the first reads the files
			took = append(took, one)
		}
	}
	return took, nil
}

// floorRanges are those of a cluster that is not told others, floorCIDRs hold the
// addresses of the floor's pods, in a namespace of their own.
var (
	floorRanges = network.Ranges{
		Nodes: []netip.Prefix{netip.MustParsePrefix("10.41.0.0/24")}, Pods: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		Services: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
	}
	floorCIDRs = []netip.Prefix{netip.MustParsePrefix("10.42.1.0/24")}
)

type floorPod struct{ id, layer, cgroup, log string }

// startTogether starts count pods at once, and removes them again.
func startTogether(ctx context.Context, d *driver.Driver, n *network.PodNetwork, count int, pod func(int) floorPod) (time.Duration, error) {
	errs := make([]error, count)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range count {
		wg.Go(func() { errs[i] = pod(i).start(ctx, d, n) })
	}
	wg.Wait()
	took := time.Since(began)
	for i := range count {
		// What was made is removed also when we have been told to stop.
		errs = append(errs, d.RemoveSandbox(context.WithoutCancel(ctx), pod(i).id), n.Teardown(pod(i).id))
	}
	return took, errors.Join(errs...)
}

func (p floorPod) start(ctx context.Context, d *driver.Driver, n *network.PodNetwork) error {
	ns, _, err := n.Setup(ctx, p.id, "default/"+p.id, false)
	if err != nil {
		return err
	}
	if err := d.RunSandbox(ctx, container.SandboxConfig{ID: p.id, Namespace: "default", Name: p.id, NetNS: ns, Hostname: p.id, CgroupParent: p.cgroup}); err != nil {
		return err
	}
	return d.StartContainer(ctx, p.id, container.ContainerConfig{
		ID: "web-0", Layers: []string{p.layer}, Args: []string{"/server"}, Env: []string{"PATH=/", "VERSION=floor"}, LogPath: p.log,
	})
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// removeCgroup removes an empty cgroup from every hierarchy.
func removeCgroup(path string) error {
	roots, err := filepath.Glob("/sys/fs/cgroup/*")
	if err != nil {
		return err
	}
	var errs []error
	for _, root := range append(roots, "/sys/fs/cgroup") {
		if err := syscall.Rmdir(root + path); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			errs = append(errs, fmt.Errorf("remove cgroup %s%s: %w", root, path, err))
		}
	}
	return errors.Join(errs...)
}
