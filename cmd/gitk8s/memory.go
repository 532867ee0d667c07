package main

import (
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// gcAtRest is how many percent the heap of a process grows between two collections:
	// half of Go's default.
	gcAtRest = 50
	// gcOften is when a process is busy: it collects more often than this.
	gcOften = 500 * time.Millisecond
	// gcRoom is what the heap of a busy worker may grow by. A collection takes some ten
	// milliseconds of one core, which those requests feel that come by meanwhile.
	gcRoom = 32 << 20
	// gcCalm without a collection ends it.
	gcCalm = 5 * time.Second
)

// thrifty makes a long-running process prefer memory to processor time, and give back
// what starting took.
func thrifty() {
	debug.SetGCPercent(gcAtRest)
	time.AfterFunc(gcCalm, debug.FreeOSMemory)
}

// unhurried is thrifty for a process that others' requests pass through: while there are
// many it prefers processor time. Not while it starts: what stays for good would lie
// spread over all of the room.
func unhurried() {
	thrifty()
	time.AfterFunc(gcCalm, func() {
		p := &gcPace{}
		p.calm = time.AfterFunc(gcCalm, p.rest)
		afterCollections(func() bool {
			p.collected(time.Now())
			return true
		})
	})
}

// gcPace is how often garbage is collected.
type gcPace struct {
	calm *time.Timer

	mu   sync.Mutex
	busy bool
	last time.Time // when garbage was collected
}

// afterCollections calls f after each collection until it returns false, by garbage of
// its own.
func afterCollections(f func() (more bool)) {
	runtime.SetFinalizer(&struct{ _ [16]byte }{}, func(any) {
		if f() {
			afterCollections(f)
		}
	})
}

func (p *gcPace) collected(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	often := now.Sub(p.last) < gcOften
	p.last = now
	if p.busy = p.busy || often; p.busy {
		debug.SetGCPercent(gcPercent(liveHeap())) // what lives may have become more
		p.calm.Reset(gcCalm)
	}
}

func (p *gcPace) rest() {
	p.mu.Lock()
	p.busy, p.last = false, time.Time{}
	debug.SetGCPercent(gcAtRest)
	p.mu.Unlock()
	debug.FreeOSMemory()
}

// gcPercent is how many percent a busy heap grows, with so many bytes that live.
func gcPercent(live uint64) int {
	if live == 0 {
		return gcAtRest
	}
	return int(min(max(gcAtRest, gcRoom*100/live), math.MaxInt32))
}

// liveHeap is what the last collection left.
func liveHeap() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
