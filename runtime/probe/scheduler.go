package probe

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
)

// Job is one probe of one run of a container.
type Job struct {
	Kind   Kind
	Spec   *v1.Probe
	Target Target
	// Started is when the container started: initialDelaySeconds counts from it.
	Started time.Time
	// Initial is the result from before, for a container found running.
	Initial Result
	// Spread delays the first question by a random part of the period, so that all
	// the probes of a restarted worker don't fall on one moment.
	Spread bool
	// Report is told every answer that counts. It must not block.
	Report func(Report)
}

// Report is the state of a probe after an answer.
type Report struct {
	Kind    Kind
	Outcome Outcome
	// Result by the thresholds, and whether this answer changed it.
	Result  Result
	Changed bool
}

// Scheduler asks each job's question when it is due. One goroutine waits for the
// next due job; a question runs in a goroutine of its own.
type Scheduler struct {
	ctx  context.Context
	ask  func(context.Context, *v1.Probe, Target) Outcome
	wake chan struct{}

	mu    sync.Mutex
	queue dueQueue
}

// NewScheduler starts a scheduler that ends with ctx. ask is Once but in tests.
func NewScheduler(ctx context.Context, ask func(context.Context, *v1.Probe, Target) Outcome) *Scheduler {
	s := &Scheduler{ctx: ctx, ask: ask, wake: make(chan struct{}, 1)}
	go s.run()
	return s
}

// Add begins to ask a job's question and returns a function that ends it. No
// report comes after that function has returned, apart from one being delivered.
func (s *Scheduler) Add(job Job) (stop func()) {
	ctx, cancel := context.WithCancel(s.ctx)
	e := &entry{job: job, ctx: ctx, tracker: NewTracker(job.Kind, job.Spec), pause: firstPause(job.Spec)}
	if job.Initial != Unknown {
		e.tracker.Resume(job.Initial)
	}
	e.due = job.Started.Add(time.Duration(job.Spec.InitialDelaySeconds) * time.Second)
	if now := time.Now(); e.due.Before(now) {
		e.due = now
	}
	if job.Spread {
		e.due = e.due.Add(rand.N(period(job.Spec)))
	}
	s.push(e)
	return cancel
}

func (s *Scheduler) push(e *entry) {
	s.mu.Lock()
	heap.Push(&s.queue, e)
	first := s.queue[0] == e
	s.mu.Unlock()
	if first {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

func (s *Scheduler) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(s.startDue(time.Now()))
		select {
		case <-s.ctx.Done():
			return
		case <-timer.C:
		case <-s.wake:
		}
	}
}

// startDue starts what is due and returns how long there is nothing to do.
func (s *Scheduler) startDue(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue) > 0 {
		e := s.queue[0]
		if e.ctx.Err() == nil {
			if wait := e.due.Sub(now); wait > 0 {
				return wait
			}
			go s.step(e)
		}
		heap.Pop(&s.queue)
	}
	return time.Hour
}

// step asks one question and puts the job back into the queue.
func (s *Scheduler) step(e *entry) {
	asked := time.Now()
	outcome := s.ask(e.ctx, e.job.Spec, e.job.Target)
	if e.ctx.Err() != nil {
		return
	}
	pause, counts := e.next(outcome.Result, time.Now())
	if counts {
		changed := e.tracker.Observe(outcome.Result)
		e.job.Report(Report{Kind: e.job.Kind, Outcome: outcome, Result: e.tracker.Result(), Changed: changed})
	}
	e.due = asked.Add(pause)
	if now := time.Now(); e.due.Before(now) {
		e.due = now
	}
	s.push(e)
}

type entry struct {
	job     Job
	ctx     context.Context
	tracker *Tracker
	due     time.Time
	// regular is when the next answer that counts is due, pause how long until the
	// next early question.
	regular time.Time
	pause   time.Duration
}

// next says how long to wait from the question just asked to the next one, and
// whether this answer counts.
//
// Kubernetes documents that a readiness probe of a container that is not ready may
// run off its period, to make it ready sooner. A container that just started is
// therefore asked early and often: 20 ms, 40 ms, 80 ms … up to the period. A bad
// answer to an early question counts for nothing, so that thresholds keep meaning
// periods; a good one counts.
func (e *entry) next(answer Result, now time.Time) (pause time.Duration, counts bool) {
	p := period(e.job.Spec)
	early := e.job.Kind != Liveness && e.tracker.Result() != Success
	if !early || answer == Success {
		e.regular = now.Add(p)
		return p, true
	}
	counts = !now.Before(e.regular)
	if counts {
		e.regular = now.Add(p)
	}
	pause = min(e.pause, p, e.regular.Sub(now))
	e.pause = min(2*e.pause, p)
	return max(pause, time.Millisecond), counts
}

// firstPause is the first early interval: a command costs more than a connection.
func firstPause(spec *v1.Probe) time.Duration {
	if spec.Exec != nil {
		return 200 * time.Millisecond
	}
	return 20 * time.Millisecond
}

func period(spec *v1.Probe) time.Duration {
	if spec.PeriodSeconds <= 0 {
		return 10 * time.Second
	}
	return time.Duration(spec.PeriodSeconds) * time.Second
}

// dueQueue is a heap of entries by due time.
type dueQueue []*entry

func (q dueQueue) Len() int           { return len(q) }
func (q dueQueue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q dueQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *dueQueue) Push(x any)        { *q = append(*q, x.(*entry)) }
func (q *dueQueue) Pop() any {
	old := *q
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return last
}
