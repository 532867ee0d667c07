package network

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol marks the routes that SyncRoutes owns (see /etc/iproute2/rt_protos;
// the number is free there).
const routeProtocol = 203

// servicesProtocol marks the route to the services' IPv6 addresses.
const servicesProtocol = 204

// Peer is a node whose pods are reached by way of its address.
type Peer struct {
	PodCIDR netip.Prefix
	NodeIP  netip.Addr
}

// SyncRoutes makes the routes to the peers' pods in a namespace what peers says,
// and no other. A peer with an address of the namespace itself is left out.
func SyncRoutes(ns string, peers []Peer) error {
	h, err := handle(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	var errs []error
	for _, f := range []int{familyIPv4, familyIPv6} {
		// Who has no peers at all is to have no routes of either.
		if len(peers) == 0 || slices.ContainsFunc(peers, func(p Peer) bool { return family(p.NodeIP) == f }) {
			errs = append(errs, syncRoutes(h, f, peers))
		}
	}
	return errors.Join(errs...)
}

func syncRoutes(h *netlink.Handle, f int, peers []Peer) error {
	own, err := h.AddrList(nil, f)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	isOwn := map[netip.Addr]bool{}
	for _, a := range own {
		isOwn[addrOf(a.IP)] = true
	}
	want := map[string]netip.Addr{}
	for _, p := range peers {
		if family(p.NodeIP) == f && !isOwn[p.NodeIP] {
			want[p.PodCIDR.Masked().String()] = p.NodeIP
		}
	}
	have, err := h.RouteListFiltered(f, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range have {
		if r.Dst == nil {
			continue
		}
		if via := addrOf(r.Gw); want[r.Dst.String()] == via && via.IsValid() {
			delete(want, r.Dst.String())
			continue
		}
		if err := h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("delete route to %s: %w", r.Dst, err)
		}
	}
	for dst, via := range want {
		r := &netlink.Route{Dst: ipNet(netip.MustParsePrefix(dst)), Gw: net.IP(via.AsSlice()), Protocol: routeProtocol}
		if err := h.RouteReplace(r); err != nil {
			return fmt.Errorf("add route to %s by way of %s: %w", dst, via, err)
		}
	}
	return nil
}

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

// Leave removes from a namespace what a node adds to it besides its pods: the
// services, load balancers' addresses, and the routes to them and to the other nodes' pods.
func Leave(ns string, ranges Ranges) error {
	proxy, err := NewProxy(ns, ranges.Services)
	if err != nil {
		return err
	}
	defer proxy.Close()
	if err := errors.Join(proxy.Remove(), SyncRoutes(ns, nil), SyncAddresses(ns, netip.Addr{}, nil)); err != nil {
		return err
	}
	if ranges.HasIPv6() {
		if err := removeGuard(ns); err != nil {
			return err
		}
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
