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
	// Node is this node's name, empty for a server; NodeIPs the addresses at which the peers
	// know this machine, or soon will, at most one of each family. What pods have of a
	// family goes between the nodes' addresses of it.
	Node    string
	NodeIPs []netip.Addr
	Tunnel  Tunnel
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
	guarded map[*ipFamily]guard // what the kernel has, without those of which that is not known
	// masqueraded is the same, nil when it is not known.
	masqueraded map[*ipFamily]hidden
}

// NewMesh returns a Mesh that has done nothing yet. What an earlier one has left is
// taken over by the first Sync.
func NewMesh(cfg MeshConfig) *Mesh { return &Mesh{cfg: cfg, guarded: map[*ipFamily]guard{}} }

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
	// ReasonTooSmall: the way to the node carries no packets as large as IPv6 needs.
	ReasonTooSmall = "PeerMTUTooSmall"
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
	own, mtus, err := ownAddresses(h, m.cfg.NodeIPs)
	if err != nil {
		return Ways{}, err
	}
	if m.cfg.Server && slices.ContainsFunc(peers, func(p Peer) bool { return p.isNode() && own[p.NodeIP] }) {
		return Ways{MTU: lowestOf(mtus)}, nil
	}
	hops := map[netip.Addr]hop{}
	for _, p := range peers {
		if _, known := hops[p.NodeIP]; !known && !own[p.NodeIP] {
			hops[p.NodeIP] = hopTo(h, p.NodeIP)
		}
	}
	want := m.cfg.plan(peers, own, hops, mtus)
	return Ways{MTU: want.mtu, Refused: want.refused}, errors.Join(m.apply(h, want), m.applyMasquerades(m.cfg.masquerades(peers)))
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
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, cluster := range m.cfg.Pods {
		if err := h.RouteReplace(kernelRoute(sealed(cluster), routeTo{way: refused}, nil, Same(cluster.Addr(), m.cfg.NodeIPs))); err != nil {
			return fmt.Errorf("close the way to pods in the clear: %w", err)
		}
		if err := m.applyGuard(familyOf(cluster.Addr()), guard{seal: true, cluster: cluster}); err != nil {
			return err
		}
	}
	return nil
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

