package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

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
			if ip, err := netip.ParseAddr(in.IP); err == nil && ip.Is4() {
				out = append(out, ip)
			}
		}
	}
	return out
}

// SyncAddresses makes the load balancers' addresses that a node has what want says,
// and no other. A node answers the ARP questions for them; its neighbours are told
// of new ones, so that they forget the node that had one before. nodeIP says on which
// link they are.
func SyncAddresses(ns string, nodeIP netip.Addr, want []netip.Addr) error {
	h, lo, err := loopback(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	have, err := h.AddrList(lo, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	missing := map[netip.Addr]bool{}
	for _, ip := range want {
		missing[ip] = true
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
	for ip := range missing {
		if err := addHostAddress(h, lo, ip, balancerLabel); err != nil {
			return err
		}
		if err := announce(h, ns, nodeIP, ip); err != nil {
			return err
		}
	}
	return nil
}

// announce tells the neighbours on the node's link that the node has an address now
// (RFC 5227, section 3), by a request and by an answer: some listen to one alone.
func announce(h *netlink.Handle, ns string, nodeIP, ip netip.Addr) error {
	link, err := linkOf(h, nodeIP)
	if err != nil {
		return fmt.Errorf("announce %s: %w", ip, err)
	}
	err = inNetNS(ns, func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		to := &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index, Protocol: binary.NativeEndian.Uint16([]byte{0x08, 0x06}), Halen: 6}
		const request, answer = 1, 2
		for _, operation := range []uint16{request, answer} {
			if err := unix.Sendto(fd, arpFrame(operation, link.Attrs().HardwareAddr, ip), 0, to); err != nil {
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

// arpFrame is an Ethernet frame to all in which somebody speaks of its own address.
func arpFrame(operation uint16, mac net.HardwareAddr, ip netip.Addr) []byte {
	all := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	b := append(append([]byte{}, all...), mac...)
	b = append(b, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4)
	b = binary.BigEndian.AppendUint16(b, operation)
	b = append(append(b, mac...), ip.AsSlice()...)
	return append(append(b, all...), ip.AsSlice()...)
}

// linkOf finds the link that has an address.
func linkOf(h *netlink.Handle, ip netip.Addr) (netlink.Link, error) {
	all, err := h.AddrList(nil, family(ip))
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range all {
		if addrOf(a.IP) == ip {
			return h.LinkByIndex(a.LinkIndex)
		}
	}
	return nil, fmt.Errorf("no link has the node's address %s", ip)
}
