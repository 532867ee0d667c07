// Package nodeipam gives each Node its part of the pod network, once and for good,
// in Node.spec.podCIDR.
package nodeipam

import (
	"context"
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

	cluster netip.Prefix
	bits    int
	// given are allocations that the cache may not show yet.
	given map[netip.Prefix]string
}

// New returns a controller that splits cluster into subnets of the given prefix
// length, such as 24.
func New(client kubernetes.Interface, f informers.SharedInformerFactory, cluster netip.Prefix, bits int) *Controller {
	nodes := f.Core().V1().Nodes()
	c := &Controller{
		client: client, nodes: nodes.Lister(), synced: nodes.Informer().HasSynced,
		cluster: cluster.Masked(), bits: bits, given: map[netip.Prefix]string{},
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
		if p, err := netip.ParsePrefix(n.Spec.PodCIDR); err == nil {
			taken[p.Masked()] = true
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
	free, err := NextFree(c.cluster, c.bits, taken)
	if err != nil {
		return fmt.Errorf("node %s: %w", name, err)
	}
	patch := fmt.Appendf(nil, `{"metadata":{"uid":%q},"spec":{"podCIDR":%q,"podCIDRs":[%q]}}`, node.UID, free, free)
	if _, err := c.client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("give node %s the pod network %s: %w", name, free, err)
	}
	c.given[free] = name
	return nil
}

// NextFree returns the first subnet of cluster with the given prefix length that
// is not taken.
func NextFree(cluster netip.Prefix, bits int, taken map[netip.Prefix]bool) (netip.Prefix, error) {
	if !cluster.Addr().Is4() || bits < cluster.Bits() || bits > 30 {
		return netip.Prefix{}, fmt.Errorf("cannot split %s into /%d", cluster, bits)
	}
	a := cluster.Masked().Addr().As4()
	base := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
	for i := range uint32(1) << (bits - cluster.Bits()) {
		v := base + i<<(32-bits)
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}), bits)
		if !taken[p] {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("no free /%d is left in the pod network %s; remove nodes or choose a larger one", bits, cluster)
}
