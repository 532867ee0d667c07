package network

import (
	"net/netip"
	"strings"
	"testing"
)

// TestMasquerade: who knows no way to pods sees a node in their place, who knows one sees
// them; and nothing is left behind.
func TestMasquerade(t *testing.T) { everyFamily(t, testMasquerade) }

func testMasquerade(t *testing.T, ranges Ranges) {
	s := newSitesOf(t, ranges, 0, 0, 1)
	aNS, as := s.podOf(1, "a")
	_, cs := s.podOf(3, "c")
	var outside []netip.AddrPort // the router's
	for i := range ranges.Pods {
		outside = append(outside, netip.AddrPortFrom(s.at(1, 1)[i], 8080))
		s.serve(s.router, outside[i], "outside")
		s.serve(s.nodes[1].NetNS, netip.AddrPortFrom(s.nodes[1].IPs[i], 10250), "neighbour")
		s.serve(s.nodes[2].NetNS, netip.AddrPortFrom(s.nodes[2].IPs[i], 10250), "behind the router")
	}
	s.sync()
	for _, at := range outside {
		if got := ask(aNS, "tcp", at); strings.HasPrefix(got, "outside") {
			t.Fatalf("without it: %q", got)
		}
	}
	s.meshes[0].cfg.Masquerade = true
	for range 2 {
		s.sync()
		for i, a := range as {
			expect(t, "outside", aNS, outside[i], "outside "+s.nodes[0].IPs[i].String())
			expect(t, "a pod elsewhere", aNS, netip.AddrPortFrom(cs[i], 8080), "c "+a.String())
			expect(t, "a node", aNS, netip.AddrPortFrom(s.nodes[1].IPs[i], 10250), "neighbour "+a.String())
			expect(t, "a node elsewhere", aNS, netip.AddrPortFrom(s.nodes[2].IPs[i], 10250), "behind the router "+a.String())
		}
		// A worker that starts anew.
		cfg := s.meshes[0].cfg
		s.meshes[0] = NewMesh(cfg)
	}
	// A service whose endpoint is outside.
	p, err := NewProxy(s.nodes[0].NetNS, ranges.Services)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var svcs []Service
	for i, services := range ranges.Services {
		svcs = append(svcs, both(Service{IP: nth(services, 5), Port: 80, Endpoints: outside[i : i+1]})...)
	}
	if err := p.Apply(State{Services: svcs}); err != nil {
		t.Fatal(err)
	}
	for i, services := range ranges.Services {
		expect(t, "outside by a service", aNS, netip.AddrPortFrom(nth(services, 5), 80), "outside "+s.nodes[0].IPs[i].String())
	}
	if err := Leave(s.nodes[0].NetNS, ranges); err != nil {
		t.Fatal(err)
	}
	conn, err := nftIn(s.nodes[0].NetNS)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseLasting()
	tables, err := conn.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, left := range tables {
		if left.Name != sourcesTable { // the pods' own, who are still there
			t.Errorf("left: %+v", left)
		}
	}
}
