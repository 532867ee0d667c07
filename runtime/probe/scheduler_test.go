package probe

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
)

// script answers with good from a moment on, and notes when it was asked.
type script struct {
	mu     sync.Mutex
	begin  time.Time
	goodAt time.Duration
	badAt  time.Duration
	asked  []time.Duration
}

func (s *script) ask(context.Context, *v1.Probe, Target) Outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := time.Since(s.begin)
	s.asked = append(s.asked, at)
	if at >= s.goodAt && (s.badAt == 0 || at < s.badAt) {
		return Outcome{Result: Success}
	}
	return Outcome{Result: Failure}
}

func (s *script) times() []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

type reports struct {
	mu   sync.Mutex
	list []Report
	at   []time.Duration
}

func TestScheduler(t *testing.T) {
	const ms, sec = time.Millisecond, time.Second
	tests := []struct {
		name   string
		kind   Kind
		spec   v1.Probe
		script *script
		run    time.Duration
		// asked is when the questions come, changed when the result changes.
		asked   []time.Duration
		changed []time.Duration
		counted int
	}{
		{
			name: "the first question comes at once, then each period", kind: Readiness,
			spec: v1.Probe{PeriodSeconds: 10}, run: 21 * sec,
			asked: []time.Duration{0, 10 * sec, 20 * sec}, changed: []time.Duration{0}, counted: 3,
		},
		{
			name: "after the initial delay", kind: Liveness,
			spec: v1.Probe{InitialDelaySeconds: 5, PeriodSeconds: 2}, run: 8 * sec,
			asked: []time.Duration{5 * sec, 7 * sec}, counted: 2,
		},
		{
			name: "not ready: asked early and often", kind: Readiness,
			spec: v1.Probe{PeriodSeconds: 1}, script: &script{goodAt: 130 * ms}, run: 1500 * ms,
			asked: []time.Duration{0, 20 * ms, 60 * ms, 140 * ms, 1140 * ms}, changed: []time.Duration{140 * ms}, counted: 3,
		},
		{
			name: "early bad answers don't count", kind: Startup,
			spec: v1.Probe{PeriodSeconds: 1, FailureThreshold: 2}, script: &script{goodAt: time.Hour}, run: 1100 * ms,
			asked: []time.Duration{0, 20 * ms, 60 * ms, 140 * ms, 300 * ms, 620 * ms, 1000 * ms}, changed: []time.Duration{1000 * ms}, counted: 2,
		},
		{
			name: "liveness keeps to its period", kind: Liveness,
			spec: v1.Probe{PeriodSeconds: 1, FailureThreshold: 2}, script: &script{badAt: 1500 * ms}, run: 3500 * ms,
			asked: []time.Duration{0, sec, 2 * sec, 3 * sec}, changed: []time.Duration{3 * sec}, counted: 4,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				sc, rep := tt.script, &reports{}
				if sc == nil {
					sc = &script{}
				}
				sc.begin = time.Now()
				s := NewScheduler(ctx, sc.ask)
				stop := s.Add(Job{Kind: tt.kind, Spec: &tt.spec, Started: sc.begin, Report: func(r Report) {
					rep.mu.Lock()
					defer rep.mu.Unlock()
					rep.list = append(rep.list, r)
					if r.Changed {
						rep.at = append(rep.at, time.Since(sc.begin))
					}
				}})
				time.Sleep(tt.run) // the clock of the bubble, which waits for nothing
				stop()
				if got := sc.times(); !slices.Equal(got, tt.asked) {
					t.Errorf("asked at %v, want %v", got, tt.asked)
				}
				time.Sleep(time.Minute)
				rep.mu.Lock()
				defer rep.mu.Unlock()
				if !slices.Equal(rep.at, tt.changed) {
					t.Errorf("changed at %v, want %v", rep.at, tt.changed)
				}
				if len(rep.list) != tt.counted {
					t.Errorf("%d answers counted, want %d", len(rep.list), tt.counted)
				}
				cancel()
				synctest.Wait()
			})
		})
	}
}

func TestSchedulerSpreadsAndResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		sc := &script{begin: time.Now(), goodAt: time.Hour}
		s := NewScheduler(ctx, sc.ask)
		var mu sync.Mutex
		var got []Report
		for range 20 {
			s.Add(Job{Kind: Readiness, Spec: &v1.Probe{PeriodSeconds: 10, FailureThreshold: 1}, Started: sc.begin, Spread: true, Initial: Success,
				Report: func(r Report) {
					mu.Lock()
					defer mu.Unlock()
					got = append(got, r)
				}})
		}
		time.Sleep(10 * time.Second)
		times := sc.times()
		if first := slices.Min(times); slices.Max(times)-first < time.Second {
			t.Errorf("20 questions within %v", slices.Max(times)-first)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, r := range got {
			if r.Result == Failure && r.Changed {
				cancel()
				synctest.Wait()
				return
			}
		}
		t.Error("a job that resumes as ready never became unready")
		cancel()
		synctest.Wait()
	})
}

// TestManyProbes has 500 probes on a node whose worker has just started again: no
// moment has more than a few of them, and between questions nobody waits but the
// scheduler.
func TestManyProbes(t *testing.T) {
	const probes, seconds, answer = 500, 60, 50 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var asked, now, most atomic.Int64
		idle := runtime.NumGoroutine()
		s := NewScheduler(ctx, func(context.Context, *v1.Probe, Target) Outcome {
			asked.Add(1)
			n := now.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			time.Sleep(answer)
			now.Add(-1)
			return Outcome{Result: Success}
		})
		started := time.Now()
		for range probes {
			s.Add(Job{Kind: Liveness, Spec: &v1.Probe{PeriodSeconds: 10}, Started: started, Spread: true, Initial: Success, Report: func(Report) {}})
		}
		for range seconds {
			time.Sleep(time.Second)
			synctest.Wait()
			// Each question under way has a goroutine, and the scheduler has one; some that
			// have just ended may still be counted.
			if n, most := runtime.NumGoroutine()-idle, int(now.Load())+1; n > most+5 {
				t.Errorf("%d goroutines, want at most about %d", n, most)
			}
		}
		if n := asked.Load(); n < probes*(seconds/10-1) || n > probes*(seconds/10) {
			t.Errorf("%d questions in %d seconds", n, seconds)
		}
		// 50 questions a second that take 50 ms each: 2.5 at once on average.
		if n := most.Load(); n > 20 {
			t.Errorf("%d questions at once", n)
		}
		cancel()
		time.Sleep(answer) // for the questions that are under way
		synctest.Wait()
	})
}
