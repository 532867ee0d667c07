package network

import (
	"cmp"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestInstalled: whatever states follow each other, what is read back from the kernel
// is the last of them.
func TestInstalled(t *testing.T) {
	c := newCluster(t)
	p, err := NewProxy(c.nodes[0].NetNS, rangesIPv4.Services)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if got, err := p.Installed(); err != nil || len(got) > 0 {
		t.Fatal("without a table:", got, err)
	}
	sorted := func(list []Installed) []Installed {
		slices.SortFunc(list, func(a, b Installed) int {
			return cmp.Or(a.IP.Compare(b.IP), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Proto, b.Proto))
		})
		return list
	}
	rapid.Check(t, func(t *rapid.T) {
		s := states.Draw(t, "state")
		if err := p.Apply(s); err != nil {
			t.Fatal(err)
		}
		want := []Installed{}
		for _, svc := range s.Services {
			at := Installed{IP: svc.IP, Port: svc.Port, Proto: svc.Proto, Endpoints: sortedAddrs(svc.Endpoints)}
			if svc.NodeLocal {
				at.Inside = sortedAddrs(svc.Inside)
			}
			if len(at.Endpoints)+len(at.Inside) > 0 {
				want = append(want, at)
			}
		}
		got, err := p.Installed()
		if err != nil || len(got)+len(want) > 0 && !reflect.DeepEqual(sorted(got), sorted(want)) {
			t.Fatalf("in the kernel: %+v %v, want %+v", got, err, want)
		}
	})
}

func sortedAddrs(list []netip.AddrPort) []netip.AddrPort {
	return slices.SortedFunc(slices.Values(list), netip.AddrPort.Compare)
}
