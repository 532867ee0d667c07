package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol marks the routes and rules that a Mesh owns (see
// /etc/iproute2/rt_protos; the number is free there).
const routeProtocol = 203

// peersTable is the routing table in which pods look for the addresses of other
// machines before they do so in the main one; peersPriority is its rule's.
const (
	peersTable    = 203
	peersPriority = 20300
)

// Peer is another machine of the cluster.
type Peer struct {
	// Name of the node; empty for a server, which has no pods.
	Name   string
	NodeIP netip.Addr
	// PodCIDR of the node's pods; the zero value is that of a server.
	PodCIDR netip.Prefix
	// Key is the node's public key for WireGuard, if it has published one.
	Key PublicKey
}

func (p Peer) isNode() bool { return p.PodCIDR.IsValid() }

// Tunnel says to which peers packets of pods go in VXLAN.
type Tunnel string

// The values of --tunnel.
const (
	// TunnelAuto is for those that are reached by way of a router: it knows nothing
	// of pods.
	TunnelAuto Tunnel = "auto"
	// TunnelAlways is for all.
	TunnelAlways Tunnel = "always"
	// TunnelNever is for none: routers between the nodes know where pods are.
	TunnelNever Tunnel = "never"
)

// ParseTunnel reads a value of --tunnel.
func ParseTunnel(s string) (Tunnel, error) {
	switch t := Tunnel(s); t {
	case TunnelAuto, TunnelAlways, TunnelNever:
		return t, nil
	}
	return "", fmt.Errorf("%q is none of %s, %s and %s", s, TunnelAuto, TunnelAlways, TunnelNever)
}

// MeshConfig of a machine's Mesh.
type MeshConfig struct {
	// NetNS is the path of the machine's namespace; empty for the caller's own.
	NetNS string
	// Node is this node's name, empty for a server; NodeIP the address at which the peers
	// know this machine, or soon will.
	Node   string
	NodeIP netip.Addr
	Tunnel Tunnel
	// Pods and Services are the cluster's ranges.
	Pods, Services []netip.Prefix
	// Key, if it is not zero, is this node's for WireGuard: what its pods, and itself,
	// exchange with other nodes' pods is encrypted, or not sent at all.
	Key PrivateKey
	// Masquerade hides this node's pods behind its address for all but the cluster.
	Masquerade bool
	// Server: the machine runs no pods of this Mesh's. If it is a node besides, its
	// worker has a Mesh of its own there, and this one does nothing.
	Server bool
}

// Mesh keeps the ways from a machine to the other ones' pods: plain routes where they
// share a link, and tunnels where they do not or where the traffic is encrypted.
//
// What goes through a tunnel is what has a pod at one end: pods' packets to each
// other, those of a node to other nodes' pods, and pods' to other machines' own
// addresses, for the answers must come back the same way. All others, also the outer
// packets of the tunnels themselves, go as the machine's own routes say.
type Mesh struct {
	cfg MeshConfig

	mu      sync.Mutex
	guarded *guard // what the kernel has, nil when that is not known
	// masqueraded is the same.
	masqueraded map[*ipFamily]hidden
}

// NewMesh returns a Mesh that has done nothing yet. What an earlier one has left is
// taken over by the first Sync.
func NewMesh(cfg MeshConfig) *Mesh { return &Mesh{cfg: cfg} }

// Ways is what a Sync has come to.
type Ways struct {
	// MTU that pods' links may have, so that what they send arrives in one piece
	// whichever peer it goes to.
	MTU int
	// Refused are the nodes to which there is no way, for the reasons given.
	Refused []Refusal
}

// Refusal says why there is no way to a node.
type Refusal struct {
	Peer
	// Reason is one word, that of an event.
	Reason, Message string
}

// The reasons of refusals.
const (
	// ReasonNotEncrypted: traffic is to be encrypted, and the node has no key of its own.
	ReasonNotEncrypted = "PeerNotEncrypted"
	// ReasonBadAddresses: what the node says are its addresses cannot be.
	ReasonBadAddresses = "PeerHasBadAddresses"
)

// Sync makes the ways to the peers' pods what peers says, oldest first, and no other.
// Of two peers with the same address or key the older one has it. A peer with an
// address of this machine is left out. What can be done is done, also after an error.
func (m *Mesh) Sync(peers []Peer) (Ways, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, err := handle(m.cfg.NetNS, unix.NETLINK_ROUTE)
	if err != nil {
		return Ways{}, err
	}
	defer h.Close()
	own, base, err := ownAddresses(h, m.cfg.NodeIP)
	if err != nil {
		return Ways{}, err
	}
	if m.cfg.Server && slices.ContainsFunc(peers, func(p Peer) bool { return p.isNode() && own[p.NodeIP] }) {
		return Ways{MTU: base}, nil
	}
	hops := map[netip.Addr]hop{}
	for _, p := range peers {
		if _, known := hops[p.NodeIP]; !known && !own[p.NodeIP] {
			hops[p.NodeIP] = hopTo(h, p.NodeIP)
		}
	}
	want := m.cfg.plan(peers, own, hops, base)
	return Ways{MTU: want.mtu, Refused: want.refused}, errors.Join(m.apply(h, want), syncIPv6(h, want.ipv6, len(peers) > 0), m.applyMasquerades(m.cfg.masquerades(peers)))
}

// Changes is Changes in the Mesh's namespace.
func (m *Mesh) Changes(ctx context.Context, changed func()) error {
	return Changes(ctx, m.cfg.NetNS, changed)
}

// Seal keeps what pods and others exchange from leaving and from being taken in the clear
// before the first Sync, if it is to be encrypted. What goes through WireGuard by what an
// earlier Mesh has left goes on.
func (m *Mesh) Seal() error {
	if m.cfg.Key.IsZero() {
		return nil
	}
	h, err := handle(m.cfg.NetNS, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.RouteReplace(kernelRoute(m.cfg.sealed(), routeTo{way: refused}, nil, m.cfg.NodeIP)); err != nil {
		return fmt.Errorf("close the way to pods in the clear: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.applyGuard(guard{seal: true, cluster: ofFamily(m.cfg.Pods, false)})
}

// way is how packets get to a peer.
type way int

const (
	direct    way = iota // by a plain route
	tunnelled            // in VXLAN
	encrypted            // in WireGuard
	unmanaged            // as the machine's own routes say
	refused              // not at all
)

// wayTo decides how packets get to a peer.
func (c MeshConfig) wayTo(p Peer, at hop) way {
	switch {
	case !c.Key.IsZero() && p.isNode() && p.Key.IsZero():
		return refused
	case !c.Key.IsZero() && p.isNode():
		return encrypted
	case c.Tunnel == TunnelAlways:
		return tunnelled
	case at.onLink && p.isNode():
		return direct
	case at.onLink || c.Tunnel == TunnelNever:
		return unmanaged
	}
	return tunnelled
}

// What encapsulation adds to a packet: outer IPv4 header, UDP header, and VXLAN's own
// with the inner Ethernet header, or WireGuard's own with its authentication tag.
const (
	vxlanOverhead     = 20 + 8 + 8 + 14
	wireGuardOverhead = 20 + 8 + 32
)

// plan is what the kernel is to have.
type plan struct {
	routes map[routeKey]routeTo
	// vxlan are the peers that VXLAN leads to, and its device's MTU; wireGuard the same.
	vxlan, wireGuard       bool
	vxlanPeers             []netip.Addr
	wireGuardPeers         []wireGuardPeer
	vxlanMTU, wireGuardMTU int
	// pods are this node's, cluster all of IPv4.
	pods    netip.Prefix
	cluster netip.Prefix
	guard   guard
	ipv6    []Peer // reached by plain routes
	mtu     int
	refused []Refusal
}

type routeKey struct {
	table int
	to    netip.Prefix
}

// sealed is the route of all pods: with encryption it leads nowhere.
func (c MeshConfig) sealed() routeKey {
	return routeKey{unix.RT_TABLE_MAIN, ofFamily(c.Pods, false).Masked()}
}

type routeTo struct {
	way  way
	via  netip.Addr // of direct and tunnelled ones
	link int        // of direct ones
	mtu  int        // of tunnelled and encrypted ones
}

// admit sorts out which peers can be led to, nodes first: a server that is one, too, has
// its node's way. pods is the range of this node. Nodes write their addresses themselves,
// and none may have what is others' by them.
func (c MeshConfig) admit(peers []Peer, own map[netip.Addr]bool) (admitted []Peer, pods netip.Prefix, bad []Refusal) {
	var taken []netip.Prefix
	for _, p := range peers {
		if c.isSelf(p) {
			taken = append(taken, p.PodCIDR.Masked())
			if p.PodCIDR.Addr().Is4() {
				pods = p.PodCIDR.Masked()
			}
		}
	}
	for _, p := range only(peers, Peer.isNode) {
		if c.isSelf(p) || own[p.NodeIP] || p.NodeIP.Is4() != p.PodCIDR.Addr().Is4() {
			continue
		}
		why := ""
		all := ofFamily(c.Pods, p.NodeIP.Is6())
		switch p.PodCIDR = p.PodCIDR.Masked(); {
		case p.PodCIDR.Bits() < all.Bits() || !all.Contains(p.PodCIDR.Addr()):
			why = fmt.Sprintf("its pods' range %s is not in the cluster's, %s", p.PodCIDR, all)
		case slices.ContainsFunc(taken, p.PodCIDR.Overlaps):
			why = fmt.Sprintf("its pods' range %s is an older node's, or this one's", p.PodCIDR)
		case !c.isNodeAddress(p.NodeIP):
			why = fmt.Sprintf("no node can have the address %s", p.NodeIP)
		}
		if why != "" {
			bad = append(bad, Refusal{p, ReasonBadAddresses, why})
			continue
		}
		taken = append(taken, p.PodCIDR)
		admitted = append(admitted, p)
	}
	for _, p := range peers {
		if !p.isNode() && !own[p.NodeIP] && c.isNodeAddress(p.NodeIP) {
			admitted = append(admitted, p)
		}
	}
	return admitted, pods, bad
}

func (c MeshConfig) isSelf(p Peer) bool { return c.Node != "" && p.Name == c.Node && p.isNode() }

// isNodeAddress says whether an address may be a machine's: it is nobody's pod, and no
// service.
func (c MeshConfig) isNodeAddress(a netip.Addr) bool {
	has := func(p netip.Prefix) bool { return p.Contains(a) }
	return a.IsGlobalUnicast() && !slices.ContainsFunc(c.Pods, has) && !slices.ContainsFunc(c.Services, has)
}

// plan puts together what the ways to the peers take. base is the MTU of the machine's
// own link.
func (c MeshConfig) plan(peers []Peer, own map[netip.Addr]bool, hops map[netip.Addr]hop, base int) plan {
	out := plan{routes: map[routeKey]routeTo{}, mtu: base, cluster: ofFamily(c.Pods, false)}
	seal := !c.Key.IsZero()
	hosts, keys := map[netip.Addr]bool{}, map[PublicKey]bool{}
	peers, out.pods, out.refused = c.admit(peers, own)
	for _, p := range peers {
		if p.NodeIP.Is6() {
			out.ipv6 = append(out.ipv6, p)
			continue
		}
		at, first := hops[p.NodeIP], !hosts[p.NodeIP]
		if !p.isNode() && !first {
			continue
		}
		w, why := c.wayTo(p, at), "its worker runs without --encrypt"
		if w == encrypted && keys[p.Key] {
			w, why = refused, "its key is another node's"
		}
		// A Node without a key may be what is left of one that had this address before.
		hosts[p.NodeIP] = hosts[p.NodeIP] || w != refused
		to := routeTo{way: w}
		switch w {
		case direct:
			to.via, to.link = p.NodeIP, at.link
			out.mtu = lowest(out.mtu, at.mtu)
		case tunnelled:
			to.via, to.mtu = p.NodeIP, inside(at.mtu, base, vxlanOverhead)
			out.vxlanMTU, out.mtu = max(out.vxlanMTU, to.mtu), min(out.mtu, to.mtu)
			if first {
				out.vxlanPeers = append(out.vxlanPeers, p.NodeIP)
			}
		case encrypted:
			keys[p.Key] = true
			to.mtu = inside(at.mtu, base, wireGuardOverhead)
			out.wireGuardMTU, out.mtu = max(out.wireGuardMTU, to.mtu), min(out.mtu, to.mtu)
			out.wireGuardPeers = append(out.wireGuardPeers, newWireGuardPeer(p, first))
		case refused:
			out.refused = append(out.refused, Refusal{p, ReasonNotEncrypted, "traffic of pods is to be encrypted, but " + why})
		case unmanaged:
			out.mtu = lowest(out.mtu, at.mtu)
		}
		if p.isNode() && w != unmanaged {
			out.routes[routeKey{unix.RT_TABLE_MAIN, p.PodCIDR.Masked()}] = to
		}
		if first && (w == tunnelled || w == encrypted || w == refused) {
			out.routes[routeKey{peersTable, host(p.NodeIP)}] = to
		}
		out.guard.add(p, seal)
	}
	if seal {
		// What is not known yet, or not any more, is not sent by the default route.
		out.routes[c.sealed()] = routeTo{way: refused}
	}
	out.wireGuard = seal
	// A node is ready for peers that tunnel to it even if it need not do so itself:
	// the two may see the network between them differently.
	out.vxlan = len(out.vxlanPeers) > 0 || c.Tunnel != TunnelNever && !seal && !c.Server && len(hosts) > 0
	if out.vxlanMTU == 0 {
		out.vxlanMTU = base - vxlanOverhead
	}
	if out.wireGuardMTU == 0 {
		out.wireGuardMTU = base - wireGuardOverhead
	}
	out.guard.finish(out, seal)
	return out
}

func only(peers []Peer, is func(Peer) bool) []Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(p Peer) bool { return !is(p) })
}

// lowest is the smaller MTU, unless the second one is not known.
func lowest(a, b int) int {
	if b == 0 {
		return a
	}
	return min(a, b)
}

// inside is what fits into an encapsulated packet on a way with the MTU outer, or
// base where there is no way at present.
func inside(outer, base, overhead int) int { return cmp.Or(outer, base) - overhead }

// apply makes the kernel have what the plan says. Packets are guarded before there are
// tunnels, and until there are none.
func (m *Mesh) apply(h *netlink.Handle, want plan) error {
	if !want.guard.empty() {
		if err := m.applyGuard(want.guard); err != nil {
			return err // else strangers would come through
		}
	}
	index := map[way]int{}
	var errs []error
	if want.vxlan {
		link, err := ensureVXLAN(h, m.cfg.NetNS, m.cfg.NodeIP, want.vxlanMTU)
		if err == nil {
			index[tunnelled], err = link, syncVXLANPeers(h, link, want.vxlanPeers)
		}
		// Where nobody needs it the kernel need not have it.
		if err != nil && (len(want.vxlanPeers) > 0 || !errors.Is(err, unix.EOPNOTSUPP)) {
			errs = append(errs, err)
		}
	}
	if want.wireGuard {
		link, err := ensureWireGuard(h, m.cfg, want.wireGuardMTU)
		if err == nil {
			index[encrypted], err = link, syncWireGuardPeers(m.cfg, want.wireGuardPeers)
		}
		errs = append(errs, err)
	}
	errs = append(errs, syncPeerRoutes(h, want.routes, index, m.cfg.NodeIP), syncPeerRule(h, want))
	if !want.vxlan {
		errs = append(errs, deleteLink(h, vxlanLink))
	}
	if !want.wireGuard {
		errs = append(errs, deleteLink(h, wireGuardLink))
	}
	if want.guard.empty() {
		errs = append(errs, m.applyGuard(want.guard))
	}
	return errors.Join(errs...)
}

func deleteLink(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkDel(link)
	}
	if err != nil && !isMissingLink(err) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}
