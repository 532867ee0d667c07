package network

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// vxlanLink is the end of the tunnel between IPv4 addresses, for IPv4 packets, and
	// vxlanLink6 of that between IPv6 ones.
	vxlanLink  = "gitk8s-vxlan"
	vxlanLink6 = "gitk8s-vxlan6"
	// vxlanID tells our packets from those of others at the same port.
	vxlanID = 203
	// vxlanPort is IANA's (RFC 7348).
	vxlanPort = 4789
)

func (f *ipFamily) vxlanLink() string {
	if f == ipv6 {
		return vxlanLink6
	}
	return vxlanLink
}

// vxlanMAC is the link address of a machine's end of the tunnel. It follows from the
// machine's address, so that nobody needs to be told. Two IPv6 addresses may have the same,
// if hardly ever.
func vxlanMAC(a netip.Addr) net.HardwareAddr {
	// Both are locally administered.
	if a.Is6() {
		sum := sha256.Sum256(a.AsSlice())
		return append(net.HardwareAddr{0x06}, sum[:5]...)
	}
	b := a.As4()
	return net.HardwareAddr{0x02, 0xcb, b[0], b[1], b[2], b[3]}
}

// linkLocal is the IPv6 address that follows from a link address (RFC 4291, appendix A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

// ensureVXLAN makes the node's end of the tunnel, or finds it, and returns its index.
// It learns nothing from what comes in. It borrows the node's address: what is
// masqueraded on its way out has that address then.
func ensureVXLAN(h *netlink.Handle, ns string, nodeIP netip.Addr, mtu int) (int, error) {
	name := familyOf(nodeIP).vxlanLink()
	link, err := h.LinkByName(name)
	if err != nil && !isMissingLink(err) {
		return 0, fmt.Errorf("find %s: %w", name, err)
	}
	if err == nil && !isVXLAN(link, nodeIP) {
		if err := h.LinkDel(link); err != nil {
			return 0, fmt.Errorf("delete the %s of another address: %w", name, err)
		}
	}
	if err != nil || !isVXLAN(link, nodeIP) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr, attrs.MTU = name, vxlanMAC(nodeIP), mtu
		if err := h.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: vxlanID, SrcAddr: net.IP(nodeIP.AsSlice()), Port: vxlanPort}); err != nil {
			if errors.Is(err, unix.EOPNOTSUPP) {
				return 0, fmt.Errorf("nodes on other links are reached in VXLAN, which the kernel does not have: load its module vxlan, or let routers know the way to pods and start the worker with --tunnel %s: %w", TunnelNever, err)
			}
			return 0, fmt.Errorf("make %s: %w", name, err)
		}
		if link, err = h.LinkByName(name); err != nil {
			return 0, fmt.Errorf("find %s: %w", name, err)
		}
	}
	return link.Attrs().Index, tunnelUp(h, ns, link, []netip.Addr{nodeIP}, mtu)
}

// isVXLAN says whether a link is the tunnel's end at an address.
func isVXLAN(link netlink.Link, nodeIP netip.Addr) bool {
	v, ok := link.(*netlink.Vxlan)
	return ok && v.VxlanId == vxlanID && v.Port == vxlanPort && !v.Learning && v.SrcAddr.Equal(nodeIP.AsSlice()) &&
		bytes.Equal(v.Attrs().HardwareAddr, vxlanMAC(nodeIP))
}

// tunnelUp gives a tunnel's link its MTU and the node's addresses, and sets it up.
func tunnelUp(h *netlink.Handle, ns string, link netlink.Link, nodeIPs []netip.Addr, mtu int) error {
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
	have, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", name, err)
	}
	there := 0
	for _, a := range have {
		ip := addrOf(a.IP)
		if slices.Contains(nodeIPs, ip) {
			there++
			continue
		}
		if ip.IsLinkLocalUnicast() && ip.Is6() {
			continue // the link's own
		}
		if err := h.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("delete address %s of %s: %w", a.IP, name, err)
		}
	}
	if there == len(nodeIPs) && link.Attrs().Flags&net.FlagUp != 0 {
		return nil // setting it again would be told as a change
	}
	var hosts []netip.Prefix
	for _, ip := range nodeIPs {
		hosts = append(hosts, host(ip))
	}
	return upWithAddrs(h, link, hosts...)
}

// syncVXLANPeers tells the tunnel where the peers' ends are: the link address of each,
// and at which address that is.
func syncVXLANPeers(h *netlink.Handle, index int, peers []netip.Addr) error {
	var v4, v6, ends []netlink.Neigh
	for _, p := range peers {
		mac := vxlanMAC(p)
		if p.Is6() {
			v6 = append(v6, *permanent(index, linkLocal(mac), mac))
		} else {
			v4 = append(v4, *permanent(index, p, mac))
		}
		end := permanent(index, p, mac)
		end.Family, end.Flags, end.State = unix.AF_BRIDGE, netlink.NTF_SELF, netlink.NUD_PERMANENT|netlink.NUD_NOARP
		ends = append(ends, *end)
	}
	return errors.Join(
		syncNeighbours(h, index, netlink.FAMILY_V4, v4), syncNeighbours(h, index, netlink.FAMILY_V6, v6),
		syncNeighbours(h, index, unix.AF_BRIDGE, ends))
}

// syncNeighbours makes a link's neighbours of a kind what want says, and no others.
func syncNeighbours(h *netlink.Handle, index, family int, want []netlink.Neigh) error {
	have, err := h.NeighList(index, family)
	if err != nil {
		return fmt.Errorf("list neighbours of link %d: %w", index, err)
	}
	var errs []error
	for _, n := range have {
		if addrOf(n.IP).IsMulticast() {
			continue // the kernel's own
		}
		same := func(w netlink.Neigh) bool {
			return bytes.Equal(w.HardwareAddr, n.HardwareAddr) && w.IP.Equal(n.IP) && n.State&netlink.NUD_PERMANENT != 0
		}
		if i := slices.IndexFunc(want, same); i >= 0 {
			want = slices.Delete(want, i, i+1)
			continue
		}
		if err := h.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("delete neighbour %s of link %d: %w", n.IP, index, err))
		}
	}
	for _, n := range want {
		if err := h.NeighSet(&n); err != nil {
			errs = append(errs, fmt.Errorf("add neighbour %s of link %d: %w", n.IP, index, err))
		}
	}
	return errors.Join(errs...)
}
