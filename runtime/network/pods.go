package network

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
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
	// gateway is the same in every pod. It exists on no link: the pod's permanent
	// neighbour entry leads to the node's end of the pair.
	gateway = netip.MustParseAddr("169.254.1.1")
	hostMAC = net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}
)

// PodConfig of a node's PodNetwork.
type PodConfig struct {
	// Dir keeps the addresses given out and pins the pods' namespaces.
	Dir string
	// NetNS is the path of the node's namespace; empty means the caller's own.
	NetNS string
	// PodCIDR is the node's share of the pods' addresses.
	PodCIDR netip.Prefix
	// NodeIP is the source address of what the node itself sends to its pods.
	NodeIP netip.Addr
}

// PodNetwork connects the pods of one node, each by a pair of links and a route of
// its own: no bridge, so that every packet passes the node's forwarding path, where
// services and policies apply.
type PodNetwork struct {
	cfg PodConfig
	h   *netlink.Handle

	mu   sync.Mutex
	pods map[string]Pod
	used map[netip.Addr]string
	last netip.Addr
	// mtu of the pods' links, 0 for the kernel's default; limited: all have it.
	mtu     int
	limited bool
}

// Pod is a pod's place in the network.
type Pod struct {
	UID string
	// Name is namespace/name, for people who look at the records.
	Name string
	IP   netip.Addr
	// NetNS is the path of its namespace.
	NetNS string
	// OwnUsers: the namespace belongs to a user namespace of the pod's own, with the
	// users from UserBase on.
	OwnUsers bool `json:",omitempty"`
}

