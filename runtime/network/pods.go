package network

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	podLink   = "eth0"
	recordExt = ".json"
	pinExt    = ".netns"
)

var (
	// gateways are the same in every pod. They exist on no link: the pod's permanent
	// neighbour entries lead to the node's end of the pair.
	gateways = []netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1")}
	hostMAC  = net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}
)

// PodConfig of a node's PodNetwork.
type PodConfig struct {
	// Dir keeps the addresses given out and pins the pods' namespaces.
	Dir string
	// NetNS is the path of the node's namespace; empty means the caller's own.
	NetNS string
	// PodCIDRs are the node's share of the pods' addresses, one of each family of the
	// cluster. Services are the services' addresses, of the same families.
	PodCIDRs, Services []netip.Prefix
	// NodeIPs are the source addresses of what the node itself sends to its pods, one of
	// each of these families.
	NodeIPs []netip.Addr
}

func (c *PodConfig) check() error {
	if len(c.PodCIDRs) == 0 {
		return errors.New("pod network: no range of addresses")
	}
	for i, p := range c.PodCIDRs {
		if !p.IsValid() || p.Addr().BitLen()-p.Bits() < 4 {
			return fmt.Errorf("pod network: %s is no range of at least 16 addresses", p)
		}
		if p.Addr().Is6() && p.Bits() > 112 {
			return fmt.Errorf("pod network: %s is no range of at least 65536 addresses", p)
		}
		if !Same(p.Addr(), c.NodeIPs).IsValid() {
			return fmt.Errorf("pod network: the node has no address of the family of %s; it needs one for its pods to be reached", p)
		}
		if i > 0 && p.Addr().Is6() == c.PodCIDRs[0].Addr().Is6() {
			return fmt.Errorf("pod network: %v are of one family", c.PodCIDRs)
		}
	}
	return nil
}

// PodNetwork connects the pods of one node, each by a pair of links and a route of
// its own: no bridge, so that every packet passes the node's forwarding path, where
// services and policies apply.
type PodNetwork struct {
	cfg PodConfig
	h   *netlink.Handle

	mu   sync.Mutex
	pods map[string]Pod
	used map[uint16]string // by the number that a pod's addresses end in
	last uint16
	// mtu of the pods' links, 0 for the kernel's default; limited: all have it.
	mtu     int
	limited bool
}

// Pod is a pod's place in the network.
type Pod struct {
	UID string
	// Name is namespace/name, for people who look at the records.
	Name string
	// IPs are its addresses, one of each family, which end in the same 16 bits.
	IPs []netip.Addr
	// NetNS is the path of its namespace.
	NetNS string
	// OwnUsers: the namespace belongs to a user namespace of the pod's own, with the
	// users from UserBase on.
	OwnUsers bool `json:",omitempty"`
}

// NewPodNetwork opens the records and prepares the node: its route to the services'
// addresses.
func NewPodNetwork(cfg PodConfig) (*PodNetwork, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.PodCIDRs = slices.Clone(cfg.PodCIDRs)
	for i, p := range cfg.PodCIDRs {
		cfg.PodCIDRs[i] = p.Masked()
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("pod network: %w", err)
	}
	pods, err := readRecords(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("pod network: %w", err)
	}
	if err := prepareForwarding(cfg.NetNS, hasIPv6(cfg.PodCIDRs)); err != nil {
		return nil, fmt.Errorf("pod network: %w", err)
	}
	if hasIPv6(cfg.PodCIDRs) {
		if err := guardSources(cfg.NetNS); err != nil {
			return nil, fmt.Errorf("pod network: %w", err)
		}
	}
	h, err := handle(cfg.NetNS, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("pod network: %w", err)
	}
	n := &PodNetwork{cfg: cfg, h: h, pods: map[string]Pod{}, used: map[uint16]string{}}
	n.last, _ = n.numbers()
	for _, p := range pods {
		n.pods[p.UID] = p
		n.hold(p)
		if n.fits(p) {
			n.last = max(n.last, ending(p.IPs[0]))
		}
	}
	if err := n.Repair(); err != nil {
		h.Close()
		return nil, fmt.Errorf("pod network: %w", err)
	}
	return n, nil
}

// routeServices lets the node's own processes address services: without a route
// there is nothing to translate, since a node may have no default route.
func routeServices(h *netlink.Handle, ranges []netip.Prefix, nodeIPs []netip.Addr) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	for _, services := range ranges {
		from := Same(services.Addr(), nodeIPs)
		r := &netlink.Route{Dst: ipNet(services), LinkIndex: lo.Attrs().Index, Src: net.IP(from.AsSlice()), Scope: netlink.SCOPE_LINK}
		if from.Is6() {
			// By the loopback it would be one that refuses: the kernel allows no others.
			link, err := linkOf(h, from)
			if err != nil {
				return err
			}
			r.LinkIndex, r.Scope, r.Protocol = link.Attrs().Index, 0, servicesProtocol
		}
		if err := h.RouteReplace(r); err != nil {
			return fmt.Errorf("add route to the services %s: %w", services, err)
		}
	}
	return nil
}

