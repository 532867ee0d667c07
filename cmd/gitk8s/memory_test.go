package main

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestGCPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: 50, 1 << 20: 3200, 8 << 20: 400, 32 << 20: 100, 64 << 20: 50, 10 << 30: 50} {
		if got := gcPercent(live); got != want {
			t.Errorf("%d bytes live: %d %%, want %d", live, got, want)
		}
	}
}

// TestGCPace has a busy while, in which garbage is collected seldom, and rest after it.
func TestGCPace(t *testing.T) {
	before := debug.SetGCPercent(gcAtRest)
	defer debug.SetGCPercent(before)
	runtime.GC() // what other tests have left
	p := &gcPace{}
	rested := make(chan struct{})
	p.calm = time.AfterFunc(time.Hour, func() {
		p.rest()
		close(rested)
	})
	percent := func() int {
		now := debug.SetGCPercent(gcAtRest)
		debug.SetGCPercent(now)
		return now
	}
	began := time.Now()
	p.collected(began)
	if got := percent(); got != gcAtRest {
		t.Errorf("after one collection %d %%", got)
	}
	p.collected(began.Add(gcOften))
	if got := percent(); got != gcAtRest {
		t.Errorf("after one now and then %d %%", got)
	}
	p.collected(began.Add(gcOften + time.Millisecond))
	if got := percent(); got <= gcAtRest {
		t.Errorf("busy, and %d %%", got)
	}
	p.calm.Reset(0)
	<-rested
	if got := percent(); got != gcAtRest {
		t.Errorf("at rest again, and %d %%", got)
	}
}

// TestAfterCollections hears of collections until it has heard enough.
func TestAfterCollections(t *testing.T) {
	const enough = 3
	heard := make(chan struct{}, enough+1)
	n := 0
	afterCollections(func() bool {
		n++
		heard <- struct{}{}
		return n < enough
	})
	deadline := time.Now().Add(30 * time.Second)
	for len(heard) < enough && time.Now().Before(deadline) {
		runtime.GC()
	}
	runtime.GC()
	runtime.GC()
	if got := len(heard); got != enough {
		t.Errorf("heard of %d collections, want %d", got, enough)
	}
}

// TestGCPaceOfGrowth: a heap that grows while the process is busy has no more room for it.
func TestGCPaceOfGrowth(t *testing.T) {
	before := debug.SetGCPercent(gcAtRest)
	defer debug.SetGCPercent(before)
	p := &gcPace{busy: true, calm: time.AfterFunc(time.Hour, func() {})}
	defer p.calm.Stop()
	keep := make([]byte, 4*gcRoom)
	runtime.GC()
	p.collected(time.Now())
	if got := debug.SetGCPercent(gcAtRest); got != gcAtRest {
		t.Errorf("with %d MB live: %d %%", len(keep)>>20, got)
	}
	runtime.KeepAlive(keep)
}
