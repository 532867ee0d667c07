package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"

	"gitk8s.dev/gitk8s/runtime/network"
)

// NodeNetwork is the PodNetwork of package network in the caller's own network
// namespace. It opens when the node gets its podCIDR: give Assign to
// Config.PodCIDRAssigned.
type NodeNetwork struct {
	dir      string
	nodeIPs  []netip.Addr
	services []netip.Prefix

	mu   sync.Mutex
	pods *network.PodNetwork
	mtu  int
}

var _ PodNetwork = (*NodeNetwork)(nil)

// NewNodeNetwork returns a network that keeps its records in dir. services are the
// ranges of the services' addresses.
func NewNodeNetwork(dir string, nodeIPs []netip.Addr, services []netip.Prefix) *NodeNetwork {
	return &NodeNetwork{dir: dir, nodeIPs: nodeIPs, services: services}
}

// Assign opens the network with the podCIDRs, which must be of the families of the
// services' ranges.
func (n *NodeNetwork) Assign(_ context.Context, cidrs []netip.Prefix) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pods != nil {
		return nil
	}
	if len(cidrs) != len(n.services) {
		return fmt.Errorf("pod network: the node has the podCIDRs %v, but the services the ranges %v; they must be of the same families: has this node been started with the server's --cluster-cidr and --service-cidr?", cidrs, n.services)
	}
	pods, err := network.NewPodNetwork(network.PodConfig{Dir: n.dir, PodCIDRs: cidrs, Services: n.services, NodeIPs: n.nodeIPs})
	if err != nil {
		return err
	}
	n.pods = pods
	if n.mtu == 0 {
		return nil
	}
	return pods.SetMTU(n.mtu)
}

func (n *NodeNetwork) open() *network.PodNetwork {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pods
}

// Setup implements PodNetwork.
func (n *NodeNetwork) Setup(ctx context.Context, podUID, namespace, name string, ownUsers bool) (string, []netip.Addr, error) {
	pods := n.open()
	if pods == nil {
		return "", nil, errors.New("the node has no podCIDR yet")
	}
	return pods.Setup(ctx, podUID, namespace+"/"+name, ownUsers)
}

// Teardown implements PodNetwork.
func (n *NodeNetwork) Teardown(_ context.Context, podUID string) error {
	if pods := n.open(); pods != nil {
		return pods.Teardown(podUID)
	}
	// Not open yet: what an earlier process made has to wait, but most pods that are
	// removed now never had a network.
	left, err := filepath.Glob(filepath.Join(n.dir, podUID+".*"))
	if err == nil && len(left) > 0 {
		err = errors.New("the node has no podCIDR yet")
	}
	return err
}

// SetMTU gives the pods' links an MTU, now or when the network opens.
func (n *NodeNetwork) SetMTU(mtu int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mtu = mtu
	if n.pods == nil {
		return nil
	}
	return n.pods.SetMTU(mtu)
}

// Repair makes the routes to the pods anew that have gone with an address of the node.
func (n *NodeNetwork) Repair() error {
	if pods := n.open(); pods != nil {
		return pods.Repair()
	}
	return nil
}

// Close lets go of the kernel; pods stay connected.
func (n *NodeNetwork) Close() error {
	if pods := n.open(); pods != nil {
		return pods.Close()
	}
	return nil
}
