package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/container"
	"gitk8s.dev/gitk8s/runtime/container/internal/wire"
)

// exec runs a command in a container. The command writes straight to the files
// that came with the request, or to a terminal which goes back with the first
// reply; the shim only tells how it ended. Whoever asked going away kills it.
func (s *shim) exec(ctx context.Context, conn *net.UnixConn, req wire.Request, files []*os.File) {
	process, terminal, err := s.startExec(req, files)
	wire.CloseAll(files)
	if err != nil {
		_ = wire.Send(conn, wire.Reply{Error: wire.FromError(err)})
		return
	}
	var back []*os.File
	if terminal != nil {
		back = []*os.File{terminal}
	}
	err = wire.Send(conn, wire.Reply{}, back...)
	wire.CloseAll(back)
	if err != nil {
		_ = process.Signal(unix.SIGKILL)
	}
	stopKill := context.AfterFunc(ctx, func() { _ = process.Signal(unix.SIGKILL) })
	state, err := s.children.wait(process)
	stopKill()
	reply := wire.Reply{Exited: true}
	if state == nil {
		reply.Error = wire.FromError(fmt.Errorf("wait for command: %w", err))
	} else if ws, ok := state.Sys().(syscall.WaitStatus); ok {
		reply.ExitCode = ws.ExitStatus()
		if ws.Signaled() {
			reply.ExitCode = 128 + int(ws.Signal())
		}
	}
	_ = wire.Send(conn, reply)
}

func (s *shim) startExec(req wire.Request, files []*os.File) (*libcontainer.Process, *os.File, error) {
	p := s.find(req.Container)
	if p == nil || p.ended() {
		return nil, nil, fmt.Errorf("container %s does not run: %w", req.Container, container.ErrNotFound)
	}
	if len(req.Args) == 0 {
		return nil, nil, errors.New("exec without a command")
	}
	process := &libcontainer.Process{
		Args:             req.Args,
		Env:              append(environment(p.cfg.Env, req.TTY), req.Env...),
		Cwd:              workingDir(p.cfg),
		UID:              p.user.uid,
		GID:              p.user.gid,
		AdditionalGroups: p.user.groups,
	}
	var console *os.File
	if req.TTY {
		ours, theirs, err := consoleSocket()
		if err != nil {
			return nil, nil, err
		}
		defer ours.Close()
		defer theirs.Close()
		process.ConsoleSocket, console = theirs, ours
	} else {
		if len(files) != 3 {
			return nil, nil, fmt.Errorf("exec came with %d files, not 3", len(files))
		}
		if err := s.users.own(files...); err != nil {
			return nil, nil, err
		}
		process.Stdin, process.Stdout, process.Stderr = files[0], files[1], files[2]
	}
	if err := s.children.start(process, p.container.Start); err != nil {
		if p.ended() || strings.Contains(err.Error(), "container not running") {
			return nil, nil, fmt.Errorf("container %s ended: %w", req.Container, container.ErrNotFound)
		}
		return nil, nil, startFailure(req.Args[0], err)
	}
	if console == nil {
		return process, nil, nil
	}
	terminal, err := receiveConsole(console)
	if err != nil {
		_ = process.Signal(unix.SIGKILL)
		_, _ = s.children.wait(process)
		return nil, nil, err
	}
	return process, terminal, nil
}
