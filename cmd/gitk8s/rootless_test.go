package main

import (
	"os"
	"syscall"
	"testing"
)

// TestKeeper: a keeper is found by the file that names it, and one whose starter was
// killed before it could write that is none.
func TestKeeper(t *testing.T) {
	dir := t.TempDir()
	start := func() (pid int, ended <-chan struct{}, lock *os.File) {
		t.Helper()
		lock, running, err := keeperOf(dir)
		if err != nil || running {
			t.Fatalf("it is running: %v, %v", running, err)
		}
		cmd, err := keep(dir, lock, &syscall.SysProcAttr{})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = cmd.Wait()
		}()
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			<-done
		})
		return cmd.Process.Pid, done, lock
	}
	_, ended, lock := start()
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	pid, endedToo, lock := start() // of the one before nobody knows who it is
	<-ended
	if err := writePID(lock, pid); err != nil {
		t.Fatal(err)
	}
	lock.Close()
	// One that was killed is none, from that moment on.
	for range 20 {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		pid, endedToo, lock = start()
		if err := writePID(lock, pid); err != nil {
			t.Fatal(err)
		}
		lock.Close()
	}
	again, running, err := keeperOf(dir)
	if err != nil || !running {
		t.Fatalf("it is running: %v, %v", running, err)
	}
	again.Close()
	if found, err := readKeeper(again.Name()); err != nil || found != pid {
		t.Errorf("process %d is named, not %d; %v", found, pid, err)
	}
	if err := endKeeper(dir); err != nil {
		t.Fatal(err)
	}
	<-endedToo
	if left := names(dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if err := endKeeper(dir); err != nil {
		t.Errorf("where there is none: %v", err)
	}
}
