package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"gitk8s.dev/gitk8s/runtime/container/driver"
	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/handover"
)

// The server of an ordinary user is a process like any other. What needs rights, which
// the user has in namespaces of their own alone, another process does for it: the
// holder, the same command line run inside of them. Its end of the line (handover) is
// file 3. The line ends with either process, of which the other one hears: then the
// holder ends, and with it the workers; their containers run on.

// holderLock is held by the holder while it lives. It may outlive its server by a moment.
const holderLock = "nodes.lock"

// holderPatience is how long a holder waits for that of an earlier start to end.
const holderPatience = 30 * time.Second

// nodesQuestion is a call of a method of nodes.
type nodesQuestion struct {
	Method           string
	Network, Address string         `json:",omitempty"`
	Peers            []network.Peer `json:",omitempty"`
}

// syncAnswer is what Sync returns: both, since what can be done is done.
type syncAnswer struct {
	Ways  network.Ways
	Error string
}

// heldNodes are an ordinary user's, seen by the server.
type heldNodes struct {
	line  *handover.Line
	in    entry
	ended chan struct{} // closed when the holder has ended
}

// holderLost is the error that the holder has ended by itself.
type holderLost struct {
	pid int
	how string
}

func (l *holderLost) Error() string {
	return fmt.Sprintf("process %d, which ran the workers, ended by itself (%s); containers run on: `gitk8s up` goes on with them, `gitk8s down` ends them", l.pid, l.how)
}

// holdNodes starts the holder, and calls lost when it ends.
func (e *env) holdNodes(cfg Config, lost context.CancelCauseFunc) (*heldNodes, error) {
	in, keeper, err := enterable(cfg.DataDir, true)
	if err != nil {
		return nil, err
	}
	e.sayLimits(in)
	args, environ, err := enterCommand(keeper, in, os.Args[1:])
	if err != nil {
		return nil, err
	}
	line, end, err := handover.New()
	if err != nil {
		return nil, err
	}
	defer end.Close()
	h := &heldNodes{line: line, in: in, ended: make(chan struct{})}
	cmd := &exec.Cmd{Path: args[0], Args: args, Env: environ, Stderr: os.Stderr, ExtraFiles: []*os.File{end}}
	// A session of its own: Ctrl-C in a terminal is for the server, which ends it in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		_ = line.Close()
		return nil, err
	}
	go func() {
		_ = cmd.Wait()
		lost(&holderLost{cmd.Process.Pid, cmd.ProcessState.String()})
		close(h.ended)
	}()
	return h, nil
}

func (h *heldNodes) ask(ctx context.Context, q nodesQuestion, answer any) (*os.File, error) {
	f, err := h.line.Ask(ctx, q, answer)
	if errors.Is(err, handover.ErrGone) {
		err = fmt.Errorf("the process that runs the workers is gone: %w", err)
		select { // it is known, then, how it ended
		case <-h.ended:
		case <-ctx.Done():
		case <-time.After(holderPatience):
		}
	}
	return f, err
}

// do is ask for methods that return an error alone.
func (h *heldNodes) do(method string) error {
	_, err := h.ask(context.Background(), nodesQuestion{Method: method}, nil)
	return err
}

// Make implements nodes.
func (h *heldNodes) Make() error { return h.do("Make") }

// Start implements nodes.
func (h *heldNodes) Start() error { return h.do("Start") }

// Stop implements nodes.
func (h *heldNodes) Stop() error { return h.do("Stop") }

// Leave implements nodes, and ends the holder.
func (h *heldNodes) Leave() error { return h.end(h.do("Leave")) }

// Remove implements nodes, and ends the holder.
func (h *heldNodes) Remove() error { return h.end(h.do("Remove")) }

func (h *heldNodes) end(err error) error {
	_ = h.line.Close()
	<-h.ended
	if h.in.Cgroup != "" {
		driver.Undelegate(h.in.Cgroup)
	}
	return err
}

// Listen implements nodes.
func (h *heldNodes) Listen(addr string) (net.Listener, error) {
	f, err := h.ask(context.Background(), nodesQuestion{Method: "Listen", Address: addr}, nil)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FileListener(f)
}

// Dial implements nodes.
func (h *heldNodes) Dial(ctx context.Context, netw, addr string) (net.Conn, error) {
	f, err := h.ask(ctx, nodesQuestion{Method: "Dial", Network: netw, Address: addr}, nil)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FileConn(f)
}

// Sync implements nodes.
func (h *heldNodes) Sync(peers []network.Peer) (network.Ways, error) {
	var a syncAnswer
	_, err := h.ask(context.Background(), nodesQuestion{Method: "Sync", Peers: peers}, &a)
	if err == nil && a.Error != "" {
		err = errors.New(a.Error)
	}
	return a.Ways, err
}

