// Command gitk8s turns a Git repository into running containers on a few
// machines, speaking the Kubernetes API. Each subcommand has a file of its own;
// everything is wired here and nowhere else.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	_ "gitk8s.dev/gitk8s/runtime/container/shim" // takes over when re-executed as a shim or inside a container
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := Run(ctx, os.Args[1:], stdio{os.Stdin, os.Stdout, os.Stderr})
	stop()
	os.Exit(code)
}

// stdio are the streams of one run: results go to out, progress and errors to err.
type stdio struct {
	in  io.Reader
	out io.Writer
	err io.Writer
}

// exitError ends the program with a code, its message having been printed if it
// has one.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usageError is wrong usage: exit code 2.
func usageError(format string, args ...any) error {
	return &exitError{2, fmt.Errorf(format, args...)}
}

// Run is the program: it runs one command line and returns the exit code.
func Run(ctx context.Context, args []string, io stdio) int {
	root := newRoot(io)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var exit *exitError
	if errors.As(err, &exit) {
		if exit.err != nil {
			fmt.Fprintln(io.err, "error:", exit.err)
		}
		return exit.code
	}
	fmt.Fprintln(io.err, "error:", err)
	return 1
}
