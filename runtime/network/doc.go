// Package network makes the cluster's network on one machine: the namespaces of the
// nodes and the bridge between them (Topology), the pods' links and addresses
// (PodNetwork), the ways between nodes (Mesh), and the services' addresses
// (Proxy).
//
// Everything lives in network namespaces of its own; the machine's namespace is not
// touched. What is made is found again by name, so that every call may be repeated
// and a process that was killed leaves nothing that can't be removed.
package network

import "net/netip"

// The addresses of docs/contracts.md.
var (
	// NodeCIDR is the network of the hub and the nodes.
	NodeCIDR = netip.MustParsePrefix("10.41.0.0/24")
	// HubIP is the server's address in it.
	HubIP = netip.MustParseAddr("10.41.0.1")
	// PodCIDR holds all pods of the cluster.
	PodCIDR = netip.MustParsePrefix("10.42.0.0/16")
	// ServiceCIDR holds all addresses of services.
	ServiceCIDR = netip.MustParsePrefix("10.43.0.0/16")
	// DNSIP is the service address at which every node answers names itself.
	DNSIP = netip.MustParseAddr("10.43.0.10")
)

// firstNode is the last byte of the address of worker 0.
const firstNode = 10

// NodeIP returns the address of worker n, counted from 1.
func NodeIP(n int) netip.Addr {
	a := HubIP.As4()
	a[3] = byte(firstNode + n)
	return netip.AddrFrom4(a)
}
