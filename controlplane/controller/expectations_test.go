package controller

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestGivenUp checks that what the cache never shows is waited for, and then no longer,
// though no event comes that would have the key looked at.
func TestGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		var looked []time.Duration
		given := make(chan time.Duration, 1)
		var e *Expectations
		l := NewLoop("test", 1, func(_ context.Context, key string) error {
			looked = append(looked, time.Since(began))
			if e.Satisfied(key) {
				given <- time.Since(began)
			}
			return nil
		})
		e = NewExpectations(l.AddAfter)
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()

		e.ExpectCreate("ns/a", 1)
		time.Sleep(4 * time.Minute)
		e.ExpectDelete("ns/a", "uid")
		if at := <-given; at < 9*time.Minute || at > 9*time.Minute+time.Second {
			t.Errorf("given up after %s, want 9m", at)
		}
		if len(looked) != 2 || looked[0].Round(time.Second) != 5*time.Minute {
			t.Errorf("looked at after %s, want 5m and 9m", looked)
		}

		e.ExpectCreate("ns/a", 1)
		e.Created("ns/a")
		if !e.Satisfied("ns/a") {
			t.Error("not satisfied by what the cache shows")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
