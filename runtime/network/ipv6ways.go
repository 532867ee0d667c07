package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// syncIPv6 makes the ways to the IPv6 addresses of the peers' pods: plain routes, which
// lead to nodes on the same link alone. Where there are no such peers, but others, routes
// of this family are not looked at.
func syncIPv6(h *netlink.Handle, peers []Peer, others bool) error {
	if len(peers) == 0 && others {
		return nil
	}
	want := map[string]netip.Addr{}
	for _, p := range peers {
		if p.isNode() {
			want[p.PodCIDR.Masked().String()] = p.NodeIP
		}
	}
	have, err := h.RouteListFiltered(familyIPv6, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
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
	var errs []error
	for dst, via := range want {
		r := &netlink.Route{Dst: ipNet(netip.MustParsePrefix(dst)), Gw: net.IP(via.AsSlice()), Protocol: routeProtocol}
		if err := h.RouteReplace(r); err != nil {
			errs = append(errs, fmt.Errorf("add route to %s by way of %s, which must be on a link of this machine since there are no tunnels for IPv6: %w", dst, via, err))
		}
	}
	return errors.Join(errs...)
}
