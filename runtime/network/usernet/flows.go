package usernet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/nested"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"gitk8s.dev/gitk8s/runtime/network/relay"
)

// destination is where a pod wants to.
func destination(id stack.TransportEndpointID) netip.AddrPort {
	ip, _ := netip.AddrFromSlice(id.LocalAddress.AsSlice())
	return netip.AddrPortFrom(ip, id.LocalPort)
}

// tcp is called on a goroutine of its own for every connection that a pod begins. It is
// accepted once it is made outside, so that the pod hears of a refusal.
func (n *Net) tcp(r *tcp.ForwarderRequest) {
	to := destination(r.ID())
	if !n.leadsOut(to.Addr()) || !n.enter() {
		r.Complete(true)
		return
	}
	defer n.leave()
	ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
	server, err := n.cfg.Dial(ctx, "tcp", to.String())
	cancel()
	if err != nil {
		r.Complete(!errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, syscall.ETIMEDOUT)) // silence is passed on, too
		return
	}
	defer server.Close()
	var queue waiter.Queue
	ep, failed := r.CreateEndpoint(&queue)
	if failed != nil {
		r.Complete(true)
		return
	}
	r.Complete(false)
	ep.SocketOptions().SetKeepAlive(true) // pods go without a word
	client := gonet.NewTCPConn(&queue, ep)
	defer client.Close()
	defer context.AfterFunc(n.ctx, func() {
		_ = client.Close()
		_ = server.Close()
	})()
	relay.Join(client, server)
}

// udp is called for the first datagram of a flow, on the goroutine that reads packets; one
// that it does not take is answered with "port unreachable".
func (n *Net) udp(r *udp.ForwarderRequest) (taken bool) {
	to := destination(r.ID())
	if !n.leadsOut(to.Addr()) || !n.enter() {
		return false
	}
	var queue waiter.Queue
	ep, failed := r.CreateEndpoint(&queue)
	if failed != nil {
		n.leave()
		return false
	}
	client := gonet.NewUDPConn(&queue, ep)
	go func() {
		defer n.leave()
		defer client.Close()
		ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
		server, err := n.cfg.Dial(ctx, "udp", to.String())
		cancel()
		if err != nil {
			return
		}
		defer server.Close()
		defer context.AfterFunc(n.ctx, func() {
			_ = client.Close()
			_ = server.Close()
		})()
		go datagrams(server, client)
		datagrams(client, server)
	}()
	return true
}

// datagrams carries them until both directions have rested long enough, or one end is
// closed.
func datagrams(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		later := time.Now().Add(udpIdle)
		_, _ = to.SetReadDeadline(later), from.SetReadDeadline(later)
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// silent leaves out ICMP: the stack would answer pings to whatever address.
func silent(child stack.LinkEndpoint) stack.LinkEndpoint {
	e := &silentEndpoint{}
	e.Init(child, e)
	return e
}

type silentEndpoint struct{ nested.Endpoint }

// DeliverNetworkPacket implements stack.NetworkDispatcher.
func (e *silentEndpoint) DeliverNetworkPacket(protocol tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	switch protocol {
	case header.IPv4ProtocolNumber:
		if b, ok := pkt.Data().PullUp(header.IPv4MinimumSize); ok && header.IPv4(b).Protocol() == uint8(header.ICMPv4ProtocolNumber) {
			return
		}
	case header.IPv6ProtocolNumber:
		if b, ok := pkt.Data().PullUp(header.IPv6MinimumSize); ok && header.IPv6(b).NextHeader() == uint8(header.ICMPv6ProtocolNumber) {
			return
		}
	}
	e.Endpoint.DeliverNetworkPacket(protocol, pkt)
}
