package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// balancerMetric marks the IPv6 addresses that SyncAddresses owns: there are no labels for
// them, and others keep addresses on links in the same way. There is no route of an
// address that this would be the metric of.
const balancerMetric = 20300

// linkAddress is an IPv6 address on a link.
type linkAddress struct {
	link int
	ip   netip.Addr
}

// syncAddresses6: of IPv6 the kernel answers questions on a link for that link's own
// addresses alone, so they are there. They are deprecated, for nothing that the node sends
// by itself is to have one, and nobody is asked whether he has them: if he does, it is the
// node that had them before.
func syncAddresses6(h *netlink.Handle, ns string, nodeIP netip.Addr, want []netip.Addr) error {
	missing := map[linkAddress]bool{}
	if nodeIP.IsValid() && len(want) > 0 {
		link, err := linkOf(h, nodeIP)
		if err != nil {
			return err
		}
		for _, ip := range want {
			missing[linkAddress{link.Attrs().Index, ip}] = true
		}
	}
	var have []linkAddress
	err := inNetNS(ns, func() (err error) {
		have, err = balancerAddresses()
		return err
	})
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range have {
		if missing[a] {
			delete(missing, a)
			continue
		}
		if err := h.AddrDel(nil, &netlink.Addr{IPNet: ipNet(host(a.ip)), LinkIndex: a.link}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("delete address %s: %w", a.ip, err)
		}
	}
	for a := range missing {
		if err := inNetNS(ns, func() error { return addBalancerAddress(a) }); err != nil {
			return fmt.Errorf("add address %s: %w", a.ip, err)
		}
		if err := announce(h, ns, nodeIP, a.ip); err != nil {
			return err
		}
	}
	return nil
}

// balancerAddresses are those of the calling thread's namespace that have the mark. The
// netlink library's own list has no metrics, nor can it set one.
func balancerAddresses() ([]linkAddress, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_INET6))
	messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
	if err != nil {
		return nil, err
	}
	var out []linkAddress
	for _, m := range messages {
		about := nl.DeserializeIfAddrmsg(m)
		attrs, err := nl.ParseRouteAttr(m[about.Len():])
		if err != nil {
			return nil, err
		}
		found, marked := linkAddress{link: int(about.Index)}, false
		for _, a := range attrs {
			switch {
			case a.Attr.Type == unix.IFA_ADDRESS:
				found.ip, _ = netip.AddrFromSlice(a.Value)
			case a.Attr.Type == unix.IFA_RT_PRIORITY && len(a.Value) == 4:
				marked = binary.NativeEndian.Uint32(a.Value) == balancerMetric
			}
		}
		if marked && about.Family == unix.AF_INET6 && about.Prefixlen == 128 && found.ip.IsValid() {
			out = append(out, found)
		}
	}
	return out, nil
}

// addBalancerAddress adds one in the calling thread's namespace.
func addBalancerAddress(a linkAddress) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	about := nl.NewIfAddrmsg(unix.AF_INET6)
	about.Prefixlen, about.Index = 128, uint32(a.link)
	req.AddData(about)
	number := func(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }
	forever := nl.IfaCacheInfo{IfaCacheinfo: unix.IfaCacheinfo{Valid: 1<<32 - 1}}
	for _, attr := range []*nl.RtAttr{
		nl.NewRtAttr(unix.IFA_LOCAL, a.ip.AsSlice()), nl.NewRtAttr(unix.IFA_ADDRESS, a.ip.AsSlice()),
		nl.NewRtAttr(unix.IFA_FLAGS, number(unix.IFA_F_NODAD|unix.IFA_F_NOPREFIXROUTE)),
		nl.NewRtAttr(unix.IFA_RT_PRIORITY, number(balancerMetric)),
		nl.NewRtAttr(unix.IFA_CACHEINFO, forever.Serialize()),
	} {
		req.AddData(attr)
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// advertisement is an Ethernet frame to all nodes in which somebody says that an address
// is his, whoever had it: a neighbour advertisement (RFC 4861, section 4.4) with the flags
// of a router, which a node is, and of overriding.
func advertisement(mac net.HardwareAddr, ip netip.Addr) []byte {
	const nextHeader, advertises, router, override = 58, 136, 0x80, 0x20
	all := netip.MustParseAddr("ff02::1").AsSlice()
	body := []byte{advertises, 0, 0, 0, router | override, 0, 0, 0}
	body = append(body, ip.AsSlice()...)
	body = append(append(body, 2, 1), mac...) // option: the link address, in units of 8 bytes
	pseudo := append(append([]byte{}, ip.AsSlice()...), all...)
	pseudo = append(pseudo, 0, 0, 0, byte(len(body)), 0, 0, 0, nextHeader)
	binary.BigEndian.PutUint16(body[2:], checksum(append(pseudo, body...)))
	b := append([]byte{0x33, 0x33, 0, 0, 0, 1}, mac...)
	b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(body)), nextHeader, 255)
	b = append(append(b, ip.AsSlice()...), all...)
	return append(b, body...)
}

// checksum is the internet checksum (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