// wayTo decides how packets get to a peer. Without an address of the family this machine
// has no end of a tunnel.
func (c MeshConfig) wayTo(p Peer, at hop) way {
	if !Same(p.NodeIP, c.NodeIPs).IsValid() {
		c.Tunnel = TunnelNever
	}
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

// What encapsulation adds to a packet besides the outer IP header: UDP header, and VXLAN's
// own with the inner Ethernet header, or WireGuard's own with its authentication tag.
const (
	vxlanOverhead     = 8 + 8 + 14
	wireGuardOverhead = 8 + 32
)

// minMTU is the least that a link must carry to have IPv6 (RFC 8200, section 5).
const minMTU = 1280

// plan is what the kernel is to have.
type plan struct {
	families []*familyPlan
	// wireGuard is its link's, which is for both families.
	wireGuard      bool
	wireGuardPeers []wireGuardPeer
	wireGuardMTU   int
	mtu            int
	refused        []Refusal
}

// familyPlan is that of one family's packets, and of the tunnel between addresses of it.
type familyPlan struct {
	*ipFamily
	nodeIP netip.Addr // this machine's; invalid if it has none
	base   int        // the MTU of the link that has it
	routes map[routeKey]routeTo
	// vxlan says that there is the tunnel, vxlanPeers are those that it leads to.
	vxlan      bool
	vxlanPeers []netip.Addr
	vxlanMTU   int
	// pods are this node's, cluster all; invalid where there are none.
	pods, cluster netip.Prefix
	guard         guard
}

// of is the plan of an address's family, nil for one that is not looked at.
func (p plan) of(a netip.Addr) *familyPlan {
	for _, f := range p.families {
		if f.ipFamily == familyOf(a) {
			return f
		}
	}
	return nil
}

type routeKey struct {
	table int
	to    netip.Prefix
}

// sealed is the route of all pods: with encryption it leads nowhere.
func sealed(cluster netip.Prefix) routeKey {
	return routeKey{unix.RT_TABLE_MAIN, cluster.Masked()}
}

type routeTo struct {
	way  way
	via  netip.Addr // of direct and tunnelled ones
	link int        // of direct ones
	mtu  int        // of tunnelled and encrypted ones
}

// admit sorts out which peers can be led to, nodes first: a server that is one, too, has
// its node's way. pods are the ranges of this node. Nodes write their addresses themselves,
// and none may have what is others' by them.
func (c MeshConfig) admit(peers []Peer, own map[netip.Addr]bool) (admitted []Peer, pods []netip.Prefix, bad []Refusal) {
	var taken []netip.Prefix
	macs := map[string]netip.Addr{}
	for _, ip := range c.NodeIPs {
		macs[vxlanMAC(ip).String()] = ip
	}
	for _, p := range peers {
		if c.isSelf(p) {
			taken, pods = append(taken, p.PodCIDR.Masked()), append(pods, p.PodCIDR.Masked())
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
		case cmp.Or(macs[vxlanMAC(p.NodeIP).String()], p.NodeIP) != p.NodeIP:
			why = fmt.Sprintf("in a tunnel its address %s cannot be told from %s: give it another one", p.NodeIP, macs[vxlanMAC(p.NodeIP).String()])
		}
		if why != "" {
			bad = append(bad, Refusal{p, ReasonBadAddresses, why})
			continue
		}
		taken = append(taken, p.PodCIDR)
		macs[vxlanMAC(p.NodeIP).String()] = p.NodeIP
		admitted = append(admitted, p)
	}
	for _, p := range peers {
		if !p.isNode() && !own[p.NodeIP] && c.isNodeAddress(p.NodeIP) && cmp.Or(macs[vxlanMAC(p.NodeIP).String()], p.NodeIP) == p.NodeIP {
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

func only(peers []Peer, is func(Peer) bool) []Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(p Peer) bool { return !is(p) })
}

// apply makes the kernel have what the plan says. Packets are guarded before there are
// tunnels, and until there are none.
func (m *Mesh) apply(h *netlink.Handle, want plan) error {
	for _, f := range want.families {
		if f.guard.empty() {
			continue
		}
		if err := m.applyGuard(f.ipFamily, f.guard); err != nil {
			return err // else strangers would come through
		}
	}
	var errs []error
	wireGuard := 0
	if want.wireGuard {
		link, err := ensureWireGuard(h, m.cfg, want.wireGuardMTU)
		if err == nil {
			wireGuard, err = link, syncWireGuardPeers(m.cfg, want.wireGuardPeers)
		}
		errs = append(errs, err)
	}
	for _, f := range want.families {
		index := map[way]int{encrypted: wireGuard}
		if f.vxlan {
			link, err := ensureVXLAN(h, m.cfg.NetNS, f.nodeIP, f.vxlanMTU)
			if err == nil {
				index[tunnelled], err = link, syncVXLANPeers(h, link, f.vxlanPeers)
			}
			// Where nobody needs it the kernel need not have it.
			if err != nil && (len(f.vxlanPeers) > 0 || !errors.Is(err, unix.EOPNOTSUPP)) {
				errs = append(errs, err)
			}
		}
		errs = append(errs, syncPeerRoutes(h, f, index), syncPeerRule(h, f))
		if !f.vxlan {
			errs = append(errs, deleteLink(h, f.vxlanLink()))
		}
	}
	if !want.wireGuard {
		errs = append(errs, deleteLink(h, wireGuardLink))
	}
	for _, f := range want.families {
		if f.guard.empty() {
			errs = append(errs, m.applyGuard(f.ipFamily, f.guard))
		}
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
