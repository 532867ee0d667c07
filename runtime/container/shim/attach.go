package shim

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"gitk8s.dev/gitk8s/runtime/container"
	"gitk8s.dev/gitk8s/runtime/container/internal/wire"
)

// attachPatience is how long an attached client may hold up a container by not
// reading what it prints, before it is let go.
const attachPatience = 30 * time.Second

// audience are the clients attached to one output of a container.
type audience struct {
	mu    sync.Mutex
	files []*os.File
}

func (a *audience) add(f *os.File) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.files = append(a.files, f)
}

func (a *audience) remove(f *os.File) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.files = slices.DeleteFunc(a.files, func(g *os.File) bool { return g == f })
}

func (a *audience) write(b []byte) {
	a.mu.Lock()
	files := slices.Clone(a.files)
	a.mu.Unlock()
	for _, f := range files {
		_ = f.SetWriteDeadline(time.Now().Add(attachPatience))
		if _, err := f.Write(b); err != nil {
			a.remove(f)
		}
	}
}

// shown is an output that its audience sees as it is read.
type shown struct {
	io.ReadCloser
	to *audience
}

// Read implements io.Reader.
func (s shown) Read(b []byte) (int, error) {
	n, err := s.ReadCloser.Read(b)
	if n > 0 {
		s.to.write(b[:n])
	}
	return n, err
}

// attach connects the three files of a client to a container until the container
// ends, the client goes away or its input has ended.
func (s *shim) attach(ctx context.Context, conn *net.UnixConn, req wire.Request, files []*os.File) {
	p := s.find(req.Container)
	fail := func(err error) { _ = wire.Send(conn, wire.Reply{Error: wire.FromError(err)}) }
	if p == nil || p.ended() {
		fail(fmt.Errorf("container %s does not run: %w", req.Container, container.ErrNotFound))
		return
	}
	if len(files) != 3 {
		fail(fmt.Errorf("attach came with %d files, not 3", len(files)))
		return
	}
	for i := range files {
		var err error
		if files[i], err = wire.Pollable(files[i]); err != nil {
			fail(err)
			return
		}
	}
	p.stdout.add(files[1])
	defer p.stdout.remove(files[1])
	p.stderr.add(files[2])
	defer p.stderr.remove(files[2])
	var back []*os.File
	if p.cfg.TTY {
		back = []*os.File{p.stdin}
	}
	if err := wire.Send(conn, wire.Reply{}, back...); err != nil {
		return
	}
	var fed chan struct{}
	if req.Stdin && p.cfg.Stdin {
		fed = make(chan struct{})
		go s.feed(p, files[0], fed)
	}
	select {
	case <-ctx.Done():
	case <-p.done:
	case <-fed:
	}
	_ = wire.Send(conn, wire.Reply{Exited: p.ended()})
}

// feed copies a client's input to a container. With stdinOnce the end of it is the
// end of the container's own, and the client stays for the output; else it is left
// open, and fed is closed: the client is let go, as containerd does it. A terminal
// has no end of input.
func (s *shim) feed(p *proc, in *os.File, fed chan struct{}) {
	// Wrapped, so that nothing is spliced: that does not mind a Close.
	_, _ = io.Copy(struct{ io.Writer }{p.stdin}, struct{ io.Reader }{in})
	if p.cfg.StdinOnce {
		if !p.cfg.TTY {
			_ = p.stdin.Close()
		}
		return
	}
	close(fed)
}
