package gitsource

import (
	"testing"
	"time"
)

func TestScheduleNext(t *testing.T) {
	monday := time.Date(2026, 11, 23, 21, 58, 0, 0, time.UTC) // 18:58 in São Paulo
	for _, c := range []struct {
		name    string
		s       Schedule
		want    time.Time
		trigger string
	}{
		{"never", Schedule{}, time.Time{}, ""},
		{"interval", Schedule{Interval: 30 * time.Second}, monday.Add(30 * time.Second), "interval"},
		{"cron", Schedule{Cron: "*/5 * * * *"}, monday.Add(2 * time.Minute), "schedule"},
		{"the earlier of both", Schedule{Interval: time.Minute, Cron: "*/5 * * * *"}, monday.Add(time.Minute), "interval"},
		{"working hours in a time zone", Schedule{Cron: "*/5 9-18 * * MON-FRI", TimeZone: "America/Sao_Paulo"},
			time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC), "schedule"},
	} {
		at, trigger, err := c.s.Next(monday)
		if err != nil || !at.Equal(c.want) || trigger != c.trigger {
			t.Errorf("%s: %v by %q, %v; want %v by %q", c.name, at.UTC(), trigger, err, c.want, c.trigger)
		}
	}
	for _, bad := range []Schedule{{Cron: "* *"}, {Cron: "* * * * *", TimeZone: "Mars/Olympus"}} {
		if at, _, err := bad.Next(monday); err == nil || !at.IsZero() {
			t.Errorf("%+v: %v, no error", bad, at)
		}
	}
}
