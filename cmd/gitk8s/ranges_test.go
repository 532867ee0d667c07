package main

import (
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"gitk8s.dev/gitk8s/controlplane/etcd"
	"gitk8s.dev/gitk8s/runtime/network"
)

func TestParseRanges(t *testing.T) {
	for _, x := range []struct{ pods, services, nodes, want string }{
		{defaultPods, defaultServices, "", ""},
		{defaultPods, defaultServices, defaultNodesIPv4, ""},
		{"172.16.0.0/16", "172.17.0.0/20", "", ""},
		{"10.42.0.0/16,fd00:10:42::/56", "10.43.0.0/16, fd00:10:43::/112", defaultNodesIPv6 + "," + defaultNodesIPv4, ""},
		{"fd00:10:42::/56,10.42.0.0/16", "fd00:10:43::/112,10.43.0.0/16", defaultNodesIPv6 + "," + defaultNodesIPv4, ""},
		{"fd00:10:42::/56", "fd00:10:43::/112", defaultNodesIPv6, ""},
		{"", defaultServices, "", `--cluster-cidr: "" is no range`},
		{"10.42.0.0", defaultServices, "", "--cluster-cidr: "},
		{"10.42.0.1/16", defaultServices, "", "--cluster-cidr: 10.42.0.1/16 has bits set after the first 16; is 10.42.0.0/16 meant?"},
		{defaultPods, "fd00::1/112", "", "--service-cidr: fd00::1/112 has bits set"},
		{"10.42.0.0/25", defaultServices, "", "--cluster-cidr: 10.42.0.0/25 is too small, a /24 is the least"},
		{"fd00::/65", "fd01::/112", "", "--cluster-cidr: fd00::/65 is too small"},
		{"fd00::/47", "fd01::/112", "", "--cluster-cidr: fd00::/47 is too large"},
		{defaultPods, "10.43.0.0/29", "", "--service-cidr: 10.43.0.0/29 is too small"},
		{defaultPods, "10.0.0.0/11", "", "--service-cidr: 10.0.0.0/11 is too large"},
		{"fd00::/56", "fd01::/107", "", "--service-cidr: fd01::/107 is too large"},
		{defaultPods, defaultServices, "10.41.0.0/25", "--node-network-cidr: 10.41.0.0/25 is too small"},
		{"10.42.0.0/16,10.44.0.0/16", defaultServices, "", "--cluster-cidr: 10.42.0.0/16 and 10.44.0.0/16 are of one family"},
		{"10.42.0.0/16,fd00::/56,fd01::/56", defaultServices, "", "--cluster-cidr: "},
		{"169.254.0.0/16", defaultServices, "", "--cluster-cidr: 169.254.0.0/16 has another meaning"},
		{"fe80::/64", "fd01::/112", "", "--cluster-cidr: fe80::/64 has another meaning"},
		{defaultPods, "10.42.128.0/17", "", "--service-cidr 10.42.128.0/17 overlaps --cluster-cidr 10.42.0.0/16"},
		{defaultPods, defaultServices, "10.43.1.0/24", "--node-network-cidr 10.43.1.0/24 overlaps --service-cidr 10.43.0.0/16"},
		{"10.42.0.0/16,fd00::/56", defaultServices, "", "--service-cidr 10.43.0.0/16 is not of the same families"},
		{"10.42.0.0/16,fd00::/56", "fd01::/112,10.43.0.0/16", "", "in the same order, as --cluster-cidr"},
		{"fd00::/56", "fd01::/112", defaultNodesIPv4, "--node-network-cidr 10.41.0.0/24 is not of the same families"},
	} {
		r, err := parseRanges(x.pods, x.services, x.nodes)
		if (err == nil) != (x.want == "") || err != nil && !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s %s %s: %v, want %q", x.pods, x.services, x.nodes, err, x.want)
		}
		if err == nil && len(r.Nodes) > 0 && (len(r.Nodes) != len(r.Pods) || r.Nodes[0].Addr().Is6() != r.Pods[0].Addr().Is6()) {
			t.Errorf("%s: nodes %v", x.pods, r.Nodes)
		}
	}
}

