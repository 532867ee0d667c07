package network

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	vxlanLink = "gitk8s-vxlan"
	// vxlanID tells our packets from those of others at the same port.
	vxlanID = 203
	// vxlanPort is IANA's (RFC 7348).
	vxlanPort = 4789
)

// vxlanMAC is the link address of a machine's end of the tunnel. It follows from the
// machine's address, so that nobody needs to be told.
func vxlanMAC(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0xcb, b[0], b[1], b[2], b[3]} // locally administered
}

// ensureVXLAN makes the node's end of the tunnel, or finds it, and returns its index.
// It learns nothing from what comes in. It borrows the node's address: what is
// masqueraded on its way out has that address then.
func ensureVXLAN(h *netlink.Handle, ns string, nodeIP netip.Addr, mtu int) (int, error) {
	link, err := h.LinkByName(vxlanLink)
	if err != nil && !isMissingLink(err) {
		return 0, fmt.Errorf("find %s: %w", vxlanLink, err)
	}
	if err == nil && !isVXLAN(link, nodeIP) {
		if err := h.LinkDel(link); err != nil {
			return 0, fmt.Errorf("delete the %s of another address: %w", vxlanLink, err)
		}
	}
	if err != nil || !isVXLAN(link, nodeIP) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr, attrs.MTU = vxlanLink, vxlanMAC(nodeIP), mtu
		if err := h.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: vxlanID, SrcAddr: net.IP(nodeIP.AsSlice()), Port: vxlanPort}); err != nil {
			if errors.Is(err, unix.EOPNOTSUPP) {
				return 0, fmt.Errorf("nodes on other links are reached in VXLAN, which the kernel does not have: load its module vxlan, or let routers know the way to pods and start the worker with --tunnel %s: %w", TunnelNever, err)
			}
			return 0, fmt.Errorf("make %s: %w", vxlanLink, err)
		}
		if link, err = h.LinkByName(vxlanLink); err != nil {
			return 0, fmt.Errorf("find %s: %w", vxlanLink, err)
		}
	}
	return link.Attrs().Index, tunnelUp(h, ns, link, nodeIP, mtu)
}

// isVXLAN says whether a link is the tunnel's end at an address.
func isVXLAN(link netlink.Link, nodeIP netip.Addr) bool {
	v, ok := link.(*netlink.Vxlan)
	return ok && v.VxlanId == vxlanID && v.Port == vxlanPort && !v.Learning && v.SrcAddr.Equal(nodeIP.AsSlice()) &&
		bytes.Equal(v.Attrs().HardwareAddr, vxlanMAC(nodeIP))
}

// tunnelUp gives a tunnel's link its MTU and the node's address, and sets it up.
func tunnelUp(h *netlink.Handle, ns string, link netlink.Link, nodeIP netip.Addr, mtu int) error {
	name := link.Attrs().Name
	// Who may send by it is the guard's business, and an answer may leave otherwise.
	err := inNetNS(ns, func() error {
		return setSysctls(map[string]string{"net.ipv4.conf." + name + ".rp_filter": "0"})
	})
	if err != nil {
		return err
	}
	if link.Attrs().MTU != mtu {
		if err := h.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("set the MTU of %s to %d: %w", name, mtu, err)
		}
	}
	have, err := h.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", name, err)
	}
	there := false
	for _, a := range have {
		if a.IP.Equal(nodeIP.AsSlice()) {
			there = true
			continue
		}
		if err := h.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("delete address %s of %s: %w", a.IP, name, err)
		}
	}
	if there && link.Attrs().Flags&net.FlagUp != 0 {
		return nil // setting it again would be told as a change
	}
	return upWithAddrs(h, link, host(nodeIP))
}

// syncVXLANPeers tells the tunnel where the peers' ends are: the link address of each,
// and at which address that is.
func syncVXLANPeers(h *netlink.Handle, index int, peers []netip.Addr) error {
	want := map[string]netip.Addr{}
	for _, p := range peers {
		want[vxlanMAC(p).String()] = p
	}
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, unix.AF_BRIDGE} {
		have, err := h.NeighList(index, family)
		if err != nil {
			return fmt.Errorf("list neighbours of %s: %w", vxlanLink, err)
		}
		done := map[netip.Addr]bool{}
		for _, n := range have {
			ip, _ := netip.AddrFromSlice(n.IP.To4())
			if want[n.HardwareAddr.String()] == ip && ip.IsValid() && n.State&netlink.NUD_PERMANENT != 0 {
				done[ip] = true
				continue
			}
			if err := h.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("delete neighbour %s of %s: %w", ip, vxlanLink, err))
			}
		}
		for _, ip := range peers {
			if done[ip] {
				continue
			}
			n := permanent(index, ip, vxlanMAC(ip))
			if n.Family = family; family == unix.AF_BRIDGE {
				n.Flags, n.State = netlink.NTF_SELF, netlink.NUD_PERMANENT|netlink.NUD_NOARP
			}
			if err := h.NeighSet(n); err != nil {
				errs = append(errs, fmt.Errorf("add neighbour %s of %s: %w", ip, vxlanLink, err))
			}
		}
	}
	return errors.Join(errs...)
}