// NewPodNetwork opens the records and prepares the node: its route to the services'
// addresses.
func NewPodNetwork(cfg PodConfig) (*PodNetwork, error) {
	if !cfg.PodCIDR.IsValid() || !cfg.PodCIDR.Addr().Is4() || cfg.PodCIDR.Bits() > 28 {
		return nil, fmt.Errorf("pod network: %s is no IPv4 range of at least 16 addresses", cfg.PodCIDR)
	}
	cfg.PodCIDR = cfg.PodCIDR.Masked()
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("pod network: %w", err)
	}
	pods, err := readRecords(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("pod network: %w", err)
	}
	if err := prepareForwarding(cfg.NetNS); err != nil {
		return nil, fmt.Errorf("pod network: %w", err)
	}
	h, err := handle(cfg.NetNS, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("pod network: %w", err)
	}
	n := &PodNetwork{cfg: cfg, h: h, pods: map[string]Pod{}, used: map[netip.Addr]string{}, last: cfg.PodCIDR.Addr().Next()}
	for _, p := range pods {
		n.pods[p.UID], n.used[p.IP] = p, p.UID
		if cfg.PodCIDR.Contains(p.IP) && n.last.Less(p.IP) {
			n.last = p.IP
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
func routeServices(h *netlink.Handle, nodeIP netip.Addr) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	r := &netlink.Route{Dst: ipNet(ServiceCIDR), LinkIndex: lo.Attrs().Index, Src: net.IP(nodeIP.AsSlice()), Scope: netlink.SCOPE_LINK}
	if err := h.RouteReplace(r); err != nil {
		return fmt.Errorf("add route to the services %s: %w", ServiceCIDR, err)
	}
	return nil
}

// Close lets go of the kernel; pods stay connected.
func (n *PodNetwork) Close() error {
	n.h.Close()
	return nil
}

// Setup connects a pod, or finds it connected, and returns its namespace and
// address. name is namespace/name of the pod; ownUsers makes the namespace one of a new
// user namespace.
func (n *PodNetwork) Setup(ctx context.Context, uid, name string, ownUsers bool) (string, netip.Addr, error) {
	if err := ctx.Err(); err != nil {
		return "", netip.Addr{}, err
	}
	if !validUID(uid) {
		return "", netip.Addr{}, fmt.Errorf("connect pod %s: bad uid %q", name, uid)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	pod, known := n.pods[uid]
	if known && n.isConnected(pod) {
		return pod.NetNS, pod.IP, nil
	}
	if !known || !n.cfg.PodCIDR.Contains(pod.IP) {
		ip, err := n.allocate()
		if err != nil {
			return "", netip.Addr{}, fmt.Errorf("connect pod %s: %w", name, err)
		}
		pod = Pod{UID: uid, Name: name, IP: ip, NetNS: filepath.Join(n.cfg.Dir, uid+pinExt), OwnUsers: ownUsers}
	}
	// Written before anything is made: what is made can then be found and removed.
	if err := writeRecord(n.cfg.Dir, pod); err != nil {
		return "", netip.Addr{}, fmt.Errorf("connect pod %s: %w", name, err)
	}
	n.pods[uid], n.used[pod.IP] = pod, uid
	if err := n.connect(pod); err != nil {
		return "", netip.Addr{}, errors.Join(fmt.Errorf("connect pod %s: %w", name, err), n.remove(pod))
	}
	return pod.NetNS, pod.IP, nil
}

func validUID(uid string) bool {
	return uid != "" && len(uid) <= 128 && !strings.ContainsAny(uid, "/\x00") && uid[0] != '.'
}

// allocate walks on from the last address given out, so that an address rests for
// as long as possible before another pod gets it.
func (n *PodNetwork) allocate() (netip.Addr, error) {
	first := n.cfg.PodCIDR.Addr().Next().Next() // neither the network nor .1
	size := 1 << (32 - n.cfg.PodCIDR.Bits())
	ip := n.last
	for range size {
		ip = ip.Next()
		if !ip.IsValid() || !n.cfg.PodCIDR.Contains(ip) || !n.cfg.PodCIDR.Contains(ip.Next()) { // not the broadcast address
			ip = first
		}
		if _, taken := n.used[ip]; !taken {
			n.last = ip
			return ip, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("all %d addresses of %s are taken", size-3, n.cfg.PodCIDR)
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
	routes, err := n.h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: ipNet(netip.PrefixFrom(p.IP, 32)), LinkIndex: link.Attrs().Index}, netlink.RT_FILTER_DST|netlink.RT_FILTER_OIF)
	return err == nil && len(routes) == 1
}

// connect makes everything anew.
func (n *PodNetwork) connect(p Pod) error {
	if err := n.disconnect(p); err != nil {
		return err
	}
	base := uint32(0)
	if p.OwnUsers {
		base = UserBase(p.IP)
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
	// What a pod sends must have its own address: policies go by it.
	err = inNetNS(n.cfg.NetNS, func() error {
		return setSysctls(map[string]string{"net.ipv4.conf." + linkName(p.UID) + ".rp_filter": "1"})
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
	if err := n.h.NeighSet(permanent(link.Attrs().Index, p.IP, mac)); err != nil {
		return fmt.Errorf("add neighbour %s: %w", p.IP, err)
	}
	return n.routeTo(p, link)
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

// insidePod gives the pod its address and its only way out: to the node.
func (n *PodNetwork) insidePod(p Pod) (net.HardwareAddr, error) {
	if err := inNetNS(p.NetNS, podSysctls); err != nil {
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
	if err := upWithAddr(h, link, netip.PrefixFrom(p.IP, 32)); err != nil {
		return nil, err
	}
	index := link.Attrs().Index
	if err := h.NeighSet(permanent(index, gateway, hostMAC)); err != nil {
		return nil, fmt.Errorf("add neighbour %s: %w", gateway, err)
	}
	toGateway := &netlink.Route{Dst: ipNet(netip.PrefixFrom(gateway, 32)), LinkIndex: index, Scope: netlink.SCOPE_LINK}
	if err := h.RouteReplace(toGateway); err != nil {
		return nil, fmt.Errorf("add route to %s: %w", gateway, err)
	}
	def := &netlink.Route{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), LinkIndex: index, Gw: net.IP(gateway.AsSlice())}
	if err := h.RouteReplace(def); err != nil {
		return nil, fmt.Errorf("add default route: %w", err)
	}
	return link.Attrs().HardwareAddr, nil
}

func permanent(index int, ip netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT, IP: net.IP(ip.AsSlice()), HardwareAddr: mac}
}

// disconnect removes the link and the namespace. The address stays the pod's.
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
	delete(n.used, p.IP)
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

// DeletePods removes every pod's namespace below a PodNetwork's directory without
// the node: for cleaning up after a process that was killed. The links go with the
// namespaces.
func DeletePods(dir string) error {
	pods, err := readRecords(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete pods' networks: %w", err)
	}
	var errs []error
	for _, p := range pods {
		if err := emptyAndDelete(p.NetNS); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, os.Remove(filepath.Join(dir, p.UID+recordExt)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("delete pods' networks: %w", err)
	}
	return nil
}

func writeRecord(dir string, p Pod) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, p.UID+recordExt)
	if err := os.WriteFile(file+".tmp", b, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".tmp", file)
}

// readRecords leaves out what a crash of the machine made unreadable; the pods of
// those are gone as well.
func readRecords(dir string) ([]Pod, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"+recordExt))
	if err != nil {
		return nil, err
	}
	var out []Pod
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		uid := strings.TrimSuffix(filepath.Base(f), recordExt)
		pin := filepath.Join(dir, uid+pinExt)
		var p Pod
		if json.Unmarshal(b, &p) != nil || p.UID != uid || !p.IP.Is4() {
			if err := errors.Join(deleteNetNS(pin), os.Remove(f)); err != nil {
				return nil, err
			}
			continue
		}
		p.NetNS = pin
		out = append(out, p)
	}
	return out, nil
}
