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
func CheckOverlap(netNS string, ranges Ranges) error {
	h, err := handle(netNS, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	var list []netlink.Route
	for _, p := range ranges.Pods {
		some, err := h.RouteList(nil, family(p.Addr()))
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		list = append(list, some...)
	}
	var routes []route
	for _, r := range list {
		if r.Dst == nil {
			continue
		}
		ip, _ := netip.AddrFromSlice(r.Dst.IP)
		ip = ip.Unmap()
		bits, _ := r.Dst.Mask.Size()
		name := ""
		if link, err := h.LinkByIndex(r.LinkIndex); err == nil {
			name = link.Attrs().Name
		}
		routes = append(routes, route{netip.PrefixFrom(ip, bits), name, int(r.Protocol)})
	}
	return overlap(routes, ranges)
}

func overlap(routes []route, ranges Ranges) error {
	for _, r := range routes {
		if r.protocol == routeProtocol || r.protocol == servicesProtocol || r.link == "lo" || len(r.link) >= len(PodLinks) && r.link[:len(PodLinks)] == PodLinks {
			continue
		}
		for _, c := range []struct {
			what, flag string
			ranges     []netip.Prefix
		}{{"pods", "--cluster-cidr", ranges.Pods}, {"services", "--service-cidr", ranges.Services}} {
			for _, cidr := range c.ranges {
				if cidr.Contains(r.to.Addr()) && r.to.Bits() >= cidr.Bits() {
					return fmt.Errorf("the machine has a route to %s by %s, and the cluster's %s have the addresses %s: remove that route, give that network other addresses, or begin a cluster with another %s", r.to, r.link, c.what, cidr, c.flag)
				}
			}
		}
	}
	return nil
}
