package main

import (
	"fmt"
	"slices"
	"time"
)

// sample is a series of durations of the same thing.
type sample []time.Duration

// at returns the value below which the share q of the series lies, by the
// nearest-rank method; zero for an empty series.
func (s sample) at(q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	i := int(q*float64(len(sorted))+0.999999) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

// spread is minimum, median and maximum.
func (s sample) spread() string {
	return fmt.Sprintf("%s / %s / %s", show(s.at(0)), show(s.at(0.5)), show(s.at(1)))
}

// tail is p50 and p95.
func (s sample) tail() string {
	return fmt.Sprintf("p50 %s, p95 %s", show(s.at(0.5)), show(s.at(0.95)))
}

// show writes a duration with three digits or so.
func show(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%.3g ms", float64(d.Microseconds())/1000)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

// perSecond is minimum, median and maximum of rates.
func perSecond(rates []float64) string {
	sorted := slices.Sorted(slices.Values(rates))
	return fmt.Sprintf("%.0f/s / %.0f/s / %.0f/s", sorted[0], sorted[len(sorted)/2], sorted[len(sorted)-1])
}
