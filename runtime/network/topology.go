package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	bridgeName = "gitk8s0"
	uplinkName = "eth0"
)

var validName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$`)

// HubNetNS is the path of the namespace that holds the bridge.
func HubNetNS(id string) string { return filepath.Join(netnsDir, "gitk8s-"+id+"-hub") }

// NodeNetNS is the path of a worker's namespace.
func NodeNetNS(id, node string) string { return filepath.Join(netnsDir, "gitk8s-"+id+"-"+node) }

// EnsureHub makes the hub's namespace with its bridge and addresses.
func EnsureHub(id string, r Ranges) error {
	if !validName.MatchString(id) {
		return fmt.Errorf("make hub network: bad id %q", id)
	}
	ns := HubNetNS(id)
	if err := createNetNS(ns); err != nil {
		return err
	}
	if hasIPv6(r.Nodes) {
		if err := errors.Join(requireIPv6(), inNetNS(ns, noDelay)); err != nil {
			return fmt.Errorf("prepare %s: %w", ns, err)
		}
	}
	h, err := handle(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	bridge, err := h.LinkByName(bridgeName)
	if isMissingLink(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = bridgeName
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("make bridge in %s: %w", ns, err)
		}
		bridge, err = h.LinkByName(bridgeName)
	}
	if err != nil {
		return fmt.Errorf("find bridge in %s: %w", ns, err)
	}
	return upWithAddrs(h, bridge, within(r.Hub(), r.Nodes)...)
}

// HasHub tells whether the hub is there: it goes with the machine, and with the
// mount namespace that it is pinned in.
func HasHub(id string) bool { return isNetNS(HubNetNS(id)) }

// Node says where a worker's network is.
type Node struct {
	// NetNS is the path of its namespace.
	NetNS string
	// IPs are its addresses, one of each family that the nodes' network has.
	IPs []netip.Addr
}

// EnsureNode makes the namespace of worker number n, counted from 1, and its link
// to the hub. The hub must exist.
func EnsureNode(id, node string, n int, r Ranges) (Node, error) {
	if !validName.MatchString(id) || !validName.MatchString(node) || node == "hub" {
		return Node{}, fmt.Errorf("make node network: bad id %q or node name %q", id, node)
	}
	if n < 1 || n > 200 {
		return Node{}, fmt.Errorf("make network of node %s: number %d is not between 1 and 200", node, n)
	}
	out := Node{NetNS: NodeNetNS(id, node), IPs: r.Node(n)}
	if err := createNetNS(out.NetNS); err != nil {
		return Node{}, err
	}
	// Before there are links: they inherit what is set.
	if err := prepareForwarding(out.NetNS, hasIPv6(r.Nodes)); err != nil {
		return Node{}, fmt.Errorf("prepare node %s: %w", node, err)
	}
	if err := linkNode(HubNetNS(id), out, n, r.Nodes); err != nil {
		return Node{}, fmt.Errorf("connect node %s with the hub: %w", node, err)
	}
	return out, nil
}

// PinNode makes the namespace that a process lives in that of a worker, before EnsureNode
// does: it may belong to another user namespace than the caller's.
func PinNode(id, node string, pid int) error {
	if !validName.MatchString(id) || !validName.MatchString(node) || node == "hub" {
		return fmt.Errorf("pin network of a node: bad id %q or node name %q", id, node)
	}
	path, source := NodeNetNS(id, node), fmt.Sprintf("/proc/%d/ns/net", pid)
	var pinned, its unix.Stat_t
	if err := unix.Stat(source, &its); err != nil {
		return &os.PathError{Op: "stat", Path: source, Err: err}
	}
	if unix.Stat(path, &pinned) == nil && pinned.Dev == its.Dev && pinned.Ino == its.Ino {
		return nil
	}
	if err := errors.Join(emptyAndDelete(path), os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o600)); err != nil {
		return fmt.Errorf("pin network of node %s: %w", node, err)
	}
	if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "bind", Path: path, Err: err}
	}
	return inNetNS(path, loopbackUp)
}

// prepareForwarding makes a namespace forward between its links, also from and to its
// loopback addresses, where node ports are. Redirects are off:
// a pod has no other way to go, and one that was sent counts against the rate at
// which refusals are told to the pod.
func prepareForwarding(ns string, ipv6 bool) error {
	return inNetNS(ns, func() error {
		err := setSysctls(map[string]string{
			"net.ipv4.ip_forward":                  "1",
			"net.ipv4.conf.all.route_localnet":     "1",
			"net.ipv4.conf.all.rp_filter":          "0",
			"net.ipv4.conf.default.rp_filter":      "0",
			"net.ipv4.conf.all.send_redirects":     "0",
			"net.ipv4.conf.default.send_redirects": "0",
		})
		if err != nil || !ipv6 {
			return err
		}
		if err := errors.Join(requireIPv6(), keepRouters()); err != nil {
			return err
		}
		if ns != "" { // a node's own
			if err := noDelay(); err != nil {
				return err
			}
		}
		return setSysctls(map[string]string{"net.ipv6.conf.all.forwarding": "1"})
	})
}

// sysctlsIPv6 has the kernel's parameters for links.
const sysctlsIPv6 = "/proc/sys/net/ipv6/conf"

// noDelay lets addresses of the links that come be used at once: nobody else can have
// them.
func noDelay() error {
	return setSysctls(map[string]string{"net.ipv6.conf.default.accept_dad": "0", "net.ipv6.conf.default.accept_ra": "0"})
}

// requireIPv6 says in words what otherwise is a file that is missing.
func requireIPv6() error {
	if _, err := os.Stat(sysctlsIPv6); err != nil {
		return errors.New("this machine's kernel has no IPv6, of which the cluster is to have addresses: begin one with IPv4 alone")
	}
	return nil
}

// keepRouters: a machine that has its routes from routers' advertisements must keep them
// although it forwards now, which would end them ("accept_ra" in the kernel's
// ip-sysctl.rst). Links that come later are left alone.
func keepRouters() error {
	if b, err := os.ReadFile(sysctlsIPv6 + "/all/forwarding"); err != nil || strings.TrimSpace(string(b)) != "0" {
		return err // nothing to do where it forwards already
	}
	links, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name, PodLinks) {
			continue
		}
		file := filepath.Join(sysctlsIPv6, l.Name, "accept_ra")
		if b, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(b)) != "1" {
			continue
		}
		if err := os.WriteFile(file, []byte("2"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("keep the routers of %s: %w", l.Name, err)
		}
	}
	return nil
}

func linkNode(hubNS string, node Node, n int, nodes []netip.Prefix) error {
	hub, err := handle(hubNS, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer hub.Close()
	bridge, err := hub.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find bridge: %w", err)
	}
	inside, err := handle(node.NetNS, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer inside.Close()
	port := "node" + strconv.Itoa(n)
	uplink, err := inside.LinkByName(uplinkName)
	if isMissingLink(err) {
		// A port whose other end is gone can only be a left-over of another namespace.
		if old, err := hub.LinkByName(port); err == nil {
			if err := hub.LinkDel(old); err != nil {
				return fmt.Errorf("remove old link: %w", err)
			}
		}
		if err := addVeth(hub, port, nil, node.NetNS, uplinkName); err != nil {
			return err
		}
		uplink, err = inside.LinkByName(uplinkName)
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", uplinkName, err)
	}
	portLink, err := hub.LinkByName(port)
	if err != nil {
		return fmt.Errorf("find %s: %w", port, err)
	}
	if err := hub.LinkSetMaster(portLink, bridge); err != nil {
		return fmt.Errorf("add %s to the bridge: %w", port, err)
	}
	if err := hub.LinkSetUp(portLink); err != nil {
		return fmt.Errorf("set %s up: %w", port, err)
	}
	return upWithAddrs(inside, uplink, within(node.IPs, nodes)...)
}

// addVeth makes a pair of links, the peer in another namespace.
func addVeth(h *netlink.Handle, name string, mac net.HardwareAddr, peerNS, peerName string) error {
	ns, err := netns.GetFromPath(peerNS)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", peerNS, err)
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, mac
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: peerName, PeerNamespace: netlink.NsFd(ns)}
	if err := h.LinkAdd(veth); err != nil {
		return fmt.Errorf("make link %s to %s in %s: %w", name, peerName, peerNS, err)
	}
	return nil
}

func upWithAddrs(h *netlink.Handle, link netlink.Link, prefixes ...netip.Prefix) error {
	for _, prefix := range prefixes {
		addr := &netlink.Addr{IPNet: ipNet(prefix)}
		if prefix.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
			if prefix.IsSingleIP() {
				addr.Flags |= unix.IFA_F_NOPREFIXROUTE // there is nobody else
			}
		}
		if err := h.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("give %s to %s: %w", prefix, link.Attrs().Name, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", link.Attrs().Name, err)
	}
	return nil
}

// within are addresses with the size of the network that each is in.
func within(addrs []netip.Addr, networks []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range addrs {
		out = append(out, netip.PrefixFrom(a, ofFamily(networks, a.Is6()).Bits()))
	}
	return out
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func isMissingLink(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}

// DeleteNode removes a worker's namespace with its links.
func DeleteNode(id, node string) error {
	if err := emptyAndDelete(NodeNetNS(id, node)); err != nil {
		return fmt.Errorf("delete network of node %s: %w", node, err)
	}
	return nil
}

// DeleteTopology removes the hub and all nodes, also those that a killed process
// left behind.
func DeleteTopology(id string) error {
	if !validName.MatchString(id) {
		return fmt.Errorf("delete network: bad id %q", id)
	}
	found, err := filepath.Glob(NodeNetNS(id, "*"))
	if err != nil {
		return fmt.Errorf("delete network: %w", err)
	}
	var errs []error
	for _, ns := range found {
		errs = append(errs, emptyAndDelete(ns))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("delete network %s: %w", id, err)
	}
	return nil
}

// emptyAndDelete removes the links first: a process that lingers would keep the
// namespace, and with it the other ends of its links.
func emptyAndDelete(ns string) error {
	if isNetNS(ns) {
		h, err := handle(ns, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		links, err := h.LinkList()
		if err != nil {
			return fmt.Errorf("list links in %s: %w", ns, err)
		}
		for _, l := range links {
			if l.Type() != "veth" && l.Type() != "bridge" && !isMeshLink(l.Attrs().Name) {
				continue
			}
			if err := h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) && !isMissingLink(err) {
				return fmt.Errorf("delete link %s in %s: %w", l.Attrs().Name, ns, err)
			}
		}
	}
	return deleteNetNS(ns)
}

// LeadOut gives a node default routes to the hub, from where a way out may lead, or takes
// them away.
func LeadOut(nodeNS string, ranges Ranges, on bool) error {
	h, err := handle(nodeNS, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	for _, hub := range ranges.Hub() {
		everywhere := netip.PrefixFrom(hub, 0).Masked()
		r := &netlink.Route{Dst: ipNet(everywhere), Gw: hub.AsSlice()}
		if on {
			err = h.RouteReplace(r)
		} else if err = h.RouteDel(r); errors.Is(err, unix.ESRCH) {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("default route by way of the hub: %w", err)
		}
	}
	return nil
}