// Changes implements nodes: the file is a pipe with a byte for what has changed.
func (h *heldNodes) Changes(ctx context.Context, changed func()) error {
	pipe, err := h.ask(ctx, nodesQuestion{Method: "Changes"}, nil)
	if err != nil {
		return err
	}
	defer pipe.Close()
	defer context.AfterFunc(ctx, func() { _ = pipe.Close() })()
	for b := make([]byte, 64); ; {
		if _, err := pipe.Read(b); err != nil {
			return err
		}
		changed()
	}
}

// serveHolder is the holder's work, until the server is gone or has no more to ask.
// Signals that end other processes leave it alone: the server says when it is time.
func (e *env) serveHolder(cfg Config, ranges network.Ranges) error {
	thrifty()
	network.PinIn(filepath.Join(cfg.DataDir, pinsDir))
	line, err := handover.Open(os.NewFile(3, "line"))
	if err != nil {
		return fmt.Errorf("%s is for `gitk8s up` to set: %w", entryVar, err)
	}
	h := &holder{ownNodes: newOwnNodes(context.Background(), e, cfg, ranges)}
	return line.Serve(h.answer)
}

// holder answers for nodes that it has.
type holder struct {
	*ownNodes
	lock *os.File
}

func (h *holder) answer(ctx context.Context, question []byte) (answer any, file *os.File, err error) {
	var q nodesQuestion
	if err := json.Unmarshal(question, &q); err != nil {
		return nil, nil, err
	}
	switch q.Method {
	case "Make":
		return nil, nil, h.Make()
	case "Leave":
		return nil, nil, h.Leave()
	case "Start":
		return nil, nil, h.Start()
	case "Stop":
		return nil, nil, h.Stop()
	case "Remove":
		return nil, nil, h.Remove()
	case "Listen":
		l, err := h.Listen(q.Address)
		if err != nil {
			return nil, nil, err
		}
		file, err = network.FileOf(l)
		return nil, file, err
	case "Dial":
		c, err := h.Dial(ctx, q.Network, q.Address)
		if err != nil {
			return nil, nil, err
		}
		file, err = network.FileOf(c)
		return nil, file, err
	case "Sync":
		var a syncAnswer
		if a.Ways, err = h.Sync(q.Peers); err != nil {
			a.Error = err.Error()
		}
		return a, nil, nil
	case "Changes":
		file, err = h.changesPipe()
		return nil, file, err
	}
	return nil, nil, fmt.Errorf("the process that runs the workers does not know %q", q.Method)
}

// Make also waits for the holder of an earlier start, and looks at the machine.
func (h *holder) Make() error {
	if err := h.e.canRunWorkers(h.cfg.DataDir); err != nil {
		return err
	}
	if err := h.takeLock(); err != nil {
		return err
	}
	if h.fresh {
		// What is left of pods whose namespaces are gone.
		if err := cleanNodes(h.cfg.DataDir); err != nil {
			return err
		}
	}
	return h.ownNodes.Make()
}

func (h *holder) takeLock() (err error) {
	if h.lock, err = os.OpenFile(filepath.Join(h.cfg.DataDir, holderLock), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	locked := make(chan error, 1)
	go func() {
		err := error(syscall.EINTR)
		for errors.Is(err, syscall.EINTR) {
			err = syscall.Flock(int(h.lock.Fd()), syscall.LOCK_EX)
		}
		locked <- err
	}()
	select {
	case err := <-locked:
		return errors.Join(err, writePID(h.lock, os.Getpid()))
	case <-time.After(holderPatience):
		pid, _ := os.ReadFile(h.lock.Name())
		return fmt.Errorf("process %s, which ran the workers of an earlier start, does not end", pid)
	}
}

// Leave also ends the keeper, if nothing is kept.
func (h *holder) Leave() error {
	err := h.ownNodes.Leave()
	if err == nil && h.fresh {
		err = letGo(h.cfg.DataDir)
	}
	return err
}

// Remove also ends the keeper.
func (h *holder) Remove() error {
	err := h.ownNodes.Remove()
	if err == nil {
		err = letGo(h.cfg.DataDir)
	}
	return err
}

// changesPipe is for heldNodes.Changes. Who reads it is seen to be gone at the next change.
func (h *holder) changesPipe() (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	go func() {
		defer w.Close()
		ctx, cancel := context.WithCancel(h.ctx)
		defer cancel()
		_ = h.Changes(ctx, func() {
			if _, err := w.Write([]byte{0}); err != nil {
				cancel()
			}
		})
	}()
	return r, nil
}
