package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// EnsureDNSAddress gives a node the address at which it answers names.
func EnsureDNSAddress(ns string) error {
	h, lo, err := loopback(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	return addHostAddress(h, lo, DNSIP, "")
}

// addHostAddress gives the loopback interface an address that is for the host alone: no
// packet of the node's gets it as its source by itself.
func addHostAddress(h *netlink.Handle, lo netlink.Link, ip netip.Addr, label string) error {
	if err := h.AddrReplace(lo, &netlink.Addr{IPNet: ipNet(host(ip)), Label: label, Scope: int(netlink.SCOPE_HOST)}); err != nil {
		return fmt.Errorf("add address %s: %w", ip, err)
	}
	return nil
}

// loopback opens a namespace for changes of its loopback interface.
func loopback(ns string) (*netlink.Handle, netlink.Link, error) {
	h, err := handle(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, nil, err
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		h.Close()
		return nil, nil, fmt.Errorf("find lo: %w", err)
	}
	return h, lo, nil
}

// LeaveMesh removes what a Mesh has made in a namespace; empty for the caller's own.
func LeaveMesh(ns string) error {
	_, err := NewMesh(MeshConfig{NetNS: ns}).Sync(nil)
	return err
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// Leave removes from a namespace what a node adds to it besides its pods: the
// services, load balancers' addresses, and the ways to them and to the other nodes' pods.
func Leave(ns string) error {
	proxy, err := NewProxy(ns)
	if err != nil {
		return err
	}
	defer proxy.Close()
	if CheckNFTables(ns) == nil {
		err = proxy.Remove()
	}
	if err := errors.Join(err, LeaveMesh(ns), SyncAddresses(ns, netip.Addr{}, nil)); err != nil {
		return err
	}
	h, lo, err := loopback(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.AddrDel(lo, &netlink.Addr{IPNet: ipNet(host(DNSIP))}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("delete address %s: %w", DNSIP, err)
	}
	routes, err := h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: ipNet(ServiceCIDR)}, netlink.RT_FILTER_DST)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if err := h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("delete route to %s: %w", r.Dst, err)
		}
	}
	return nil
}
