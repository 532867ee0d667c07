package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// balancerLabel marks the addresses that SyncAddresses owns.
const balancerLabel = "lo:lb"

// AnnouncedBy is the annotation of a Service that names the node that has its load
// balancer's addresses on its link.
const AnnouncedBy = "gitk8s.dev/announced-by"

// Announced are the load balancers' addresses that a node has.
func Announced(node string, services []*corev1.Service) []netip.Addr {
	var out []netip.Addr
	for _, svc := range services {
		if svc.Spec.Type != corev1.ServiceTypeLoadBalancer || svc.Annotations[AnnouncedBy] != node {
			continue
		}
		for _, in := range svc.Status.LoadBalancer.Ingress {
			if ip, err := netip.ParseAddr(in.IP); err == nil && ip.IsGlobalUnicast() && !ip.Is4In6() {
				out = append(out, ip)
			}
		}
	}
	return out
}

// SyncAddresses makes the load balancers' addresses that a node has what want says,
// and no other. A node answers the questions for them, of ARP and of NDP; its neighbours
// are told of new ones, so that they forget the node that had one before. nodeIPs say on
// which links they are, by family; those of a family that the node has none of are left
// out.
func SyncAddresses(ns string, nodeIPs, want []netip.Addr) error {
	h, lo, err := loopback(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	v4, v6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	return errors.Join(
		syncAddresses4(h, ns, lo, Same(v4, nodeIPs), ofSameFamily(v4, want)),
		syncAddresses6(h, ns, Same(v6, nodeIPs), ofSameFamily(v6, want)))
}

func ofSameFamily(as netip.Addr, list []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(list), func(a netip.Addr) bool { return a.Is6() != as.Is6() })
}

// syncAddresses4: to ARP an address of the loopback interface is as good as one of the
// link.
func syncAddresses4(h *netlink.Handle, ns string, lo netlink.Link, nodeIP netip.Addr, want []netip.Addr) error {
	have, err := h.AddrList(lo, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	missing := map[netip.Addr]bool{}
	for _, ip := range want {
		missing[ip] = nodeIP.IsValid()
	}
	for _, a := range have {
		ip, ok := netip.AddrFromSlice(a.IP.To4())
		if !ok || a.Label != balancerLabel {
			continue
		}
		if missing[ip] {
			delete(missing, ip)
			continue
		}
		if err := h.AddrDel(lo, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("delete address %s: %w", ip, err)
		}
	}
	for ip, needed := range missing {
		if !needed {
			continue
		}
		if err := addHostAddress(h, lo, ip, balancerLabel); err != nil {
			return err
		}
		if err := announce(h, ns, nodeIP, ip); err != nil {
			return err
		}
	}
	return nil
}

// announce tells the neighbours on the node's link that the node has an address now: by
// an ARP request and an answer, since some listen to one alone (RFC 5227, section 3), or
// by an unsolicited neighbour advertisement (RFC 4861, section 7.2.6).
func announce(h *netlink.Handle, ns string, nodeIP, ip netip.Addr) error {
	link, err := linkOf(h, nodeIP)
	if err != nil {
		return fmt.Errorf("announce %s: %w", ip, err)
	}
	mac := link.Attrs().HardwareAddr
	if len(mac) != 6 {
		return nil // nobody asks for addresses on such a link
	}
	frames, protocol := [][]byte{arpFrame(1, mac, ip), arpFrame(2, mac, ip)}, []byte{0x08, 0x06}
	if ip.Is6() {
		frames, protocol = [][]byte{advertisement(mac, ip)}, []byte{0x86, 0xdd}
	}
	err = inNetNS(ns, func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		to := &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index, Protocol: binary.NativeEndian.Uint16(protocol), Halen: 6}
		for _, f := range frames {
			if err := unix.Sendto(fd, f, 0, to); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("announce %s on %s: %w", ip, link.Attrs().Name, err)
	}
	return nil
}

// arpFrame is an Ethernet frame to all in which somebody speaks of its own address: a
// request (1) or an answer (2).
func arpFrame(operation uint16, mac net.HardwareAddr, ip netip.Addr) []byte {
	all := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	b := append(append([]byte{}, all...), mac...)
	b = append(b, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4)
	b = binary.BigEndian.AppendUint16(b, operation)
	b = append(append(b, mac...), ip.AsSlice()...)
	return append(append(b, all...), ip.AsSlice()...)
}

// linkOf finds the link that has an address. The tunnels' links borrow it.
func linkOf(h *netlink.Handle, ip netip.Addr) (netlink.Link, error) {
	all, err := h.AddrList(nil, family(ip))
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range all {
		if addrOf(a.IP) != ip {
			continue
		}
		if link, err := h.LinkByIndex(a.LinkIndex); err != nil || !isMeshLink(link.Attrs().Name) {
			return link, err
		}
	}
	return nil, fmt.Errorf("no link has the node's address %s", ip)
}
