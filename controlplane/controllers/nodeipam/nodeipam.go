// Package nodeipam gives each Node its part of the pod network, once and for good,
// in Node.spec.podCIDRs.
package nodeipam

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// Controller allocates pod CIDRs. It has one worker, so that two nodes can't be
// given the same.
type Controller struct {
	client kubernetes.Interface
	nodes  corelisters.NodeLister
	synced cache.InformerSynced
	loop   *controller.Loop

	cluster []netip.Prefix
	// given are allocations that the cache may not show yet.
	given map[netip.Prefix]string
}

// BitsIPv4 and BitsIPv6 are the lengths of the prefixes that nodes get, those of
// kube-controller-manager's --node-cidr-mask-size-ipv4 and -ipv6 by default.
const BitsIPv4, BitsIPv6 = 24, 64

// New returns a controller that splits each of the cluster's ranges, of which there is
// at most one of each family.
func New(client kubernetes.Interface, f informers.SharedInformerFactory, cluster []netip.Prefix) *Controller {
	nodes := f.Core().V1().Nodes()
	c := &Controller{
		client: client, nodes: nodes.Lister(), synced: nodes.Informer().HasSynced,
		cluster: cluster, given: map[netip.Prefix]string{},
	}
	c.loop = controller.NewLoop("nodeipam", 1, c.sync)
	nodes.Informer().AddEventHandler(controller.Handler(func(_, n *corev1.Node) {
		if n != nil && n.Spec.PodCIDR == "" {
			c.loop.Add(n.Name)
		}
	}))
	return c
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.synced) }

func (c *Controller) sync(ctx context.Context, name string) error {
	node, err := c.nodes.Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil || node.Spec.PodCIDR != "" {
		return err
	}
	all, err := c.nodes.List(labels.Everything())
	if err != nil {
		return err
	}
	taken := map[netip.Prefix]bool{}
	exists := map[string]bool{}
	for _, n := range all {
		exists[n.Name] = true
		for _, text := range append(n.Spec.PodCIDRs, n.Spec.PodCIDR) {
			if p, err := netip.ParsePrefix(text); err == nil {
				taken[p.Masked()] = true
			}
		}
	}
	for p, owner := range c.given {
		switch {
		case owner == name, !exists[owner]:
			delete(c.given, p)
		default:
			taken[p] = true
		}
	}
	var free []netip.Prefix
	for _, cluster := range c.cluster {
		bits := BitsIPv4
		if cluster.Addr().Is6() {
			bits = BitsIPv6
		}
		p, err := NextFree(cluster, bits, taken)
		if err != nil {
			return fmt.Errorf("node %s: %w", name, err)
		}
		free = append(free, p)
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": node.UID}, "spec": map[string]any{"podCIDR": free[0], "podCIDRs": free},
	})
	if err != nil {
		return err
	}
	if _, err := c.client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("give node %s the pod networks %v: %w", name, free, err)
	}
	for _, p := range free {
		c.given[p] = name
	}
	return nil
}

// NextFree returns the first subnet of cluster with the given prefix length that
// is not taken.
func NextFree(cluster netip.Prefix, bits int, taken map[netip.Prefix]bool) (netip.Prefix, error) {
	if bits < cluster.Bits() || bits > cluster.Addr().BitLen()-2 || bits-cluster.Bits() > 16 {
		return netip.Prefix{}, fmt.Errorf("cannot split %s into /%d", cluster, bits)
	}
	for i := range 1 << (bits - cluster.Bits()) {
		b := cluster.Masked().Addr().AsSlice()
		for bit := range bits - cluster.Bits() {
			if at := bits - 1 - bit; i>>bit&1 == 1 {
				b[at/8] |= 1 << (7 - at%8)
			}
		}
		a, _ := netip.AddrFromSlice(b)
		if p := netip.PrefixFrom(a, bits); !taken[p] {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("no free /%d is left in the pod network %s: remove nodes, or begin a cluster with a larger --cluster-cidr", bits, cluster)
}
