package nodeipam

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func TestNextFree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cluster := netip.MustParsePrefix("10.42.0.0/16")
		bits := rapid.IntRange(17, 24).Draw(t, "bits")
		taken := map[netip.Prefix]bool{}
		for range 1 << (bits - 16) {
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
