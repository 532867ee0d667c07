package gitsource

import (
	"fmt"
	"time"

	"github.com/robfig/cron/v3"
)

// Schedule says when a remote is looked at without being asked to.
type Schedule struct {
	// Interval between two looks; 0 means never.
	Interval time.Duration
	// Cron is a five-field expression, or empty.
	Cron string
	// TimeZone of Cron, an IANA name; empty is UTC.
	TimeZone string
}

// Next returns the first time after last at which a look is due, and which
// trigger it is: "interval" or "schedule". The zero time means never.
func (s Schedule) Next(last time.Time) (at time.Time, trigger string, err error) {
	if s.Interval > 0 {
		at, trigger = last.Add(s.Interval), "interval"
	}
	if s.Cron == "" {
		return at, trigger, nil
	}
	zone, err := time.LoadLocation(s.TimeZone)
	if err != nil {
		return at, trigger, fmt.Errorf("time zone %q: %w", s.TimeZone, err)
	}
	c, err := cron.ParseStandard(s.Cron)
	if err != nil {
		return at, trigger, fmt.Errorf("schedule %q: %w", s.Cron, err)
	}
	if t := c.Next(last.In(zone)); !t.IsZero() && (at.IsZero() || t.Before(at)) {
		at, trigger = t, "schedule"
	}
	return at, trigger, nil
}
