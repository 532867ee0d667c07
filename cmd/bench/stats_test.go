package main

import (
	"testing"
	"time"
)

func TestSample(t *testing.T) {
	ms := func(n ...int) (s sample) {
		for _, n := range n {
			s = append(s, time.Duration(n)*time.Millisecond)
		}
		return s
	}
	for _, c := range []struct {
		s            sample
		spread, tail string
	}{
		{nil, "0 ms / 0 ms / 0 ms", "p50 0 ms, p95 0 ms"},
		{ms(7), "7 ms / 7 ms / 7 ms", "p50 7 ms, p95 7 ms"},
		{ms(30, 10, 20), "10 ms / 20 ms / 30 ms", "p50 20 ms, p95 30 ms"},
		{ms(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 1500), "1 ms / 10 ms / 1.50 s", "p50 10 ms, p95 19 ms"},
	} {
		if got := c.s.spread(); got != c.spread {
			t.Errorf("%v: spread %q, want %q", c.s, got, c.spread)
		}
		if got := c.s.tail(); got != c.tail {
			t.Errorf("%v: tail %q, want %q", c.s, got, c.tail)
		}
	}
}