// TestDerivedAddresses: those that are told in the documentation.
func TestDerivedAddresses(t *testing.T) {
	c := Config{ClusterCIDR: "10.42.0.0/16,fd00:10:42::/56", ServiceCIDR: "10.43.0.0/16,fd00:10:43::/112"}
	r, err := c.ranges(true)
	if err != nil {
		t.Fatal(err)
	}
	for what, got := range map[string][]netip.Addr{
		"10.41.0.1,fd00:10:41::1": r.Hub(), "10.41.0.12,fd00:10:41::c": r.Node(2), "10.41.0.210,fd00:10:41::d2": r.Node(maxWorkers),
		"10.43.0.1,fd00:10:43::1": r.API(), "10.43.0.10,fd00:10:43::a": r.DNS(),
	} {
		if joinAddrs(got) != what {
			t.Errorf("%s, want %s", joinAddrs(got), what)
		}
	}
	for address, ok := range map[string]bool{"192.0.2.1": true, "2001:db8::1": false, "": true} {
		if err := advertisesFirst(Config{AdvertiseAddress: address, Listen: "127.0.0.1"}, r); (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
	}
	for text, want := range map[string]string{
		"192.0.2.1,2001:db8::1": "192.0.2.1,2001:db8::1", "2001:db8::1, 192.0.2.1": "192.0.2.1,2001:db8::1",
		"192.0.2.1": "! no IPv6 address", "2001:db8::1": "! no IPv4 address", "192.0.2.1,192.0.2.2": "! two addresses of one family", "x": "! no IP address",
	} {
		ips, err := parseNodeIPs(text, r)
		if why, refused := strings.CutPrefix(want, "! "); refused != (err != nil) || err != nil && !strings.Contains(err.Error(), why) || err == nil && joinAddrs(ips) != want {
			t.Errorf("%s: %v %v", text, ips, err)
		}
	}
}

// TestSameRanges: a cluster keeps the ranges that it was begun with, also one that is
// older than their being remembered.
func TestSameRanges(t *testing.T) {
	store, err := etcd.Start(t.Context(), etcd.Config{DataDir: filepath.Join(t.TempDir(), "etcd")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	parse := func(pods, services, nodes string) network.Ranges {
		r, err := parseRanges(pods, services, nodes)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := parse("10.42.0.0/16,fd00:10:42::/56", "10.43.0.0/16,fd00:10:43::/112", defaultNodesIPv4+","+defaultNodesIPv6)
	for range 2 {
		if err := sameRanges(t.Context(), store.Client(), first); err != nil {
			t.Fatal(err)
		}
	}
	for want, other := range map[string]network.Ranges{
		"begun with --cluster-cidr=10.42.0.0/16,fd00:10:42::/56": parse(defaultPods, defaultServices, defaultNodesIPv4),
		"begun with --service-cidr=10.43.0.0/16":                 parse("10.42.0.0/16,fd00:10:42::/56", "10.43.0.0/20,fd00:10:43::/112", ""),
		"begun with --node-network-cidr=10.41.0.0/24":            parse("10.42.0.0/16,fd00:10:42::/56", "10.43.0.0/16,fd00:10:43::/112", "10.40.0.0/24,"+defaultNodesIPv6),
	} {
		if err := sameRanges(t.Context(), store.Client(), other); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	ctx, k := t.Context(), store.Client()
	if _, err := k.Delete(ctx, rangesKey); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Put(ctx, "/gitk8s/clusterips/10.43.0.1", "default/kubernetes/x 1"); err != nil {
		t.Fatal(err)
	}
	if err := sameRanges(ctx, k, first); err == nil {
		t.Error("an older cluster has got other ranges")
	}
	was := parse(defaultPods, defaultServices, defaultNodesIPv4)
	if err := sameRanges(ctx, k, was); err != nil {
		t.Error(err)
	}
	if begun, err := begunRanges(ctx, k, first); err != nil || !reflect.DeepEqual(begun, was) {
		t.Errorf("%v %v", begun, err)
	}
}
