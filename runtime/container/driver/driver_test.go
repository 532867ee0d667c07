package driver

import (
	"context"
	"testing"
	"time"
)

func TestRunContainer(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	began := time.Now()
	log, st := b.run(sb, b.config("hello", "print", "one", "two"))
	t.Logf("took %v", time.Since(began))
	if log != "stdout F one\nstdout F two\n" {
		t.Errorf("log %q", log)
	}
	if st.ExitCode != 0 || st.StartedAt.IsZero() || st.FinishedAt.Before(st.StartedAt) {
		t.Errorf("status %+v", st)
	}
	if err := b.RemoveContainer(context.Background(), sb, "hello"); err != nil {
		t.Error(err)
	}
}
