package main

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestGCPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: 50, 1 << 20: 6400, 16 << 20: 400, 64 << 20: 100, 128 << 20: 50, 10 << 30: 50} {
		if got := gcPercent(live); got != want {
			t.Errorf("%d bytes live: %d %%, want %d", live, got, want)
		}
	}
}

// TestGCPace has a busy while, in which garbage is collected seldom, and rest after it.
func TestGCPace(t *testing.T) {
	before := debug.SetGCPercent(gcAtRest)
	defer debug.SetGCPercent(before)
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

// TestGCFollow hears of every collection.
func TestGCFollow(t *testing.T) {
	p := &gcPace{calm: time.AfterFunc(time.Hour, func() {})}
	defer p.calm.Stop()
	heard := func() time.Time {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.last
	}
	before := debug.SetGCPercent(-1)
	defer func() { debug.SetGCPercent(before) }()
	p.follow()
	deadline := time.Now().Add(30 * time.Second)
	var last time.Time
	for n := 0; n < 3; {
		runtime.GC()
		if now := heard(); now != last {
			last, n = now, n+1
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d collections were heard of", n)
		}
	}
}
