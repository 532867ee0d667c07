package scheduler

import (
	"testing"

	"pgregory.net/rapid"
)

// TestTally: the counts, their sum and the lowest are those of a map, whatever comes
// and goes.
func TestTally(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		top := &topology{ids: map[string]int32{}}
		tally, want := newTally(top), map[string]int32{}
		values := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		for range rapid.IntRange(0, 80).Draw(t, "steps") {
			v := values.Draw(t, "value")
			count, lives := want[v]
			switch step := rapid.IntRange(0, 9).Draw(t, "step"); {
			case !lives:
				top.join(v)
				want[v] = 0
			case step == 0:
				tally.add(top.ids[v], -count)
				top.leave(v)
				delete(want, v)
			case step < 7 || count == 0:
				tally.add(top.ids[v], 1)
				want[v]++
			default:
				tally.add(top.ids[v], -1)
				want[v]--
			}
			lowest, total, first := int32(0), int64(0), true
			for v, count := range want {
				if got := tally.of(top.ids[v]); got != count {
					t.Fatalf("%s: %d, want %d", v, got, count)
				}
				if total += int64(count); first || count < lowest {
					lowest, first = count, false
				}
			}
			if tally.lowest() != lowest || tally.total != total || top.live != len(want) {
				t.Fatalf("lowest %d, total %d of %d domains; want %v", tally.lowest(), tally.total, top.live, want)
			}
		}
	})
}
