package relay

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"
)

// named answers every datagram with its name.
func named(t *testing.T, name string) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 10)
		for {
			_, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteToUDPAddrPort([]byte(name), from)
		}
	}()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// TestLeadLosesNothing moves a client's flow to and fro: once Lead has returned, the
// very next datagram takes the new way, and is not given to the flow that ends.
func TestLeadLosesNothing(t *testing.T) {
	names := map[string]netip.AddrPort{"a": named(t, "a"), "b": named(t, "b")}
	way := func(name string) Way {
		return func(netip.AddrPort) []netip.AddrPort { return []netip.AddrPort{names[name]} }
	}
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	l := UDP(t.Context(), conn, (&net.Dialer{}).DialContext, way("a"))
	defer l.Close()
	client, err := net.Dial("udp", conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	buf := make([]byte, 10)
	for i := range 1000 {
		name := string("ab"[i%2])
		l.Lead(way(name))
		_ = client.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		n, err := client.Read(buf)
		if err != nil || string(buf[:n]) != name {
			t.Fatalf("move %d: %q, %v; want %s", i, buf[:n], err, name)
		}
	}
}

// TestLeadDuringDial changes the way while a flow is being made by the old one: it is
// not kept, and the client's next datagram takes the new way.
func TestLeadDuringDial(t *testing.T) {
	a, b := named(t, "a"), named(t, "b")
	dialling, dial := make(chan struct{}), make(chan struct{})
	slow := func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == a.String() {
			close(dialling)
			<-dial
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	l := UDP(t.Context(), conn, slow, func(netip.AddrPort) []netip.AddrPort { return []netip.AddrPort{a} })
	defer l.Close()
	client, err := net.Dial("udp", conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_ = client.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := client.Write([]byte("lost")); err != nil {
		t.Fatal(err)
	}
	<-dialling
	l.Lead(func(netip.AddrPort) []netip.AddrPort { return []netip.AddrPort{b} })
	close(dial)
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	if n, err := client.Read(buf); err != nil || string(buf[:n]) != "b" {
		t.Fatalf("%q, %v; want b", buf[:n], err)
	}
}
