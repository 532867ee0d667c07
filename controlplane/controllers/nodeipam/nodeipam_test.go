package nodeipam

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func TestNextFree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cluster := netip.MustParsePrefix(rapid.SampledFrom([]string{"10.42.0.0/16", "10.42.240.0/20", "fd00:10:42::/56", "2001:db8::/67"}).Draw(t, "cluster"))
		more := rapid.IntRange(0, 8).Draw(t, "bits")
		bits := cluster.Bits() + more
		taken := map[netip.Prefix]bool{}
		for range 1 << more {
			p, err := NextFree(cluster, bits, taken)
			if err != nil {
				t.Fatalf("after %d: %v", len(taken), err)
			}
			if !cluster.Contains(p.Addr()) || p.Masked() != p {
				t.Fatalf("%s is no part of %s", p, cluster)
			}
			for q := range taken {
				if q.Overlaps(p) {
					t.Fatalf("%s overlaps %s", p, q)
				}
			}
			taken[p] = true
		}
		if _, err := NextFree(cluster, bits, taken); err == nil {
			t.Fatal("gave a network when none was left")
		}
	})
}
