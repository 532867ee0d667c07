// Command nsenter is as much of util-linux' program as the tests use, for virtual
// machines that have no others than the tests' own: nsenter --net=FILE PROGRAM ARGS...
package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "nsenter:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	file, ok := strings.CutPrefix(args[0], "--net=")
	if !ok || len(args) < 2 {
		return fmt.Errorf("usage: nsenter --net=FILE PROGRAM ARGS...")
	}
	program, err := exec.LookPath(args[1])
	if err != nil {
		return err
	}
	ns, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: file, Err: err}
	}
	runtime.LockOSThread() // the thread that enters is the one that becomes the program
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return os.NewSyscallError("setns", err)
	}
	return unix.Exec(program, args[1:], os.Environ())
}
