// Package wire is what the driver in the worker and the shim of a sandbox say to
// each other: one request a connection over a unix socket, JSON with a length in
// front, open files beside it. Neither side trusts the other to stay alive.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/container"
)

// Names that both sides know.
const (
	// ShimArg0 is the argv[0] that makes the executable a shim.
	ShimArg0 = "gitk8s-shim"
	// SocketFile, ConfigFile and the rest are names in the sandbox's directory.
	SocketFile = "shim.sock"
	ConfigFile = "config.json"
	StateFile  = "state.json"
	LockFile   = "lock"
	LogFile    = "shim.log"
	ExeFile    = "exe"

	// ContainersDir holds a directory for each container, and in it UpperDir what the
	// container has written.
	ContainersDir = "c"
	UpperDir      = "upper"

	// LockFd and ReadyFd are the files that the shim inherits: the lock it holds
	// for as long as it lives, and the pipe on which it says that it is ready.
	LockFd  = 3
	ReadyFd = 4

	maxMessage = 16 << 20
	maxFiles   = 250
)

// Op is what a request asks for.
type Op string

// The operations. Watch answers with a Reply at once and after every change until
// the connection ends; Exec and Attach with one at the beginning and one at the end.
const (
	OpWatch    Op = "watch"
	OpStart    Op = "start"
	OpStop     Op = "stop"
	OpRemove   Op = "remove"
	OpUpdate   Op = "update"
	OpExec     Op = "exec"
	OpAttach   Op = "attach"
	OpShutdown Op = "shutdown"
)

// Request is the first message of a connection.
type Request struct {
	Op        Op
	Container string
	// Start: the container, and for each of its mounts an open detached mount
	// among the files of the message, in order.
	Config *container.ContainerConfig `json:",omitempty"`
	// Stop.
	Signal  int   `json:",omitempty"`
	GraceMS int64 `json:",omitempty"`
	// Update.
	Resources *container.Resources `json:",omitempty"`
	// Exec: without TTY the files are stdin, stdout and stderr of the command.
	Args []string `json:",omitempty"`
	Env  []string `json:",omitempty"`
	TTY  bool     `json:",omitempty"`
	// Attach: the files are stdin, stdout and stderr of the client, of which the
	// first counts only with Stdin.
	Stdin bool `json:",omitempty"`
}

// Reply answers a request. Seq grows with every change of State.
type Reply struct {
	Seq      uint64                   `json:",omitempty"`
	State    *container.SandboxStatus `json:",omitempty"`
	Error    *Error                   `json:",omitempty"`
	Exited   bool                     `json:",omitempty"`
	ExitCode int                      `json:",omitempty"`
}

// Error carries an error over the socket.
type Error struct {
	Message  string
	Reason   string `json:",omitempty"` // of a StartError
	ExitCode int    `json:",omitempty"`
	NotFound bool   `json:",omitempty"`
}

// FromError makes err portable.
func FromError(err error) *Error {
	if err == nil {
		return nil
	}
	e := &Error{Message: err.Error(), NotFound: container.IsNotFound(err)}
	var start *container.StartError
	if errors.As(err, &start) {
		e.Reason, e.ExitCode = start.Reason, start.ExitCode
	}
	return e
}

// Err is the inverse of FromError.
func (e *Error) Err() error {
	switch {
	case e == nil:
		return nil
	case e.Reason != "":
		return &container.StartError{Reason: e.Reason, ExitCode: e.ExitCode, Err: errors.New(e.Message)}
	case e.NotFound:
		return &notFound{e.Message}
	default:
		return errors.New(e.Message)
	}
}

type notFound struct{ message string }

func (e *notFound) Error() string { return e.message }

func (e *notFound) Unwrap() error { return container.ErrNotFound }

// Send writes one message with its files.
func Send(c *net.UnixConn, v any, files ...*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %T: %w", v, err)
	}
	if len(body) > maxMessage || len(files) > maxFiles {
		return fmt.Errorf("message of %d bytes with %d files is too big for the shim (at most %d and %d)", len(body), len(files), maxMessage, maxFiles)
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			if fds[i], err = rawFd(f); err != nil {
				return err
			}
		}
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix(head, rights, nil); err != nil {
		return err
	}
	_, err = c.Write(body)
	return err
}

// rawFd is the descriptor of a file that stays as it is: File.Fd would make it
// blocking.
func rawFd(f *os.File) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	if err := raw.Control(func(n uintptr) { fd = int(n) }); err != nil {
		return -1, err
	}
	return fd, nil
}

// Receive reads one message with its files; the caller closes them.
func Receive(c *net.UnixConn, v any) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			CloseAll(files)
			files = nil
		}
	}()
	var head [4]byte
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, _, _, err := c.ReadMsgUnix(head[:], oob)
	if oobn > 0 {
		if files, err = parseRights(oob[:oobn]); err != nil {
			return files, err
		}
	}
	if err != nil {
		return files, err
	}
	if n == 0 {
		return files, io.EOF
	}
	if _, err := io.ReadFull(c, head[n:]); err != nil {
		return files, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxMessage {
		return files, fmt.Errorf("message of %d bytes refused", size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c, body); err != nil {
		return files, err
	}
	return files, json.Unmarshal(body, v)
}

func parseRights(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	var files []*os.File
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return files, fmt.Errorf("parse file rights: %w", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// Pollable makes reads and writes of a received file obey deadlines and Close. It
// takes the place of f.
func Pollable(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	_ = f.Close()
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("set non-blocking", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// CloseAll closes files that were received or are no longer needed.
func CloseAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// SocketAddr names the socket in an open directory by way of /proc, since the
// path of a unix socket may have no more than 107 bytes.
func SocketAddr(dir *os.File) *net.UnixAddr {
	return &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), SocketFile)}
}

// WriteFileAtomic replaces a file so that a reader, or a crash of this process,
// sees the old or the new content and nothing between.
func WriteFileAtomic(path string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, body, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// ReadFile reads what WriteFileAtomic wrote.
func ReadFile(path string, v any) error {
	body, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}
