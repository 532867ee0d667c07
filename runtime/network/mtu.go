package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// SetMTU gives the pods' links an MTU, those that there are and those to come. Their
// ends in the pods change first: what a pod sends must fit the node's end.
func (n *PodNetwork) SetMTU(mtu int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mtu == mtu && n.limited {
		return nil
	}
	n.mtu = mtu
	var errs []error
	for _, p := range n.pods {
		link, err := n.h.LinkByName(linkName(p.UID))
		if isMissingLink(err) || err == nil && link.Attrs().MTU == mtu {
			continue
		}
		if err == nil {
			err = n.limit(p, link)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("set the MTU of pod %s: %w", p.Name, err))
		}
	}
	n.limited = len(errs) == 0
	return errors.Join(errs...)
}

// limit gives both ends of a pod's link the MTU; link is the node's end.
func (n *PodNetwork) limit(p Pod, link netlink.Link) error {
	if n.mtu == 0 || n.mtu == link.Attrs().MTU {
		return nil
	}
	h, err := handle(p.NetNS, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	inside, err := h.LinkByName(podLink)
	if err != nil {
		return fmt.Errorf("find %s: %w", podLink, err)
	}
	if err := h.LinkSetMTU(inside, n.mtu); err != nil {
		return fmt.Errorf("set the MTU of %s to %d: %w", podLink, n.mtu, err)
	}
	if err := n.h.LinkSetMTU(link, n.mtu); err != nil {
		return fmt.Errorf("set the MTU of %s to %d: %w", link.Attrs().Name, n.mtu, err)
	}
	return nil
}

// Repair makes those of the node's routes to its pods and to the services anew that are
// not as they were made. They say with which of the node's addresses it speaks to them,
// and the kernel takes them away when the node loses that address; after a restart it
// may have another one.
func (n *PodNetwork) Repair() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	good := map[string]bool{}
	for _, p := range n.cfg.PodCIDRs {
		have, err := n.h.RouteList(nil, family(p.Addr()))
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, r := range have {
			if r.Dst != nil && r.Src.Equal(Same(p.Addr(), n.cfg.NodeIPs).AsSlice()) {
				good[fmt.Sprint(r.Dst, r.LinkIndex)] = true
			}
		}
	}
	errs := []error{routeServices(n.h, n.cfg.Services, n.cfg.NodeIPs)}
	for _, p := range n.pods {
		link, err := n.h.LinkByName(linkName(p.UID))
		if err != nil || link.Attrs().Flags&net.FlagUp == 0 {
			continue // not connected, or not any more
		}
		for _, ip := range p.IPs {
			if !good[fmt.Sprint(ipNet(host(ip)), link.Attrs().Index)] {
				errs = append(errs, n.routeTo(ip, link))
			}
		}
	}
	return errors.Join(errs...)
}

// routeTo leads to an address of a pod by the node's end of its link.
func (n *PodNetwork) routeTo(ip netip.Addr, link netlink.Link) error {
	from := Same(ip, n.cfg.NodeIPs)
	r := &netlink.Route{Dst: ipNet(host(ip)), LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Src: net.IP(from.AsSlice())}
	if err := n.h.RouteReplace(r); err != nil {
		return fmt.Errorf("add route to %s: %w", ip, err)
	}
	return nil
}
