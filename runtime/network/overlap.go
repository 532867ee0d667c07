package network

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// route is one of a machine's, as far as it may be in the cluster's way.
type route struct {
	to       netip.Prefix
	link     string
	protocol int
}

// CheckOverlap refuses a network in which the cluster's addresses lead elsewhere:
// pods and services there would take what is meant for others, or not be reached.
// netNS is empty for the caller's own. The routes that an earlier worker left are the
// cluster's own; a wider route, as the default one, only has what the cluster has not.
func CheckOverlap(netNS string) error {
	h, err := handle(netNS, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	list, err := h.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	var routes []route
	for _, r := range list {
		if r.Dst == nil {
			continue
		}
		ip, _ := netip.AddrFromSlice(r.Dst.IP.To4())
		bits, _ := r.Dst.Mask.Size()
		name := ""
		if link, err := h.LinkByIndex(r.LinkIndex); err == nil {
			name = link.Attrs().Name
		}
		routes = append(routes, route{netip.PrefixFrom(ip, bits), name, int(r.Protocol)})
	}
	return overlap(routes)
}

func overlap(routes []route) error {
	for _, r := range routes {
		if r.protocol == routeProtocol || r.link == "lo" || len(r.link) >= len(PodLinks) && r.link[:len(PodLinks)] == PodLinks {
			continue
		}
		for _, c := range []struct {
			what string
			cidr netip.Prefix
		}{{"pods", PodCIDR}, {"services", ServiceCIDR}} {
			if c.cidr.Contains(r.to.Addr()) && r.to.Bits() >= c.cidr.Bits() {
				return fmt.Errorf("the machine has a route to %s by %s, and the cluster's %s have the addresses %s: remove that route or give that network other addresses", r.to, r.link, c.what, c.cidr)
			}
		}
	}
	return nil
}
