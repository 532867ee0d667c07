package network

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// servicesProtocol marks the route to the services' IPv6 addresses.
const servicesProtocol = 204

// addrOf is an address as the netlink library has it; invalid for none.
func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// EnsureDNSAddress gives a node the addresses at which it answers names.
func EnsureDNSAddress(ns string, ranges Ranges) error {
	h, lo, err := loopback(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	for _, ip := range ranges.DNS() {
		if err := addHostAddress(h, lo, ip, ""); err != nil {
			return err
		}
	}
	return nil
}

// addHostAddress gives the loopback interface an address that is for the host alone: no
// packet of the node's gets it as its source by itself.
func addHostAddress(h *netlink.Handle, lo netlink.Link, ip netip.Addr, label string) error {
	a := &netlink.Addr{IPNet: ipNet(host(ip)), Label: label, Scope: int(netlink.SCOPE_HOST)}
	if ip.Is6() {
		// IPv6 has neither labels nor such a scope; what is deprecated is nobody's choice.
		a.Label, a.Scope, a.Flags, a.ValidLft = "", 0, unix.IFA_F_NODAD, math.MaxUint32
	}
	if err := h.AddrReplace(lo, a); err != nil {
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

// LeaveMesh removes what a Mesh has made in a namespace; empty for the caller's own. pods
// are the cluster's ranges.
func LeaveMesh(ns string, pods []netip.Prefix) error {
	_, err := NewMesh(MeshConfig{NetNS: ns, Pods: pods}).Sync(nil)
	return err
}

// Leave removes from a namespace what a node adds to it besides its pods: the
// services, load balancers' addresses, and the ways to them and to the other nodes' pods.
func Leave(ns string, ranges Ranges) error {
	proxy, err := NewProxy(ns, ranges.Services)
	if err != nil {
		return err
	}
	defer proxy.Close()
	if CheckNFTables(ns) == nil {
		if err = proxy.Remove(); ranges.HasIPv6() {
			err = errors.Join(err, removeSourcesGuard(ns))
		}
	}
	if err := errors.Join(err, LeaveMesh(ns, ranges.Pods), SyncAddresses(ns, nil, nil)); err != nil {
		return err
	}
	h, lo, err := loopback(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	for _, ip := range ranges.DNS() {
		if err := h.AddrDel(lo, &netlink.Addr{IPNet: ipNet(host(ip))}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("delete address %s: %w", ip, err)
		}
	}
	for _, p := range ranges.Services {
		routes, err := h.RouteListFiltered(family(p.Addr()), &netlink.Route{Dst: ipNet(p)}, netlink.RT_FILTER_DST)
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if err := h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("delete route to %s: %w", r.Dst, err)
			}
		}
	}
	return nil
}
