package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"gitk8s.dev/gitk8s/runtime/container"
)

const (
	streamIdle   = 4 * time.Hour
	streamCreate = 30 * time.Second
)

// executor runs the command of an exec request in one run of a container.
type executor struct {
	w  *worker
	id string
}

func (a *Agent) serveExec(rw http.ResponseWriter, r *http.Request) error {
	w, in, err := a.runningContainer(r)
	if err != nil {
		return err
	}
	opts, err := remotecommand.NewOptions(r)
	if err != nil {
		return badRequest("%v", err)
	}
	command := r.URL.Query()["command"]
	if len(command) == 0 {
		return badRequest("a command is required")
	}
	remotecommand.ServeExec(rw, r, executor{w, in.ID}, w.name, w.uid, r.PathValue("container"), command,
		opts, streamIdle, streamCreate, remotecommand.SupportedStreamingProtocols)
	return nil
}

// ExecInContainer implements remotecommand.Executor.
func (e executor) ExecInContainer(ctx context.Context, _, _, _ string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cfg := container.ExecConfig{Args: cmd, TTY: tty}
	// Interfaces that hold nil would not be nil.
	if in != nil {
		cfg.Stdin = in
	}
	if out != nil {
		cfg.Stdout = out
	}
	if errOut != nil && !tty {
		cfg.Stderr = errOut
	}
	if tty && resize != nil {
		cfg.Resize = windowSizes(ctx, resize)
	}
	code, err := e.w.a.cfg.Runtime.Exec(ctx, e.w.uid, e.id, cfg)
	if err != nil {
		return err
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("exit status %d", code), Code: code}
	}
	return nil
}

// windowSizes passes terminal sizes on until ctx ends.
func windowSizes(ctx context.Context, resize <-chan remotecommand.TerminalSize) <-chan container.WindowSize {
	sizes := make(chan container.WindowSize)
	go func() {
		defer close(sizes)
		for {
			select {
			case s, ok := <-resize:
				if !ok {
					return
				}
				select {
				case sizes <- container.WindowSize{Width: s.Width, Height: s.Height}:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return sizes
}

// attacher connects to the first process of one run of a container.
type attacher struct {
	w  *worker
	id string
	// stdin: the container has one.
	stdin bool
}

func (a *Agent) serveAttach(rw http.ResponseWriter, r *http.Request) error {
	w, in, err := a.runningContainer(r)
	if err != nil {
		return err
	}
	opts, err := remotecommand.NewOptions(r)
	if err != nil {
		return badRequest("%v", err)
	}
	name := r.PathValue("container")
	at := attacher{w, in.ID, w.view.Load().container(name).Stdin}
	remotecommand.ServeAttach(rw, r, at, w.name, w.uid, name, opts, streamIdle, streamCreate, remotecommand.SupportedStreamingProtocols)
	return nil
}

// AttachContainer implements remotecommand.Attacher.
func (at attacher) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var cfg container.AttachConfig
	// Interfaces that hold nil would not be nil.
	if in != nil && at.stdin {
		cfg.Stdin = in
	}
	if out != nil {
		cfg.Stdout = out
	}
	if errOut != nil && !tty {
		cfg.Stderr = errOut
	}
	if tty && resize != nil {
		cfg.Resize = windowSizes(ctx, resize)
	}
	return at.w.a.cfg.Runtime.Attach(ctx, at.w.uid, at.id, cfg)
}

// forwarder carries connections to ports of one pod.
type forwarder struct {
	w    *worker
	view *podView
}

func (a *Agent) servePortForward(rw http.ResponseWriter, r *http.Request) error {
	w, v, err := a.target(r)
	if err != nil {
		return err
	}
	opts, err := portforward.NewV4Options(r)
	if err != nil {
		return badRequest("%v", err)
	}
	portforward.ServePortForward(rw, r, forwarder{w, v}, w.name, w.uid, opts, streamIdle, streamCreate, portforward.SupportedProtocols)
	return nil
}

// PortForward implements portforward.PortForwarder.
func (f forwarder) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	conn, err := f.dial(ctx, port)
	if err != nil {
		return err
	}
	defer conn.Close()
	// When the pod's side ends all is said; when the client's side ends the pod may
	// still answer.
	var toPod sync.WaitGroup
	toPod.Go(func() {
		io.Copy(conn, stream)
		if tcp, ok := conn.(*net.TCPConn); ok {
			tcp.CloseWrite()
		}
	})
	_, err = io.Copy(stream, conn)
	conn.Close()
	stream.Close()
	toPod.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("forward port %d: %w", port, err)
	}
	return nil
}

// dial connects to localhost inside the pod's network namespace, so that servers
// that listen there alone are reached too.
func (f forwarder) dial(ctx context.Context, port int32) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port)))
	if f.view.pod.Spec.HostNetwork {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
	netns, _, err := f.w.a.cfg.Network.Setup(ctx, f.w.uid, f.w.namespace, f.w.name, ownUsers(f.view.pod))
	if err != nil {
		return nil, fmt.Errorf("find the network namespace of the pod: %w", err)
	}
	var conn net.Conn
	err = inNetNS(netns, func() error {
		// A literal address is connected by the calling goroutine itself, hence in the
		// namespace of its thread.
		d := net.Dialer{FallbackDelay: -1}
		var err error
		conn, err = d.DialContext(ctx, "tcp4", addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connect to port %d in the pod: %w", port, err)
	}
	return conn, nil
}

// inNetNS runs f on a thread that is in the network namespace at path. The thread
// ends with it, so that no other goroutine ever runs there.
func inNetNS(path string, f func() error) error {
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the runtime throws the thread away.
		runtime.LockOSThread()
		ns, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			result <- fmt.Errorf("open network namespace %s: %w", path, err)
			return
		}
		defer unix.Close(ns)
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("enter network namespace %s: %w", path, err)
			return
		}
		result <- f()
	}()
	return <-result
}
