package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Line is one end of what joins two processes that nobody else gets at. Any number of
// questions may be under way on it; each has a connection of its own, whose other end
// goes over the line. Its methods may be called at the same time.
type Line struct{ conn *net.UnixConn }

// New makes a line. The file is its other end, for a child process (Open); the caller
// closes it.
func New() (*Line, *os.File, error) {
	mine, theirs, err := pair(unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, nil, err
	}
	return &Line{mine}, theirs, nil
}

// Open takes a process's end of a line, and closes the file.
func Open(f *os.File) (*Line, error) {
	conn, err := connOf(f)
	if err != nil {
		return nil, err
	}
	return &Line{conn}, nil
}

// pair makes two sockets that are joined.
func pair(kind int) (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "line")
	mine, err := connOf(os.NewFile(uintptr(fds[0]), "line"))
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return mine, theirs, nil
}

func connOf(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("%s is no line between processes", f.Name())
	}
	return u, nil
}

// Ask asks the other side, and returns the file that came with the answer; nil if none
// did. A nil answer is not looked at.
func (l *Line) Ask(ctx context.Context, question, answer any) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	mine, theirs, err := pair(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	_, _, err = l.conn.WriteMsgUnix([]byte{0}, unix.UnixRights(int(theirs.Fd())), nil)
	_ = theirs.Close()
	if err != nil {
		_ = mine.Close()
		return nil, gone(err)
	}
	return Ask(ctx, mine, question, answer)
}

// Serve answers what the other side asks, until that is gone or closes the line.
func (l *Line) Serve(handle Handler) error {
	defer l.conn.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for {
		oob := make([]byte, unix.CmsgSpace(4))
		_, oobn, _, _, err := l.conn.ReadMsgUnix(make([]byte, 1), oob)
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			return nil
		}
		if err != nil {
			return err
		}
		f, err := received(oob[:oobn])
		if err != nil {
			return err
		}
		if f == nil {
			continue // no descriptors left, for now: who asked hears that there is no answer
		}
		c, err := connOf(f)
		if err != nil {
			return err
		}
		go Answer(ctx, c, handle)
	}
}

// Close ends the line, of which the other side hears.
func (l *Line) Close() error { return l.conn.Close() }
