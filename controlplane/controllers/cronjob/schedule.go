package cronjob

import (
	"fmt"
	"time"
	_ "time/tzdata" // a machine may have no time zones of its own

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
)

// schedule reads the schedule of a CronJob, in its time zone: its own, or else that
// of the machine.
func schedule(spec *batchv1.CronJobSpec) (cron.Schedule, *time.Location, *Event) {
	zone := time.Local
	text := spec.Schedule
	if spec.TimeZone != nil {
		var err error
		if zone, err = time.LoadLocation(*spec.TimeZone); err != nil {
			return nil, nil, warning("UnknownTimeZone", "invalid timeZone: %q: %s", *spec.TimeZone, err)
		}
		text = "TZ=" + *spec.TimeZone + " " + text
	}
	s, err := cron.ParseStandard(text)
	if err != nil {
		return nil, nil, warning("UnparseableSchedule", "unparseable schedule: %q : %s", spec.Schedule, err)
	}
	return s, zone, nil
}

// many is how many missed times are worth a warning: a clock may be wrong, or the
// CronJob was suspended for long.
const many = 100

// due is the newest time that has come since after, and the next one to come; zero
// if there is none. It says how many have come, up to one more than many.
func due(s cron.Schedule, after, now time.Time) (last, next time.Time, missed int) {
	next = s.Next(after)
	for ; !next.IsZero() && !next.After(now); next = s.Next(next) {
		last = next
		if missed++; missed > many {
			last = newest(s, last, now)
			return last, s.Next(last), missed
		}
	}
	return last, next, missed
}

// newest is the last time up to now, given an earlier one. It bisects: what comes
// after a moment has come by now, or has not, and a year of minutes is long.
func newest(s cron.Schedule, low, now time.Time) time.Time {
	last := low
	for high := now; high.Sub(low) > time.Second; {
		mid := low.Add(high.Sub(low) / 2)
		if t := s.Next(mid); !t.IsZero() && !t.After(now) {
			low, last = mid, t
		} else {
			high = mid
		}
	}
	return last
}

// jobName is the name of the Job of a run: two controllers, or one that has
// forgotten, make one Job of it.
func jobName(c *batchv1.CronJob, at time.Time) string {
	return fmt.Sprintf("%s-%d", c.Name, at.Unix()/60)
}