// Close lets go of the kernel; pods stay connected.
func (n *PodNetwork) Close() error {
	n.h.Close()
	return nil
}

// Setup connects a pod, or finds it connected, and returns its namespace and
// addresses. name is namespace/name of the pod; ownUsers makes the namespace one of a new
// user namespace.
func (n *PodNetwork) Setup(ctx context.Context, uid, name string, ownUsers bool) (string, []netip.Addr, error) {
	if err := ctx.Err(); err != nil {
		return "", nil, err
	}
	if !validUID(uid) {
		return "", nil, fmt.Errorf("connect pod %s: bad uid %q", name, uid)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	pod, known := n.pods[uid]
	if known && n.isConnected(pod) {
		return pod.NetNS, pod.IPs, nil
	}
	if !known || !n.fits(pod) {
		ips, err := n.allocate()
		if err != nil {
			return "", nil, fmt.Errorf("connect pod %s: %w", name, err)
		}
		if known {
			n.free(pod)
		}
		pod = Pod{UID: uid, Name: name, IPs: ips, NetNS: filepath.Join(n.cfg.Dir, uid+pinExt), OwnUsers: ownUsers}
	}
	// Written before anything is made: what is made can then be found and removed.
	if err := writeRecord(n.cfg.Dir, pod); err != nil {
		return "", nil, fmt.Errorf("connect pod %s: %w", name, err)
	}
	n.pods[uid] = pod
	n.hold(pod)
	if err := n.connect(pod); err != nil {
		return "", nil, errors.Join(fmt.Errorf("connect pod %s: %w", name, err), n.remove(pod))
	}
	return pod.NetNS, pod.IPs, nil
}

func validUID(uid string) bool {
	return uid != "" && len(uid) <= 128 && !strings.ContainsAny(uid, "/\x00") && uid[0] != '.'
}

// linkName is the node's end of the pair. Links have at most 15 characters.
func linkName(uid string) string {
	sum := sha256.Sum256([]byte(uid))
	return "pod" + hex.EncodeToString(sum[:5])
}

func (n *PodNetwork) isConnected(p Pod) bool {
	if !isNetNS(p.NetNS) {
		return false
	}
	link, err := n.h.LinkByName(linkName(p.UID))
	if err != nil || link.Attrs().Flags&net.FlagUp == 0 {
		return false
	}
	for _, ip := range p.IPs {
		routes, err := n.h.RouteListFiltered(family(ip), &netlink.Route{Dst: ipNet(host(ip)), LinkIndex: link.Attrs().Index}, netlink.RT_FILTER_DST|netlink.RT_FILTER_OIF)
		if err != nil || len(routes) != 1 {
			return false
		}
	}
	return len(p.IPs) == len(n.cfg.PodCIDRs)
}

// connect makes everything anew.
func (n *PodNetwork) connect(p Pod) error {
	if err := n.disconnect(p); err != nil {
		return err
	}
	base := uint32(0)
	if p.OwnUsers {
		base = UserBase(p.IPs[0])
	}
	if err := createNetNSOf(p.NetNS, base); err != nil {
		return err
	}
	if err := addVeth(n.h, linkName(p.UID), hostMAC, p.NetNS, podLink); err != nil {
		return err
	}
	mac, err := n.insidePod(p)
	if err != nil {
		return fmt.Errorf("inside of the pod: %w", err)
	}
	link, err := n.h.LinkByName(linkName(p.UID))
	if err != nil {
		return fmt.Errorf("find link: %w", err)
	}
	// What a pod sends must have its own address: policies go by it. For IPv6 see
	// guardSources. Nor is a pod a router to whom the node listens.
	err = inNetNS(n.cfg.NetNS, func() error {
		values := map[string]string{"net.ipv4.conf." + linkName(p.UID) + ".rp_filter": "1"}
		if hasIPv6(n.cfg.PodCIDRs) {
			values["net.ipv6.conf."+linkName(p.UID)+".disable_ipv6"] = "0"
			values["net.ipv6.conf."+linkName(p.UID)+".accept_ra"] = "0"
			values["net.ipv6.conf."+linkName(p.UID)+".accept_dad"] = "0"
			// Without an address of the link's there are no redirects, as above.
			values["net.ipv6.conf."+linkName(p.UID)+".addr_gen_mode"] = "1"
		}
		return setSysctls(values)
	})
	if err != nil {
		return err
	}
	if err := n.limit(p, link); err != nil {
		return err
	}
	if err := n.h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link up: %w", err)
	}
	for _, ip := range p.IPs {
		if err := n.h.NeighSet(permanent(link.Attrs().Index, ip, mac)); err != nil {
			return fmt.Errorf("add neighbour %s: %w", ip, err)
		}
		if err := n.routeTo(ip, link); err != nil {
			return err
		}
	}
	return nil
}

