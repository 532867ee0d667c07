package apiserver

import (
	"time"

	"k8s.io/utils/clock"
)

// The watch cache answers a consistent LIST when it has seen the store's newest
// revision. A resource that did not change lately learns of it by a progress
// notification, which the cache asks for every libraryPeriod while somebody waits:
// a tenth of a second for most LISTs, where the store is in this process and a
// notification costs microseconds.
const (
	libraryPeriod = 100 * time.Millisecond
	ourPeriod     = time.Millisecond
)

// freshClock is the real clock, but for the period above: the library has no other
// way to set it. The cache sets no other timer of that length.
type freshClock struct{ clock.RealClock }

// NewTimer implements clock.Clock.
func (c freshClock) NewTimer(d time.Duration) clock.Timer {
	return freshTimer{c.RealClock.NewTimer(shorten(d))}
}

type freshTimer struct{ clock.Timer }

// Reset implements clock.Timer.
func (t freshTimer) Reset(d time.Duration) bool { return t.Timer.Reset(shorten(d)) }

func shorten(d time.Duration) time.Duration {
	if d == libraryPeriod {
		return ourPeriod
	}
	return d
}
