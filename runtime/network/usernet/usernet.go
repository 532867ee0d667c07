// Package usernet carries what leaves a cluster of network namespaces, whose pods the
// machine's own network does not know: a TUN device in the hub's namespace leads to a
// TCP/IP stack in this process, which makes each connection once more, from where the
// process is. It is what slirp is to virtual machines: nothing on the machine has to be
// changed, and no right is needed.
package usernet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"gitk8s.dev/gitk8s/runtime/network"
)

const (
	// Device is the name of the TUN device.
	Device = "gitk8s-out"
	mtu    = 1500
	// handshakes bounds the connections that are being made at the same time, flows
	// those that are open, and those of datagrams.
	handshakes = 1024
	flows      = 8192
	// dialTimeout is for a connection outside, udpIdle ends a flow of datagrams.
	dialTimeout = 10 * time.Second
	udpIdle     = time.Minute
	// farewell is how long the ends of connections may take to be told to pods.
	farewell = time.Second
)

// Config of a Net.
type Config struct {
	// NetNS is the path of the namespace that the device is made in; forwarding and the
	// default route there lead to it.
	NetNS string
	// Dial makes the connections, to numeric addresses.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Refuse are addresses that lead nowhere outside: the cluster's own. Those of
	// loopback, of links and of groups never do.
	Refuse []netip.Prefix
}

// Net is a way out. It ends with the process at the latest, and with it what is under way.
type Net struct {
	cfg    Config
	ctx    context.Context
	end    context.CancelFunc
	device *os.File
	stack  *stack.Stack

	mu   sync.Mutex
	open int
	idle *sync.Cond // of mu: nothing is open
}

// Open makes the device and leads what is sent to it outside.
func Open(cfg Config) (*Net, error) {
	n := &Net{cfg: cfg}
	n.idle = sync.NewCond(&n.mu)
	n.ctx, n.end = context.WithCancel(context.Background())
	err := network.InNetNS(cfg.NetNS, n.makeDevice)
	if err == nil {
		err = n.makeStack()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("a way out for pods: %w", err), n.Close())
	}
	return n, nil
}

// makeDevice runs in the namespace.
func (n *Net) makeDevice() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	n.device = os.NewFile(uintptr(fd), Device)
	req, err := unix.NewIfreq(Device)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("make device %s: %w", Device, err)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(Device)
	if err != nil {
		return fmt.Errorf("find device %s: %w", Device, err)
	}
	if err := errors.Join(h.LinkSetMTU(link, mtu), h.LinkSetUp(link)); err != nil {
		return fmt.Errorf("set device %s up: %w", Device, err)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		r := &netlink.Route{LinkIndex: link.Attrs().Index, Family: family, Dst: everywhere(family), Scope: netlink.SCOPE_LINK}
		if err := h.RouteReplace(r); err != nil && family == netlink.FAMILY_V4 {
			return fmt.Errorf("add default route: %w", err)
		}
	}
	return network.Forward()
}

func everywhere(family int) *net.IPNet {
	size := 4
	if family == netlink.FAMILY_V6 {
		size = 16
	}
	return &net.IPNet{IP: make(net.IP, size), Mask: net.CIDRMask(0, 8*size)}
}

func (n *Net) makeStack() error {
	n.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	link, err := fdbased.New(&fdbased.Options{FDs: []int{int(n.device.Fd())}, MTU: mtu})
	if err != nil {
		return err
	}
	const nic = 1
	sack := tcpip.TCPSACKEnabled(true)
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(n.stack, 0, handshakes, n.tcp).HandlePacket)
	n.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(n.stack, n.udp).HandlePacket)
	for _, err := range []tcpip.Error{
		n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack),
		n.stack.CreateNIC(nic, silent(link)),
		// Every address is answered for, and answered from.
		n.stack.SetPromiscuousMode(nic, true),
		n.stack.SetSpoofing(nic, true),
	} {
		if err != nil {
			return fmt.Errorf("start the stack: %s", err)
		}
	}
	n.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}})
	return nil
}

// Close ends everything that is under way, which pods hear of, and removes the device.
func (n *Net) Close() error {
	n.end()
	defer time.AfterFunc(farewell, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.open = 0
		n.idle.Broadcast()
	}).Stop()
	n.mu.Lock()
	for n.open > 0 {
		n.idle.Wait()
	}
	n.mu.Unlock()
	if n.stack != nil {
		n.stack.Close()
		n.stack.Wait()
	}
	if n.device != nil {
		return n.device.Close()
	}
	return nil
}

// leadsOut says whether an address is one outside.
func (n *Net) leadsOut(ip netip.Addr) bool {
	if ip.Is4In6() {
		return false // the machine would take it for the IPv4 address, which the below would not
	}
	if ip.IsLoopback() || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLinkLocalUnicast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return false
	}
	for _, p := range n.cfg.Refuse {
		if p.Contains(ip) {
			return false
		}
	}
	return true
}

// enter counts a flow, unless there are too many.
func (n *Net) enter() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open >= flows || n.ctx.Err() != nil {
		return false
	}
	n.open++
	return true
}

func (n *Net) leave() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open--; n.open <= 0 {
		n.idle.Broadcast()
	}
}
