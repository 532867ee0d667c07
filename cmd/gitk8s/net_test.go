package main

import (
	"net/netip"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"

	"gitk8s.dev/gitk8s/runtime/network/policy"
)

// TestNetTrace: how ends and ports are named, and what is said of them.
func TestNetTrace(t *testing.T) {
	deny := &networkingv1.NetworkPolicy{}
	deny.Namespace, deny.Name, deny.Spec.PolicyTypes = "shop", "deny", []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	s := policy.Snapshot{
		Policies: []*networkingv1.NetworkPolicy{deny},
		Pods: []*policy.Pod{
			{Namespace: "shop", Name: "web", IPs: []netip.Addr{netip.MustParseAddr("10.42.0.2")}, Ports: []policy.Port{{Name: "http", Protocol: policy.TCP, Number: 8080}}},
			{Namespace: "other", Name: "client", IPs: []netip.Addr{netip.MustParseAddr("10.42.0.3")}},
			{Namespace: "shop", Name: "six", IPs: []netip.Addr{netip.MustParseAddr("fd00::6"), netip.MustParseAddr("10.42.0.6")}},
		},
	}
	for _, tt := range []struct{ from, to, want string }{
		{"web", "other/client:80", "shop/web to 10.42.0.3:80: allowed"},
		{"web", "192.0.2.1:53/udp", "no policy selects it"},
		{"other/client", "web:http", "other/client to 10.42.0.2:8080: denied"},
		{"other/client", "10.42.0.2:1", "selected by shop/deny; none of them allows it"},
		{"web", "web:http", "a pod reaches itself"},
		{"gone", "web:http", "there is no pod shop/gone"},
		{"six", "[fd00::9]:53/udp", "shop/six to [fd00::9]:53: allowed"},
		{"other/client", "six:80", "other/client to 10.42.0.6:80: denied"},
		{"other/client", "[fd00::6]:80", "other/client has no address of the family of fd00::6"},
		{"web", "web:http/udp", `port "http" is no number`},
		{"web", "web:http/icmp", "none of tcp, udp and sctp"},
		{"web", "web", "missing port"},
	} {
		var b strings.Builder
		trace, err := traceNet(s, "shop", tt.from, tt.to)
		if err == nil {
			err = writeTrace(&b, trace)
		}
		if err != nil {
			b.WriteString(err.Error())
		}
		if !strings.Contains(b.String(), tt.want) {
			t.Errorf("%s to %s: %q, want %q", tt.from, tt.to, b.String(), tt.want)
		}
	}
}
