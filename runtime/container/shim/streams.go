package shim

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/container"
	"gitk8s.dev/gitk8s/runtime/container/internal/wire"
)

// streams are the standard files of a container's first process.
type streams struct {
	stdin   *os.File // our end, held open
	outputs map[string]*os.File
	child   []*os.File // the process's ends, closed once it runs
	console *os.File   // receives the terminal
}

func openStreams(p *proc) (st *streams, err error) {
	st = &streams{outputs: map[string]*os.File{}}
	defer func() {
		if err != nil {
			st.close()
			err = &container.StartError{Reason: "CreateContainerError", ExitCode: 128, Err: fmt.Errorf("open standard files: %w", err)}
		}
	}()
	if p.cfg.TTY {
		ours, theirs, err := consoleSocket()
		if err != nil {
			return st, err
		}
		st.console, st.child = ours, []*os.File{theirs}
		p.process.ConsoleSocket = theirs
		return st, nil
	}
	if p.cfg.Stdin {
		r, w, err := os.Pipe()
		if err != nil {
			return st, err
		}
		st.stdin, st.child = w, append(st.child, r)
		p.process.Stdin = r
	}
	for _, name := range []string{"stdout", "stderr"} {
		r, w, err := os.Pipe()
		if err != nil {
			return st, err
		}
		st.outputs[name], st.child = r, append(st.child, w)
		if name == "stdout" {
			p.process.Stdout = w
		} else {
			p.process.Stderr = w
		}
	}
	return st, nil
}

// started closes what belongs to the process and receives its terminal.
func (st *streams) started() error {
	for _, f := range st.child {
		_ = f.Close()
	}
	st.child = nil
	if st.console == nil {
		return nil
	}
	tty, err := receiveConsole(st.console)
	if err == nil {
		tty, err = wire.Pollable(tty)
	}
	if err != nil {
		return &container.StartError{Reason: "StartError", ExitCode: 128, Err: err}
	}
	_ = st.console.Close()
	st.console = nil
	st.outputs["stdout"] = tty
	// Of its own, since the other is closed when the output has ended.
	if st.stdin, err = duplicate(tty); err != nil {
		return &container.StartError{Reason: "StartError", ExitCode: 128, Err: err}
	}
	return nil
}

// duplicate opens f once more; both are non-blocking.
func duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if e := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); e != nil || err != nil {
		return nil, errors.Join(e, os.NewSyscallError("dup", err))
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func (st *streams) close() {
	for _, f := range st.child {
		_ = f.Close()
	}
	for _, f := range st.outputs {
		_ = f.Close()
	}
	if st.stdin != nil {
		_ = st.stdin.Close()
	}
	if st.console != nil {
		_ = st.console.Close()
	}
}

// consoleSocket is the pair over which libcontainer's init sends the terminal.
func consoleSocket() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "console"), os.NewFile(uintptr(fds[1]), "console-child"), nil
}

func receiveConsole(socket *os.File) (*os.File, error) {
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, oobn, _, _, err := unix.Recvmsg(int(socket.Fd()), buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) == 0 {
		return nil, errors.Join(errors.New("receive terminal: no file came"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return nil, errors.Join(errors.New("receive terminal: no file came"), err)
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}
