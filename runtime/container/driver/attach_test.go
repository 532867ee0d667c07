package driver

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gitk8s.dev/gitk8s/runtime/container"
)

// transcript collects what a client is shown.
type transcript struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (s *transcript) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(b)
}

func (s *transcript) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// client is one attached to a container.
type client struct {
	in     *io.PipeWriter
	out    *transcript
	err    chan error
	cancel context.CancelFunc
}

// attachedWait is less than what the shim would wait for a client that reads nothing.
const attachedWait = 20 * time.Second

func (b *bench) attach(sandbox, id string) *client {
	ctx, cancel := context.WithCancel(context.Background())
	b.t.Cleanup(cancel)
	r, w := io.Pipe()
	c := &client{in: w, out: &transcript{}, err: make(chan error, 1), cancel: cancel}
	go func() {
		c.err <- b.Attach(ctx, sandbox, id, container.AttachConfig{Stdin: r, Stdout: c.out, Stderr: c.out})
	}()
	return c
}

func (c *client) say(b *bench, text, answer string) {
	b.t.Helper()
	if _, err := io.WriteString(c.in, text); err != nil {
		b.t.Fatal(err)
	}
	eventually(b.t, "the answer "+answer, func() bool { return strings.Contains(c.out.String(), answer) })
}

// An input that is open for others stays so when a client goes; everybody sees the
// output as it comes, without waiting for the end of a line.
func TestAttach(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	cfg := b.config("ask-0", "ask")
	cfg.Stdin = true
	b.start(sb, cfg)
	one, two := b.attach(sb, "ask-0"), b.attach(sb, "ask-0")
	one.say(b, "Ada\n", "hello Ada\nname? ")
	// The other sees what comes once it is there, which nobody tells.
	eventually(t, "the other sees it", func() bool {
		if strings.Contains(two.out.String(), "hello Ada\nname? ") {
			return true
		}
		if _, err := io.WriteString(one.in, "Ada\n"); err != nil {
			t.Fatal(err)
		}
		return false
	})
	one.in.Close()
	if err := <-one.err; err != nil {
		t.Errorf("the end of a client's input: %v", err)
	}
	two.say(b, "Bob\n", "hello Bob\nname? ")
	two.cancel()
	if err := <-two.err; err == nil {
		t.Error("a client that was cancelled was not told")
	}
	three := b.attach(sb, "ask-0")
	three.say(b, "Cleo\n", "hello Cleo")
	if err := b.StopContainer(context.Background(), sb, "ask-0", 9, 0); err != nil {
		t.Fatal(err)
	}
	if err := <-three.err; err != nil {
		t.Errorf("the end of the container: %v", err)
	}
	if got := b.logs(cfg); !strings.Contains(got, "stdout F name? hello Ada\n") {
		t.Errorf("the log is %q", got)
	}
	if err := b.Attach(context.Background(), sb, "ask-0", container.AttachConfig{Stdout: io.Discard}); !container.IsNotFound(err) {
		t.Errorf("attach to an ended container: %v", err)
	}
}

// The end of the first client's input is the container's with stdinOnce, and all
// that it printed until its own end is delivered.
func TestAttachOnce(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	cfg := b.config("cat-0", "ask")
	cfg.Stdin, cfg.StdinOnce = true, true
	b.start(sb, cfg)
	c := b.attach(sb, "cat-0")
	c.say(b, "Ada\nBob\n", "hello Bob")
	c.in.Close()
	if err := <-c.err; err != nil {
		t.Fatal(err)
	}
	if got := c.out.String(); !strings.HasSuffix(got, "name? end of input\n") {
		t.Errorf("shown %q", got)
	}
	if st := b.ended("cat-0"); st.ExitCode != 0 {
		t.Errorf("ended with %d", st.ExitCode)
	}
}

func TestAttachTerminal(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	cfg := b.config("ask-0", "ask")
	cfg.Stdin, cfg.TTY = true, true
	b.start(sb, cfg)
	c := b.attach(sb, "ask-0")
	c.say(b, "Ada\n", "hello Ada\r\nname? ")
	c.say(b, "\x03", "^C")
	if err := <-c.err; err != nil {
		t.Fatal(err)
	}
	if st := b.ended("ask-0"); st.ExitCode != 130 {
		t.Errorf("ended with %d, want the code of an interrupt", st.ExitCode)
	}
}

// broken is the output of a client whose connection is gone.
type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// A client that goes away holds up nobody, whether it says so or its connection is
// found to be gone.
func TestAttachedClientLeaves(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	cfg := b.config("cat-0", "cat")
	cfg.Stdin = true
	b.start(sb, cfg)
	gone := b.attach(sb, "cat-0")
	gone.say(b, "one\n", "one")
	gone.cancel()
	<-gone.err
	lost := make(chan error, 1)
	go func() {
		lost <- b.Attach(context.Background(), sb, "cat-0", container.AttachConfig{Stdout: broken{}, Stderr: broken{}})
	}()
	next := b.attach(sb, "cat-0")
	for range 3 {
		// More than a pipe takes.
		next.say(b, strings.Repeat("y", 60000)+"\n", strings.Repeat("y", 60000)+"\n")
	}
	select {
	case err := <-lost:
		if err == nil {
			t.Error("the loss of a connection is no error")
		}
	case <-time.After(attachedWait):
		t.Error("a client whose connection is lost stays attached")
	}
	next.say(b, strings.Repeat("x", 10000)+"\n", strings.Repeat("x", 10000)+"\n")
	next.in.Close()
	if err := <-next.err; err != nil {
		t.Error(err)
	}
}

// The log keeps to the size and the number of files that are asked for, and its end
// is never what is thrown away.
func TestLogBounds(t *testing.T) {
	b := newBench(t)
	sb := b.sandbox()
	cfg := b.config("lines-0", "lines", "20000")
	cfg.LogMaxSize, cfg.LogMaxFiles = 256<<10, 3
	b.start(sb, cfg)
	b.ended("lines-0")
	files, err := filepath.Glob(cfg.LogPath + "*")
	if err != nil || len(files) != 3 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || st.Size() > cfg.LogMaxSize {
			t.Errorf("%s has %d bytes (%v)", f, st.Size(), err)
		}
	}
	if got := b.logs(cfg); !strings.HasSuffix(got, "stdout F line 19998\nstdout F line 19999\n") {
		t.Errorf("the log ends in %q", got[max(0, len(got)-80):])
	}
}
