package network

import (
	"net/netip"
	"strings"
	"testing"
)

// TestMasquerade: who knows no way to pods sees a node in their place, who knows one sees
// them; and nothing is left behind.
func TestMasquerade(t *testing.T) {
	s := newSites(t, 0, 0, 1)
	aNS, a := s.pod(1, "a")
	_, c := s.pod(3, "c")
	outside := netip.AddrPortFrom(siteIP(1, 1), 8080) // the router's
	s.serve(s.router, outside, "outside")
	s.serve(s.nodes[1].NetNS, netip.AddrPortFrom(s.nodes[1].IPs[0], 10250), "neighbour")
	s.serve(s.nodes[2].NetNS, netip.AddrPortFrom(s.nodes[2].IPs[0], 10250), "behind the router")
	s.sync()
	if got := ask(aNS, "tcp", outside); strings.HasPrefix(got, "outside") {
		t.Fatalf("without it: %q", got)
	}
	s.meshes[0].cfg.Masquerade = true
	for range 2 {
		s.sync()
		expect(t, "outside", aNS, outside, "outside "+s.nodes[0].IPs[0].String())
		expect(t, "a pod elsewhere", aNS, netip.AddrPortFrom(c, 8080), "c "+a.String())
		expect(t, "a node", aNS, netip.AddrPortFrom(s.nodes[1].IPs[0], 10250), "neighbour "+a.String())
		expect(t, "a node elsewhere", aNS, netip.AddrPortFrom(s.nodes[2].IPs[0], 10250), "behind the router "+a.String())
		// A worker that starts anew.
		cfg := s.meshes[0].cfg
		s.meshes[0] = NewMesh(cfg)
	}
	// A service whose endpoint is outside.
	p, err := NewProxy(s.nodes[0].NetNS, rangesIPv4.Services)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	vip := netip.MustParseAddrPort("10.43.0.5:80")
	service := Service{IP: vip.Addr(), Port: vip.Port(), Proto: TCP, Endpoints: []netip.AddrPort{outside}}
	datagrams := service
	datagrams.Proto = UDP
	if err := p.Apply(State{Services: []Service{service, datagrams}}); err != nil {
		t.Fatal(err)
	}
	expect(t, "outside by a service", aNS, vip, "outside "+s.nodes[0].IPs[0].String())
	if err := Leave(s.nodes[0].NetNS, rangesIPv4); err != nil {
		t.Fatal(err)
	}
	conn, err := nftIn(s.nodes[0].NetNS)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseLasting()
	tables, err := conn.ListTables()
	if err != nil || len(tables) > 0 {
		t.Errorf("left: %v %v", tables, err)
	}
}
