package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestExternalAddressesIPv6: who is on the nodes' link reaches an address of the pool, also
// right after it has moved away from a node that is gone; and nothing but load balancers'
// addresses is changed.
func TestExternalAddressesIPv6(t *testing.T) {
	for name, ranges := range map[string]Ranges{"both": rangesBoth, "IPv6": rangesIPv6} {
		t.Run(name, func(t *testing.T) {
			c := newClusterOf(t, ranges)
			_, ds := c.podOf(2, "d")
			apply := c.proxies()
			var state State
			var vips []netip.Addr
			for i, nodes := range ranges.Nodes {
				vip := nth(nodes, 240)
				vips = append(vips, vip)
				state.Services = append(state.Services, both(Service{IP: vip, Port: 80, Masquerade: true, Endpoints: to(ds[i])})...)
			}
			outsider, err := EnsureNode(c.id, "outsider", 100, ranges)
			if err != nil {
				t.Fatal(err)
			}
			apply(state)
			v6 := slices.IndexFunc(vips, netip.Addr.Is6)

			// An address that somebody else keeps in the same way.
			foreign := netip.MustParseAddr("fd00:10:41::99")
			h, err := handle(c.nodes[0].NetNS, unix.NETLINK_ROUTE)
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			link, err := h.LinkByName(uplinkName)
			if err != nil {
				t.Fatal(err)
			}
			if err := addHostAddress(h, link, foreign, ""); err != nil {
				t.Fatal(err)
			}
			on := func() (out []string) {
				list, err := h.AddrList(link, familyIPv6)
				if err != nil {
					t.Fatal(err)
				}
				for _, a := range list {
					if ip := addrOf(a.IP); !ip.IsLinkLocalUnicast() {
						out = append(out, ip.String())
					}
				}
				slices.Sort(out)
				return out
			}
			sync := func(n int, want ...netip.Addr) {
				t.Helper()
				if err := SyncAddresses(c.nodes[n].NetNS, c.nodes[n].IPs, want); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				sync(0, vips...)
			}
			if got, want := fmt.Sprint(on()), "[fd00:10:41::99 fd00:10:41::b fd00:10:41::f0]"; got != want {
				t.Errorf("the link has %s, want %s", got, want)
			}
			reached := func(what string, by int) {
				t.Helper()
				for i, vip := range vips {
					for _, network := range []string{"tcp", "udp"} {
						if got := ask(outsider.NetNS, network, netip.AddrPortFrom(vip, 80)); got != "d "+c.nodes[by].IPs[i].String() {
							t.Errorf("%s, %s by %s: %q", what, vip, network, got)
						}
					}
				}
			}
			reached("first", 0)
			// What the node sends by itself has its own address.
			c.serve(HubNetNS(c.id), netip.AddrPortFrom(ranges.Hub()[v6], 6443), "hub")
			if got := ask(c.nodes[0].NetNS, "tcp", netip.AddrPortFrom(ranges.Hub()[v6], 6443)); got != "hub "+c.nodes[0].IPs[v6].String() {
				t.Errorf("the node speaks as %q", got)
			}

			// It moves, and moves back: the client, who knows where it was, is told.
			sync(0)
			sync(1, vips...)
			reached("moved", 1)
			sync(1)
			sync(0, vips...)
			reached("moved back", 0)
			// Its node is gone and cannot let go of it.
			hub, err := handle(HubNetNS(c.id), unix.NETLINK_ROUTE)
			if err != nil {
				t.Fatal(err)
			}
			defer hub.Close()
			port, err := hub.LinkByName("node1")
			if err != nil {
				t.Fatal(err)
			}
			if err := hub.LinkSetDown(port); err != nil {
				t.Fatal(err)
			}
			if got := ask(outsider.NetNS, "tcp", netip.AddrPortFrom(vips[v6], 80)); !strings.HasPrefix(got, "error") {
				t.Fatalf("a node that is gone answers: %q", got)
			}
			sync(1, vips...)
			reached("its node is gone", 1)

			if err := SyncAddresses(c.nodes[0].NetNS, nil, nil); err != nil { // as a node that leaves
				t.Fatal(err)
			}
			if got, want := fmt.Sprint(on()), "[fd00:10:41::99 fd00:10:41::b]"; got != want {
				t.Errorf("left on the link: %s, want %s", got, want)
			}
		})
	}
}

// TestAdvertisement: the frame that a neighbour hears, byte for byte (RFC 4861, section 4.4).
func TestAdvertisement(t *testing.T) {
	got := fmt.Sprintf("%x", advertisement([]byte{2, 0, 0, 0, 0, 9}, netip.MustParseAddr("fd00::1")))
	want := "333300000001" + "020000000009" + "86dd" +
		"60000000" + "0020" + "3a" + "ff" + "fd000000000000000000000000000001" + "ff020000000000000000000000000001" +
		"88" + "00" + "%s" + "a0000000" + "fd000000000000000000000000000001" + "0201" + "020000000009"
	// The sum of a packet with its checksum is zero.
	raw := advertisement([]byte{2, 0, 0, 0, 0, 9}, netip.MustParseAddr("fd00::1"))
	pseudo := append(slices.Clone(raw[22:54]), 0, 0, 0, 32, 0, 0, 0, 58)
	if sum := checksum(append(pseudo, raw[54:]...)); sum != 0 {
		t.Errorf("the checksum is off by %x", sum)
	}
	if want = fmt.Sprintf(want, got[112:116]); got != want {
		t.Errorf("%s, want\n%s", got, want)
	}
}
