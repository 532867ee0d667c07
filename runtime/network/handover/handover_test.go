package handover

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// line joins the test with a handler, until the test ends.
func line(t *testing.T, handle Handler) (mine *Line, served <-chan error) {
	t.Helper()
	mine, end, err := New()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := Open(end)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- theirs.Serve(handle) }()
	t.Cleanup(func() { _ = mine.Close() })
	return mine, done
}

// echo answers with the question, or with what the question asks for.
func echo(_ context.Context, question []byte) (any, *os.File, error) {
	var q string
	if err := json.Unmarshal(question, &q); err != nil {
		return nil, nil, err
	}
	switch q {
	case "error":
		return nil, nil, errors.New("no such luck")
	case "errno":
		return nil, nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	case "file":
		r, w, err := os.Pipe()
		if err != nil {
			return nil, nil, err
		}
		go func() {
			_, _ = w.WriteString("from elsewhere")
			_ = w.Close()
		}()
		return q, r, nil
	}
	return q, nil, nil
}

func TestAsk(t *testing.T) {
	l, served := line(t, echo)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	// More than a socket's buffers, and many at a time.
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			q, got := strings.Repeat("long ", 60_000), ""
			if f, err := l.Ask(ctx, q, &got); err != nil || f != nil || got != q {
				t.Errorf("%d bytes, %v, %v", len(got), f, err)
			}
		})
	}
	wg.Wait()
	if _, err := l.Ask(ctx, "error", nil); err == nil || err.Error() != "no such luck" || errors.Is(err, ErrGone) {
		t.Error(err)
	}
	if _, err := l.Ask(ctx, "errno", nil); !errors.Is(err, syscall.ECONNREFUSED) || !strings.Contains(err.Error(), "dial tcp") {
		t.Errorf("%v is not known to be a refusal", err)
	}
	if _, err := l.Ask(ctx, strings.Repeat("x", maxMessage), nil); !errors.Is(err, ErrGone) {
		t.Errorf("too long a question: %v", err)
	}
	f, err := l.Ask(ctx, "file", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err := io.ReadAll(f); string(b) != "from elsewhere" {
		t.Errorf("%q, %v", b, err)
	}
	over, stop := context.WithCancel(ctx)
	stop()
	if _, err := l.Ask(over, "late", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("who has given up: %v", err)
	}
	if err := errors.Join(l.Close(), <-served); err != nil {
		t.Errorf("the other side ends with %v", err)
	}
	if _, err := l.Ask(ctx, "anybody there?", nil); !errors.Is(err, ErrGone) {
		t.Errorf("a line that is closed: %v", err)
	}
}

// TestGivenUp: who answers hears that nobody waits any more, and who asks that nobody
// answers any more.
func TestGivenUp(t *testing.T) {
	asked, told := make(chan struct{}), make(chan struct{})
	l, served := line(t, func(ctx context.Context, question []byte) (any, *os.File, error) {
		asked <- struct{}{}
		<-ctx.Done()
		if bytes.Contains(question, []byte("first")) {
			close(told)
		}
		return nil, nil, ctx.Err()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	patient, lose := context.WithCancel(ctx)
	answers := make(chan error)
	go func() {
		_, err := l.Ask(patient, "first", nil)
		answers <- err
	}()
	<-asked
	lose()
	if err := <-answers; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-told
	go func() {
		_, err := l.Ask(ctx, "second", nil)
		answers <- err
	}()
	<-asked
	if err := errors.Join(l.Close(), <-served); err != nil {
		t.Error(err)
	}
	if err := <-answers; !errors.Is(err, ErrGone) {
		t.Error(err)
	}
}

// FuzzAnswer: whatever is asked, and however it is cut off, the connection is closed.
func FuzzAnswer(f *testing.F) {
	for _, q := range []string{`"hello"`, `"file"`, `{"a":[1,2`, "\x00\xff", `"x" "y"`} {
		f.Add([]byte(q))
	}
	f.Fuzz(func(t *testing.T, question []byte) {
		mine, end, err := pair(syscall.SOCK_STREAM)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := connOf(end)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			Answer(context.Background(), theirs, echo)
		}()
		_, _ = mine.Write(question)
		_ = mine.CloseWrite()
		_, _ = io.Copy(io.Discard, mine)
		_ = mine.Close()
		<-done
	})
}
