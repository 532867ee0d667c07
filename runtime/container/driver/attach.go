package driver

import (
	"context"
	"fmt"
	"io"
	"net"

	"gitk8s.dev/gitk8s/runtime/container"
	"gitk8s.dev/gitk8s/runtime/container/internal/wire"
)

// Attach implements container.Runtime. The shim, which has the container's standard
// files, copies between them and pipes whose other ends are here.
func (d *Driver) Attach(ctx context.Context, sandboxID, id string, a container.AttachConfig) error {
	sb, err := d.running(sandboxID)
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", id, err)
	}
	conn, err := sb.dial()
	if err != nil {
		return fmt.Errorf("attach to container %s: sandbox %s is lost: %w: %w", id, sandboxID, container.ErrNotFound, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	err = runAttach(conn, id, a)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", id, err)
	}
	return nil
}

func runAttach(conn *net.UnixConn, id string, a container.AttachConfig) error {
	// Nobody else tells that a client is gone, and one that takes no output any more
	// must not hold up the container.
	leave := func() { _ = conn.Close() }
	e := container.ExecConfig{Stdin: a.Stdin, Stdout: untilError(a.Stdout, leave), Stderr: untilError(a.Stderr, leave)}
	pipes, err := openPipes(e)
	if err != nil {
		return err
	}
	defer pipes.close()
	err = wire.Send(conn, wire.Request{Op: wire.OpAttach, Container: id, Stdin: a.Stdin != nil}, pipes.theirs...)
	wire.CloseAll(pipes.theirs)
	pipes.theirs = nil
	if err != nil {
		return err
	}
	var reply wire.Reply
	files, err := wire.Receive(conn, &reply)
	if err != nil {
		return err
	}
	defer wire.CloseAll(files)
	if reply.Error != nil {
		return reply.Error.Err()
	}
	if len(files) == 1 {
		// The terminal, for its size alone.
		if files[0], err = wire.Pollable(files[0]); err != nil {
			return err
		}
		done := make(chan struct{})
		defer close(done)
		go resize(files[0], a.Resize, done)
	}
	copies := pipes.copy(e)
	if _, err := wire.Receive(conn, &reply); err != nil {
		return err
	}
	copies.finish()
	return reply.Error.Err()
}

// leaver is a writer that calls leave when a write has failed.
type leaver struct {
	io.Writer
	leave func()
}

func untilError(w io.Writer, leave func()) io.Writer {
	if w == nil {
		return nil
	}
	return leaver{w, leave}
}

// Write implements io.Writer.
func (l leaver) Write(b []byte) (int, error) {
	n, err := l.Writer.Write(b)
	if err != nil {
		l.leave()
	}
	return n, err
}
