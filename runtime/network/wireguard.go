package network

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

const (
	wireGuardLink = "gitk8s-wg"
	// wireGuardPort is that of WireGuard's own examples.
	wireGuardPort = 51820
	// wireGuardKeyFile is the file with a node's private key.
	wireGuardKeyFile = "wireguard.key"
)

// PublicKey is by which peers know a node in WireGuard; the zero value is none.
type PublicKey [wgtypes.KeyLen]byte

// IsZero says whether there is no key.
func (k PublicKey) IsZero() bool { return k == PublicKey{} }

// String is the key in base64, as WireGuard's tools write it.
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// ParsePublicKey reads what String writes.
func ParsePublicKey(s string) (PublicKey, error) {
	k, err := wgtypes.ParseKey(s)
	if err == nil && PublicKey(k).IsZero() {
		err = errors.New("it is zero")
	}
	if err != nil {
		return PublicKey{}, fmt.Errorf("WireGuard key: %w", err)
	}
	return PublicKey(k), nil
}

// PrivateKey is a node's own; the zero value is none.
type PrivateKey struct{ key wgtypes.Key }

// IsZero says whether there is no key.
func (k PrivateKey) IsZero() bool { return k.key == wgtypes.Key{} }

// Public is the key to publish.
func (k PrivateKey) Public() PublicKey { return PublicKey(k.key.PublicKey()) }

// EnsureWireGuardKey reads a node's key from its directory, and makes it if there is
// none. Nobody but its owner may read the file.
func EnsureWireGuardKey(dir string) (PrivateKey, error) {
	file := filepath.Join(dir, wireGuardKeyFile)
	b, err := os.ReadFile(file)
	if err == nil {
		k, err := wgtypes.ParseKey(string(b))
		if err == nil && k == (wgtypes.Key{}) {
			err = errors.New("it is zero")
		}
		if err != nil {
			return PrivateKey{}, fmt.Errorf("WireGuard key in %s: %w; delete the file for a new one", file, err)
		}
		return PrivateKey{k}, os.Chmod(file, 0o600)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return PrivateKey{}, fmt.Errorf("WireGuard key: %w", err)
	}
	k, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return PrivateKey{}, fmt.Errorf("make WireGuard key: %w", err)
	}
	if err := os.WriteFile(file+".tmp", []byte(k.String()), 0o600); err != nil {
		return PrivateKey{}, fmt.Errorf("WireGuard key: %w", err)
	}
	return PrivateKey{k}, os.Rename(file+".tmp", file)
}

// CheckWireGuard says what is missing for encrypted traffic in a namespace, empty for
// the caller's own.
func CheckWireGuard(netNS string) error {
	h, err := handle(netNS, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	if _, err := h.LinkByName(wireGuardLink); err == nil {
		return nil
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = wireGuardLink
	link := &netlink.Wireguard{LinkAttrs: attrs}
	switch err := h.LinkAdd(link); {
	case errors.Is(err, unix.EOPNOTSUPP):
		return errors.New("the kernel has no WireGuard: load its module wireguard (Linux 5.6 or newer), or start without --encrypt on all nodes")
	case err != nil:
		return fmt.Errorf("make a link for WireGuard: %w", err)
	}
	return h.LinkDel(link)
}

// wireGuardPeer is a peer as WireGuard has it.
type wireGuardPeer struct {
	key      PublicKey
	name     string // of the node
	endpoint netip.AddrPort
	// allowed are the addresses that it may send from, and that are sent to it.
	allowed []netip.Prefix
	v4, v6  bool // it has such addresses of pods
}

// takes says whether a peer is the same node with its addresses of the other family.
func (w *wireGuardPeer) takes(p Peer) bool {
	return w.name == p.Name && (p.NodeIP.Is6() && !w.v6 || p.NodeIP.Is4() && !w.v4)
}

// add allows a node its pods and, if its address is its own, that.
func (w *wireGuardPeer) add(p Peer, address bool) {
	w.v4, w.v6 = w.v4 || p.NodeIP.Is4(), w.v6 || p.NodeIP.Is6()
	w.allowed = append(w.allowed, p.PodCIDR.Masked())
	if address {
		w.allowed = append(w.allowed, host(p.NodeIP))
	}
}

// sorted has what is allowed in order.
func (w *wireGuardPeer) sorted() wireGuardPeer {
	slices.SortFunc(w.allowed, netip.Prefix.Compare)
	return *w
}

func ensureWireGuard(h *netlink.Handle, cfg MeshConfig, mtu int) (int, error) {
	link, err := h.LinkByName(wireGuardLink)
	if isMissingLink(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = wireGuardLink, mtu
		if err := h.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs}); err != nil {
			return 0, fmt.Errorf("make %s: %w", wireGuardLink, err)
		}
		link, err = h.LinkByName(wireGuardLink)
	}
	if err != nil {
		return 0, fmt.Errorf("find %s: %w", wireGuardLink, err)
	}
	return link.Attrs().Index, tunnelUp(h, cfg.NetNS, link, cfg.NodeIPs, mtu)
}

