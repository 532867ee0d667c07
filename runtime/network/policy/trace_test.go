package policy

import (
	"fmt"
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// TestTrace: both ends are asked, and say which policies they listen to.
func TestTrace(t *testing.T) {
	web := pod("shop", "web", "10.42.0.2", false, labels.Set{"app": "web"}, Port{"http", TCP, 8080})
	client := pod("shop", "client", "10.42.1.2", false, labels.Set{"app": "client"})
	outside := netip.MustParseAddr("192.0.2.7")
	s := Snapshot{
		Namespaces: map[string]labels.Set{"shop": {}}, Pods: []*Pod{web, client},
		Policies: []*networkingv1.NetworkPolicy{
			manifest(t, `{metadata: {name: deny}, spec: {podSelector: {}, policyTypes: [Ingress]}}`),
			manifest(t, `{metadata: {name: web}, spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}], ports: [{port: http}]}]}}`),
			manifest(t, `{metadata: {name: out}, spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{ports: [{port: 8080}, {port: 53, protocol: UDP}]}]}}`),
		},
	}
	for _, tt := range []struct {
		from, to netip.Addr
		proto    Protocol
		port     uint16
		want     string
	}{
		{client.IPs[0], web.IPs[0], TCP, 8080, "shop/client Egress [shop/out] [shop/out spec.egress[0]] true; shop/web Ingress [shop/deny shop/web] [shop/web spec.ingress[0]] true; "},
		{client.IPs[0], web.IPs[0], TCP, 9090, "shop/client Egress [shop/out] [] false; shop/web Ingress [shop/deny shop/web] [] false; "},
		{client.IPs[0], outside, UDP, 53, "shop/client Egress [shop/out] [shop/out spec.egress[0]] true; "},
		{outside, web.IPs[0], TCP, 8080, "shop/web Ingress [shop/deny shop/web] [] false; "},
		{web.IPs[0], client.IPs[0], TCP, 1, "shop/web Egress [] [] true; shop/client Ingress [shop/deny] [] false; "},
		{web.IPs[0], web.IPs[0], TCP, 1, "shop/web Egress [] [] true; shop/web Ingress [shop/deny shop/web] [] true; "},
	} {
		got := ""
		for _, s := range Trace(s, tt.from, tt.to, tt.proto, tt.port) {
			got += fmt.Sprint(s.Pod, " ", s.Direction, " ", s.SelectedBy, " ", s.AllowedBy, " ", s.Allowed, "; ")
		}
		if got != tt.want {
			t.Errorf("%s to %s port %d: %s, want %s", tt.from, tt.to, tt.port, got, tt.want)
		}
	}
}
