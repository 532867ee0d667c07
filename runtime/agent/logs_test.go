package agent

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func logRecord(i int, stream, tag, text string) string {
	return fmt.Sprintf("%s %s %s %s\n", t0.Add(time.Duration(i)*time.Second).Format(time.RFC3339Nano), stream, tag, text)
}

func writeFile(t *testing.T, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestReadLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	writeFile(t, path+".2", logRecord(0, "stdout", "F", "zero")+logRecord(1, "stdout", "F", "one"))
	writeFile(t, path+".1", logRecord(2, "stderr", "F", "two"))
	writeFile(t, path, logRecord(3, "stdout", "P", "thr")+logRecord(3, "stdout", "F", "ee")+"garbage\n"+logRecord(4, "stdout", "F", "four"))
	all := logOptions{tail: -1, limit: -1}
	tests := []struct {
		name   string
		adjust func(*logOptions)
		want   string
	}{
		{"all, across rotations", func(*logOptions) {}, "zero\none\ntwo\nthree\nfour\n"},
		{"tail", func(o *logOptions) { o.tail = 1 }, "four\n"},
		{"tail across rotations", func(o *logOptions) { o.tail = 6 }, "one\ntwo\nthree\nfour\n"},
		{"tail of nothing", func(o *logOptions) { o.tail = 0 }, ""},
		{"tail of more than there is", func(o *logOptions) { o.tail = 100 }, "zero\none\ntwo\nthree\nfour\n"},
		{"since", func(o *logOptions) { o.since = t0.Add(3 * time.Second) }, "three\nfour\n"},
		{"limit", func(o *logOptions) { o.limit = 7 }, "zero\non"},
		{"stdout", func(o *logOptions) { o.stream = "Stdout" }, "zero\none\nthree\nfour\n"},
		{"stderr", func(o *logOptions) { o.stream = "Stderr" }, "two\n"},
		{"timestamps", func(o *logOptions) { o.tail, o.timestamps = 1, true }, "2026-11-23T12:00:04Z four\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			opts := all
			tt.adjust(&opts)
			var out bytes.Buffer
			if err := readLog(context.Background(), path, opts, &out, func() {}, nil); err != nil || out.String() != tt.want {
				t.Errorf("%q, %v; want %q", out.String(), err, tt.want)
			}
		})
	}
}

// lockedBuffer can be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestFollowAcrossRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	writeFile(t, path, logRecord(0, "stdout", "F", "0"))
	ended, done := make(chan struct{}), make(chan error, 1)
	out := &lockedBuffer{}
	go func() {
		done <- readLog(context.Background(), path, logOptions{follow: true, tail: -1, limit: -1}, out, func() {}, ended)
	}()
	eventually(t, "the first line", func() bool { return out.String() == "0\n" })
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	want.WriteString("0\n")
	for i := 1; i <= 200; i++ {
		if _, err := f.WriteString(logRecord(i, "stdout", "F", fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&want, "%d\n", i)
		if i%50 == 0 {
			f.Close()
			os.Rename(path+".1", path+".2")
			if err := os.Rename(path, path+".1"); err != nil {
				t.Fatal(err)
			}
			if f, err = os.Create(path); err != nil {
				t.Fatal(err)
			}
			// A reader that is two files behind has lost one: let it catch up, as time
			// between rotations of 10 MiB does.
			eventually(t, "the reader catches up", func() bool { return out.String() == want.String() })
		}
	}
	// The end of a line comes later than its beginning.
	half := logRecord(201, "stdout", "F", "last")
	f.WriteString(half[:10])
	f.WriteString(half[10:])
	f.Close()
	close(ended)
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(waitLimit):
		t.Fatal("follow does not end with the container")
	}
	if want.WriteString("last\n"); out.String() != want.String() {
		t.Errorf("got %d bytes, want %d", len(out.String()), want.Len())
	}
}

func TestParseLogOptions(t *testing.T) {
	q := func(s string) url.Values {
		v, err := url.ParseQuery(s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	o, err := parseLogOptions(q("follow=true&tailLines=5&sinceSeconds=60&timestamps=true&limitBytes=9"), t0)
	if err != nil || !o.follow || o.tail != 5 || !o.since.Equal(t0.Add(-time.Minute)) || !o.timestamps || o.limit != 9 {
		t.Errorf("%+v, %v", o, err)
	}
	for _, bad := range []string{"tailLines=-1", "tailLines=x", "limitBytes=0", "sinceSeconds=0", "follow=maybe", "sinceTime=yesterday", "stream=stdlog"} {
		if _, err := parseLogOptions(q(bad), t0); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}

func FuzzParseLogLine(f *testing.F) {
	f.Add([]byte(logRecord(1, "stdout", "F", "text")))
	f.Add([]byte("x y z"))
	f.Fuzz(func(t *testing.T, line []byte) {
		if l, ok := parseLogLine(line); ok && len(l.text) > len(line) {
			t.Errorf("%q gave more text than there is", line)
		}
	})
}

func TestLogTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	var b strings.Builder
	for i := range 500 {
		b.WriteString(logRecord(i, "stderr", "F", fmt.Sprintf("line %d", i)))
	}
	writeFile(t, path, b.String())
	got := logTail(path)
	if !strings.HasSuffix(got, "line 499\n") || len(got) > maxFallbackBytes || strings.Count(got, "\n") > maxFallbackLines {
		t.Errorf("%d bytes, %d lines", len(got), strings.Count(got, "\n"))
	}
}
