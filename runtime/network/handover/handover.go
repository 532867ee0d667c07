// Package handover lets a process have another one of the same user do what it may not
// do itself. In: a question in JSON, over a Unix socket. Out: the answer, and maybe an
// open file with it, such as a connection that was made elsewhere.
package handover

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxMessage bounds a question, and an answer.
const maxMessage = 1 << 20

// ErrGone is the error that the other process has ended, or has closed the line.
var ErrGone = errors.New("the other process is gone")

// Handler answers a question. ctx ends when who asked has gone away. The file, if there
// is one, is handed over, and closed here.
type Handler func(ctx context.Context, question []byte) (answer any, file *os.File, err error)

// reply comes with a descriptor or without. The number lets who asked tell causes apart
// as if it had done the thing itself.
type reply struct {
	Answer json.RawMessage `json:",omitempty"`
	Error  string          `json:",omitempty"`
	Errno  syscall.Errno   `json:",omitempty"`
}

// failure is what went wrong at the other side.
type failure struct {
	text  string
	errno syscall.Errno
}

func (f *failure) Error() string { return f.text }

func (f *failure) Unwrap() error {
	if f.errno == 0 {
		return nil
	}
	return f.errno
}

// Answer answers the one question of a connection, and closes it.
func Answer(ctx context.Context, c *net.UnixConn, handle Handler) {
	defer c.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	var question json.RawMessage
	if err := json.NewDecoder(io.LimitReader(c, maxMessage)).Decode(&question); err != nil {
		return
	}
	go func() {
		// Who has asked and goes away does not want it any more.
		_, _ = c.Read(make([]byte, 1))
		cancel()
	}()
	answer, file, err := handle(ctx, question)
	var rights []byte
	if file != nil {
		defer file.Close()
		rights = unix.UnixRights(int(file.Fd()))
	}
	if ctx.Err() != nil {
		return
	}
	var r reply
	if err == nil && answer != nil {
		r.Answer, err = json.Marshal(answer)
	}
	if err != nil {
		r.Error = err.Error()
		_ = errors.As(err, &r.Errno)
	}
	b, err := json.Marshal(r)
	if err != nil {
		return
	}
	// The descriptor goes with the first byte. An error says that who asked has gone.
	if n, _, err := c.WriteMsgUnix(b, rights, nil); err == nil && n < len(b) {
		_, _ = c.Write(b[n:])
	}
}

// Ask asks over a connection, which it closes, and returns the file that came with the
// answer; nil if none did. A nil answer is not looked at.
func Ask(ctx context.Context, c *net.UnixConn, question, answer any) (*os.File, error) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	file, err := ask(c, question, answer)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return file, err
}

func ask(c *net.UnixConn, question, answer any) (file *os.File, err error) {
	b, err := json.Marshal(question)
	if err != nil {
		return nil, err
	}
	// Not all values have an end that is seen without what follows.
	if _, err := c.Write(append(b, '\n')); err != nil {
		return nil, gone(err)
	}
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, gone(err)
	}
	if file, err = received(oob[:oobn]); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && file != nil {
			_ = file.Close()
			file = nil
		}
	}()
	var r reply
	if err := json.NewDecoder(io.LimitReader(io.MultiReader(bytes.NewReader(buf[:n]), c), maxMessage)).Decode(&r); err != nil {
		return file, gone(err)
	}
	if r.Error != "" {
		return file, &failure{r.Error, r.Errno}
	}
	if answer == nil {
		return file, nil
	}
	return file, json.Unmarshal(r.Answer, answer)
}

func gone(why error) error { return fmt.Errorf("%w: %w", ErrGone, why) }

// received takes the descriptor that came with a message; nil if there was none.
func received(oob []byte) (*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) == 0 {
		return nil, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return nil, err
	}
	// Whoever had it may have made it one that blocks.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, errors.Join(os.NewSyscallError("fcntl", err), unix.Close(fds[0]))
	}
	return os.NewFile(uintptr(fds[0]), "handed over"), nil
}
