package network

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestOverlap(t *testing.T) {
	for _, tt := range []struct {
		to, link string
		protocol int
		want     string
	}{
		{"0.0.0.0/0", "eth0", 3, ""},
		{"10.0.0.0/8", "tun0", 3, ""},
		{"192.168.1.0/24", "eth0", 2, ""},
		{"10.42.7.0/24", "eth0", routeProtocol, ""},
		{"10.42.1.9/32", "poda1b2c3", 3, ""},
		{"10.43.0.0/16", "lo", 4, ""},
		{"10.42.0.0/16", "docker0", 2, "a route to 10.42.0.0/16 by docker0, and the cluster's pods"},
		{"10.43.128.0/17", "wg0", 3, "a route to 10.43.128.0/17 by wg0, and the cluster's services"},
	} {
		err := overlap([]route{{netip.MustParsePrefix(tt.to), tt.link, tt.protocol}}, rangesIPv4)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s by %s: %v", tt.to, tt.link, err)
		}
	}
}

// TestCheckOverlap looks at the routes of a real namespace.
func TestCheckOverlap(t *testing.T) {
	c := newCluster(t)
	ns := c.nodes[0].NetNS
	c.pod(1, "own")
	if err := CheckOverlap(ns, c.ranges); err != nil {
		t.Fatal(err)
	}
	h, err := handle(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "other0"
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
	link, err := h.LinkByName("other0")
	if err != nil {
		t.Fatal(err)
	}
	if err := upWithAddrs(h, link, netip.MustParsePrefix("10.42.200.1/24")); err != nil {
		t.Fatal(err)
	}
	if err := CheckOverlap(ns, c.ranges); err == nil || !strings.Contains(err.Error(), "10.42.200.0/24 by other0") {
		t.Errorf("%v", err)
	}
}
