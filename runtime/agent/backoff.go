package agent

import "time"

const (
	backoffFirst = 10 * time.Second
	backoffMax   = 300 * time.Second
	// backoffReset: a container that ran this long begins anew.
	backoffReset = 10 * time.Minute
)

// retry is an exponential delay between attempts: 10 s, 20 s, 40 s … 300 s, as
// the Kubernetes documentation gives it for crashing containers and failed pulls.
type retry struct {
	// Delay before the next attempt.
	Delay time.Duration
	// At is the time of the next attempt; zero means at once.
	At time.Time
}

// due says whether the next attempt may be made. A time further away than the delay
// was written before the clock was put back: nobody waits for that.
func (r retry) due(now time.Time) bool {
	return !now.Before(r.At) || r.At.Sub(now) > r.Delay+clockSlack
}

// failed is the state after an attempt that failed at now.
func (r retry) failed(now time.Time) retry {
	r.Delay = grow(r.Delay)
	r.At = now.Add(r.Delay)
	return r
}

// crashed is the state after a run ended at now having lasted ran: the first end is
// followed by a restart at once, each further one by a longer delay.
func (r retry) crashed(ran time.Duration, now time.Time, first bool) retry {
	if first || ran >= backoffReset {
		return retry{At: now}
	}
	r.Delay = grow(r.Delay)
	r.At = now.Add(r.Delay)
	return r
}

func grow(d time.Duration) time.Duration {
	if d == 0 {
		return backoffFirst
	}
	return min(2*d, backoffMax)
}
