package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"

	v1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/runtime/network"
)

// CNINetwork is a network that plugins make. It is ready when there is a configuration
// for them: give Assign to Config.PodCIDRAssigned.
type CNINetwork struct {
	cni  *network.CNI
	once sync.Once
}

var _ PodNetwork = (*CNINetwork)(nil)

// NewCNINetwork opens the records and prepares the node.
func NewCNINetwork(cfg network.CNIConfig) (*CNINetwork, error) {
	cni, err := network.OpenCNI(cfg)
	if err != nil {
		return nil, err
	}
	return &CNINetwork{cni: cni}, nil
}

// Assign says whether pods can be connected. The node's podCIDRs are not used: the
// plugins have addresses of their own.
func (n *CNINetwork) Assign(ctx context.Context, _ []netip.Prefix) error {
	if err := n.cni.Ready(ctx); err != nil {
		return err
	}
	n.once.Do(func() {
		if err := n.cni.Collect(ctx); err != nil {
			slog.Warn("CNI", "error", err)
		}
		go func() {
			if err := n.cni.Check(ctx); err != nil && ctx.Err() == nil {
				slog.Warn("CNI", "error", err)
			}
		}()
	})
	return nil
}

// Setup implements PodNetwork. Users of a pod's own follow from an address that is not
// known before the plugins have been in its namespace.
func (n *CNINetwork) Setup(ctx context.Context, podUID, namespace, name string, ownUsers bool) (string, []netip.Addr, error) {
	if ownUsers {
		return "", nil, errors.New("pods with hostUsers: false are not for nodes whose network is made by CNI plugins")
	}
	ns, ip, err := n.cni.Setup(ctx, podUID, namespace, name)
	if err != nil {
		return "", nil, err
	}
	return ns, []netip.Addr{ip}, nil
}

// Teardown implements PodNetwork.
func (n *CNINetwork) Teardown(ctx context.Context, podUID string) error {
	return n.cni.Teardown(ctx, podUID)
}

// MapPorts implements portMapper.
func (n *CNINetwork) MapPorts(podUID string, ports []network.PortMapping) {
	n.cni.MapPorts(podUID, ports)
}

// portMapper is a PodNetwork that opens host ports itself. It is told before Setup.
type portMapper interface {
	MapPorts(podUID string, ports []network.PortMapping)
}

// portMappings are the host ports of a pod's containers and sidecars.
func portMappings(pod *v1.Pod) []network.PortMapping {
	var out []network.PortMapping
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range list {
			for _, p := range c.Ports {
				if p.HostPort <= 0 {
					continue
				}
				proto := "tcp"
				switch p.Protocol {
				case v1.ProtocolUDP:
					proto = "udp"
				case v1.ProtocolSCTP:
					proto = "sctp"
				}
				out = append(out, network.PortMapping{HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: proto, HostIP: p.HostIP})
			}
		}
	}
	return out
}
