package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hop is how a machine's own routes lead to an address.
type hop struct {
	// link is the index of the link that packets leave by; 0: there is no way.
	link int
	// onLink: the address is on that link, and no router between.
	onLink bool
	mtu    int
}

func hopTo(h *netlink.Handle, to netip.Addr) hop {
	found, err := h.RouteGetWithOptions(net.IP(to.AsSlice()), &netlink.RouteGetOptions{FIBMatch: true})
	if err != nil || len(found) == 0 {
		return hop{}
	}
	r := found[0]
	out := hop{link: r.LinkIndex, onLink: r.Gw == nil && r.Via == nil, mtu: r.MTU}
	if len(r.MultiPath) > 0 {
		out.link, out.onLink = r.MultiPath[0].LinkIndex, r.MultiPath[0].Gw == nil && r.MultiPath[0].Via == nil
	}
	link, err := h.LinkByIndex(out.link)
	if err != nil || r.Type != unix.RTN_UNICAST || isMeshLink(link.Attrs().Name) {
		return hop{}
	}
	if out.mtu == 0 {
		out.mtu = link.Attrs().MTU
	}
	return out
}

func isMeshLink(name string) bool {
	return name == vxlanLink || name == vxlanLink6 || name == wireGuardLink
}

// defaultMTU is Ethernet's.
const defaultMTU = 1500

// ownAddresses are those of the machine, with the MTUs of the links that have those of
// nodeIPs. The tunnels' links borrow these, and may still have earlier ones.
func ownAddresses(h *netlink.Handle, nodeIPs []netip.Addr) (own map[netip.Addr]bool, mtus map[netip.Addr]int, err error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, nil, fmt.Errorf("list links: %w", err)
	}
	byIndex := map[int]*netlink.LinkAttrs{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l.Attrs()
	}
	list, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, nil, fmt.Errorf("list addresses: %w", err)
	}
	own, mtus = map[netip.Addr]bool{}, map[netip.Addr]int{}
	for _, ip := range nodeIPs {
		own[ip] = true
	}
	for _, a := range list {
		ip := addrOf(a.IP)
		link := byIndex[a.LinkIndex]
		if !ip.IsValid() || link == nil || isMeshLink(link.Name) {
			continue
		}
		if slices.Contains(nodeIPs, ip) && link.Flags&net.FlagLoopback == 0 {
			mtus[ip] = link.MTU
		}
		own[ip] = true
	}
	return own, mtus, nil
}

// syncPeerRoutes makes the routes of ours, of one family, what it says. A route whose
// tunnel there is not, is an unreachable one: its packets must not leave by another way.
func syncPeerRoutes(h *netlink.Handle, f *familyPlan, index map[way]int) error {
	have, err := h.RouteListFiltered(family(f.any), &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	routes := map[routeKey]*netlink.Route{}
	for key, to := range f.routes {
		routes[key] = kernelRoute(key, to, index, f.nodeIP)
	}
	var errs []error
	done := map[routeKey]bool{}
	for _, r := range have {
		if r.Dst == nil || addrOf(r.Dst.IP).Is6() != f.any.Is6() {
			continue
		}
		bits, _ := r.Dst.Mask.Size()
		key := routeKey{r.Table, netip.PrefixFrom(addrOf(r.Dst.IP), bits)}
		if w := routes[key]; w != nil {
			done[key] = done[key] || sameRoute(w, &r)
			continue // else it is replaced below
		}
		if err := h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("delete route to %s: %w", r.Dst, err))
		}
	}
	for key, r := range routes {
		if done[key] {
			continue
		}
		if err := h.RouteReplace(r); err != nil {
			errs = append(errs, fmt.Errorf("add route to %s by way of %s: %w", key.to, f.routes[key].via, err))
		}
	}
	return errors.Join(errs...)
}

func kernelRoute(key routeKey, to routeTo, index map[way]int, nodeIP netip.Addr) *netlink.Route {
	r := &netlink.Route{Dst: ipNet(key.to), Table: key.table, Protocol: routeProtocol, Type: unix.RTN_UNICAST}
	link := index[to.way]
	switch {
	case to.way == direct:
		r.Gw, r.LinkIndex = net.IP(to.via.AsSlice()), to.link
	case link == 0:
		r.Type = unix.RTN_UNREACHABLE
	case to.way == tunnelled && to.via.Is6():
		// Of IPv6 a gateway must not be on another link by the routes that there are.
		r.Gw = net.IP(linkLocal(vxlanMAC(to.via)).AsSlice())
		fallthrough
	case to.way == tunnelled:
		if r.Gw == nil {
			r.Gw, r.Flags = net.IP(to.via.AsSlice()), int(netlink.FLAG_ONLINK)
		}
		fallthrough
	default:
		r.LinkIndex, r.Src, r.MTU = link, net.IP(nodeIP.AsSlice()), to.mtu
		if r.Gw == nil {
			r.Scope = netlink.SCOPE_LINK
		}
	}
	return r
}

func sameRoute(want, have *netlink.Route) bool {
	if want.Type != unix.RTN_UNICAST {
		return want.Type == have.Type // of IPv6 such a route has a link nevertheless
	}
	return want.Type == have.Type && want.Gw.Equal(have.Gw) && want.LinkIndex == have.LinkIndex && want.Src.Equal(have.Src) && want.MTU == have.MTU
}

// syncPeerRule makes this node's pods look for other machines' addresses in the table
// of our own, if there is anything in it.
func syncPeerRule(h *netlink.Handle, f *familyPlan) error {
	needed := false
	for key := range f.routes {
		needed = needed || key.table == peersTable && f.pods.IsValid()
	}
	have, err := h.RuleList(family(f.any))
	if err != nil {
		return fmt.Errorf("list routing rules: %w", err)
	}
	for _, r := range have {
		if r.Protocol != routeProtocol || r.Family != family(f.any) {
			continue
		}
		if needed && r.Table == peersTable && r.Priority == peersPriority && r.Src != nil && r.Src.String() == f.pods.String() {
			needed = false
			continue
		}
		if err := h.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("delete routing rule %s: %w", r, err)
		}
	}
	if !needed {
		return nil
	}
	r := netlink.NewRule()
	r.Family, r.Src, r.Table, r.Priority, r.Protocol = family(f.any), ipNet(f.pods), peersTable, peersPriority, routeProtocol
	if err := h.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add routing rule for %s: %w", f.pods, err)
	}
	return nil
}