// syncWireGuardPeers changes what differs: a peer that stays keeps its session.
func syncWireGuardPeers(cfg MeshConfig, peers []wireGuardPeer) error {
	var c *wgctrl.Client
	err := inNetNS(cfg.NetNS, func() (err error) {
		c, err = wgctrl.New()
		return err
	})
	if err != nil {
		return fmt.Errorf("WireGuard: %w", err)
	}
	defer c.Close()
	dev, err := c.Device(wireGuardLink)
	if err != nil {
		return fmt.Errorf("look at %s: %w", wireGuardLink, err)
	}
	var change wgtypes.Config
	if dev.PrivateKey != cfg.Key.key {
		change.PrivateKey = &cfg.Key.key
	}
	if port := wireGuardPort; dev.ListenPort != port {
		change.ListenPort = &port
	}
	change.Peers = wireGuardChanges(dev.Peers, peers)
	if change.PrivateKey == nil && change.ListenPort == nil && len(change.Peers) == 0 {
		return nil
	}
	if err := c.ConfigureDevice(wireGuardLink, change); err != nil {
		return fmt.Errorf("configure %s: %w", wireGuardLink, err)
	}
	return nil
}

// wireGuardChanges leads from the peers that there are to those that are wanted.
func wireGuardChanges(have []wgtypes.Peer, want []wireGuardPeer) []wgtypes.PeerConfig {
	known := map[PublicKey]wgtypes.Peer{}
	for _, p := range have {
		known[PublicKey(p.PublicKey)] = p
	}
	var out, remove []wgtypes.PeerConfig
	for _, p := range want {
		old, there := known[p.key]
		delete(known, p.key)
		if there && samePeer(old, p) {
			continue
		}
		c := wgtypes.PeerConfig{PublicKey: wgtypes.Key(p.key), ReplaceAllowedIPs: true, Endpoint: net.UDPAddrFromAddrPort(p.endpoint)}
		for _, a := range p.allowed {
			c.AllowedIPs = append(c.AllowedIPs, *ipNet(a))
		}
		out = append(out, c)
	}
	for key := range known {
		remove = append(remove, wgtypes.PeerConfig{PublicKey: wgtypes.Key(key), Remove: true})
	}
	return slices.Concat(remove, out) // an address may go from one to another
}

func samePeer(have wgtypes.Peer, want wireGuardPeer) bool {
	if have.Endpoint == nil || have.Endpoint.AddrPort() != want.endpoint {
		return false
	}
	var allowed []netip.Prefix
	for _, a := range have.AllowedIPs {
		ip, _ := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		allowed = append(allowed, netip.PrefixFrom(ip.Unmap(), bits))
	}
	slices.SortFunc(allowed, netip.Prefix.Compare)
	return slices.Equal(allowed, want.allowed)
}
