package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/container"
	"gitk8s.dev/gitk8s/runtime/container/internal/wire"
)

// Exec implements container.Runtime. The command reads and writes pipes, or a
// terminal, whose other ends are here: nothing of it passes through the shim.
func (d *Driver) Exec(ctx context.Context, sandboxID, id string, e container.ExecConfig) (int, error) {
	sb, err := d.running(sandboxID)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, err)
	}
	conn, err := sb.dial()
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: sandbox %s is lost: %w: %w", id, sandboxID, container.ErrNotFound, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	code, err := runExec(conn, id, e)
	if ctx.Err() != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, ctx.Err())
	}
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, err)
	}
	return code, nil
}

func runExec(conn *net.UnixConn, id string, e container.ExecConfig) (int, error) {
	req := wire.Request{Op: wire.OpExec, Container: id, Args: e.Args, Env: e.Env, TTY: e.TTY}
	pipes, err := openPipes(e)
	if err != nil {
		return 0, err
	}
	defer pipes.close()
	err = wire.Send(conn, req, pipes.theirs...)
	wire.CloseAll(pipes.theirs)
	pipes.theirs = nil
	if err != nil {
		return 0, err
	}
	var reply wire.Reply
	files, err := wire.Receive(conn, &reply)
	if err != nil {
		return 0, err
	}
	defer wire.CloseAll(files)
	if reply.Error != nil {
		return 0, reply.Error.Err()
	}
	if e.TTY {
		if len(files) != 1 {
			return 0, errors.New("the shim sent no terminal")
		}
		if files[0], err = wire.Pollable(files[0]); err != nil {
			return 0, err
		}
		pipes.stdin, pipes.stdout = files[0], files[0]
		done := make(chan struct{})
		defer close(done)
		go resize(files[0], e.Resize, done)
	}
	copies := pipes.copy(e)
	if _, err := wire.Receive(conn, &reply); err != nil {
		return 0, err
	}
	copies.finish()
	if reply.Error != nil {
		return 0, reply.Error.Err()
	}
	return reply.ExitCode, nil
}

func resize(tty *os.File, sizes <-chan container.WindowSize, done <-chan struct{}) {
	for {
		select {
		case s, ok := <-sizes:
			if !ok {
				return
			}
			_ = control(tty, func(fd int) error {
				return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: s.Width, Row: s.Height})
			})
		case <-done:
			return
		}
	}
}

func control(f *os.File, fn func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// execPipes are both ends of a command's standard files.
type execPipes struct {
	theirs                []*os.File
	stdin, stdout, stderr *os.File
}

func openPipes(e container.ExecConfig) (p *execPipes, err error) {
	p = &execPipes{}
	if e.TTY {
		return p, nil
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	open := func(used bool, input bool) (ours, theirs *os.File, err error) {
		if !used {
			theirs, err = os.OpenFile(os.DevNull, os.O_RDWR, 0)
			return nil, theirs, err
		}
		r, w, err := os.Pipe()
		if input {
			return w, r, err
		}
		return r, w, err
	}
	for _, f := range []struct {
		ours  **os.File
		used  bool
		input bool
	}{{&p.stdin, e.Stdin != nil, true}, {&p.stdout, e.Stdout != nil, false}, {&p.stderr, e.Stderr != nil, false}} {
		ours, theirs, err := open(f.used, f.input)
		if err != nil {
			return p, fmt.Errorf("open standard files: %w", err)
		}
		*f.ours, p.theirs = ours, append(p.theirs, theirs)
	}
	return p, nil
}

func (p *execPipes) close() {
	wire.CloseAll(p.theirs)
	wire.CloseAll([]*os.File{p.stdin, p.stdout, p.stderr})
}

// execCopies are the copies of a command's output that are under way.
type execCopies struct {
	outputs []*os.File
	writers []io.Writer
	done    sync.WaitGroup
}

func (p *execPipes) copy(e container.ExecConfig) *execCopies {
	c := &execCopies{}
	var one sync.Mutex
	if e.Stdin != nil {
		// Not waited for: nobody can end a Read of the caller's.
		go func() {
			_, _ = io.Copy(p.stdin, e.Stdin)
			if !e.TTY {
				_ = p.stdin.Close()
			}
		}()
	}
	start := func(r *os.File, w io.Writer) {
		if r == nil || w == nil {
			return
		}
		w = lockedWriter{&one, w}
		c.outputs, c.writers = append(c.outputs, r), append(c.writers, w)
		c.done.Go(func() { _, _ = io.Copy(w, onlyReader{r}) })
	}
	start(p.stdout, e.Stdout)
	if !e.TTY {
		start(p.stderr, e.Stderr)
	}
	return c
}

// lockedWriter lets stdout and stderr be the same writer.
type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// onlyReader keeps io.Copy from splicing, which does not mind deadlines.
type onlyReader struct{ io.Reader }

// finish delivers everything that the command had written when it ended. A child
// of it that lives on may hold the pipe open for ever and is not waited for.
func (c *execCopies) finish() {
	for _, f := range c.outputs {
		_ = f.SetReadDeadline(time.Now())
	}
	c.done.Wait()
	buf := make([]byte, 32<<10)
	for i, f := range c.outputs {
		for {
			n := 0
			err := control(f, func(fd int) (err error) {
				n, err = unix.Read(fd, buf)
				return err
			})
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || n <= 0 {
				break
			}
			if _, err := c.writers[i].Write(buf[:n]); err != nil {
				break
			}
		}
	}
}

// shimPid finds the sandbox's shim by its command line; 0 when there is none.
func (sb *sandbox) shimPid() (int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	want := wire.ShimArg0 + "\x00" + sb.dir + "\x00"
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if cmdline, err := os.ReadFile("/proc/" + e.Name() + "/cmdline"); err == nil && strings.HasPrefix(string(cmdline), want) {
			return pid, nil
		}
	}
	return 0, nil
}