// podSysctls sets a pod's kernel parameters, on a thread in its namespace. As
// containerd's enable_unprivileged_ports and enable_unprivileged_icmp: in a namespace of
// its own a pod takes no port from anybody.
func podSysctls() error {
	if err := setSysctls(map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}); err != nil {
		return err
	}
	err := setSysctls(map[string]string{"net.ipv4.ping_group_range": "0 2147483647"})
	if errors.Is(err, unix.EINVAL) {
		// A user namespace in which not all groups exist. 0 does.
		err = setSysctls(map[string]string{"net.ipv4.ping_group_range": "0 0"})
	}
	return err
}

// insidePod gives the pod its addresses and its only way out: to the node.
func (n *PodNetwork) insidePod(p Pod) (net.HardwareAddr, error) {
	err := inNetNS(p.NetNS, func() error {
		if err := podSysctls(); err != nil || !hasIPv6(n.cfg.PodCIDRs) {
			return err
		}
		// Nobody else has its addresses, and there is no router but the node. A machine
		// may have switched IPv6 off for new links.
		return setSysctls(map[string]string{
			"net.ipv6.conf." + podLink + ".disable_ipv6": "0",
			"net.ipv6.conf." + podLink + ".accept_dad":   "0", "net.ipv6.conf." + podLink + ".accept_ra": "0",
		})
	})
	if err != nil {
		return nil, err
	}
	h, err := handle(p.NetNS, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	link, err := h.LinkByName(podLink)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", podLink, err)
	}
	addrs := make([]netip.Prefix, 0, len(p.IPs))
	for _, ip := range p.IPs {
		addrs = append(addrs, host(ip))
	}
	if err := upWithAddrs(h, link, addrs...); err != nil {
		return nil, err
	}
	index := link.Attrs().Index
	for _, ip := range p.IPs {
		gateway := Same(ip, gateways)
		if err := h.NeighSet(permanent(index, gateway, hostMAC)); err != nil {
			return nil, fmt.Errorf("add neighbour %s: %w", gateway, err)
		}
		if ip.Is4() { // the IPv6 one is on the link by its nature
			toGateway := &netlink.Route{Dst: ipNet(host(gateway)), LinkIndex: index, Scope: netlink.SCOPE_LINK}
			if err := h.RouteReplace(toGateway); err != nil {
				return nil, fmt.Errorf("add route to %s: %w", gateway, err)
			}
		}
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if ip.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		def := &netlink.Route{Dst: ipNet(all), LinkIndex: index, Gw: net.IP(gateway.AsSlice())}
		if err := h.RouteReplace(def); err != nil {
			return nil, fmt.Errorf("add default route: %w", err)
		}
	}
	return link.Attrs().HardwareAddr, nil
}

func permanent(index int, ip netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: index, Family: family(ip), State: netlink.NUD_PERMANENT, IP: net.IP(ip.AsSlice()), HardwareAddr: mac}
}

// disconnect removes the link and the namespace. The addresses stay the pod's.
func (n *PodNetwork) disconnect(p Pod) error {
	link, err := n.h.LinkByName(linkName(p.UID))
	if err == nil {
		err = n.h.LinkDel(link)
	}
	if err != nil && !isMissingLink(err) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link of pod %s: %w", p.UID, err)
	}
	return deleteNetNS(p.NetNS)
}

// Teardown disconnects a pod and frees its address.
func (n *PodNetwork) Teardown(uid string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	pod, known := n.pods[uid]
	if !known {
		return nil
	}
	if err := n.remove(pod); err != nil {
		return fmt.Errorf("disconnect pod %s: %w", pod.Name, err)
	}
	return nil
}

// remove is called with mu held. The record goes last.
func (n *PodNetwork) remove(p Pod) error {
	if err := n.disconnect(p); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(n.cfg.Dir, p.UID+recordExt)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	delete(n.pods, p.UID)
	n.free(p)
	return nil
}

// List returns the pods that have an address, sorted by UID.
func (n *PodNetwork) List() []Pod {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]Pod, 0, len(n.pods))
	for _, p := range n.pods {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Pod) int { return strings.Compare(a.UID, b.UID) })
	return out
}

// Reconcile disconnects every pod that live does not know.
func (n *PodNetwork) Reconcile(live func(uid string) bool) error {
	var errs []error
	for _, p := range n.List() {
		if !live(p.UID) {
			errs = append(errs, n.Teardown(p.UID))
		}
	}
	return errors.Join(errs...)
}
