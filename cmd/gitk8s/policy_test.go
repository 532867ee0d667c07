package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/network/policy"
)

// TestLeaveMachine: what a worker enforced on a machine of its own goes with it.
func TestLeaveMachine(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, workerConfig), []byte("cluster-cidr: 10.42.0.0/16,fd00::/56\nservice-cidr: 10.43.0.0/16,fd01::/112\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here, and its namespace
		result <- leavesNothing(dir)
	}()
	if err := <-result; err != nil {
		t.Error(err)
	}
}

// leavesNothing enforces and leaves, in a new network namespace.
func leavesNothing(dir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	e, err := policy.NewEnforcer("", true)
	if err != nil {
		return err
	}
	defer e.Close()
	if err := e.Hold([]netip.Addr{netip.MustParseAddr("10.42.1.2"), netip.MustParseAddr("fd00::2")}); err != nil {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	if before, err := conn.ListTables(); err != nil || len(before) != 2 {
		return fmt.Errorf("%d tables before, %v", len(before), err)
	}
	if err := leaveMachine(dir); err != nil {
		return err
	}
	after, err := conn.ListTables()
	if err == nil && len(after) > 0 {
		err = fmt.Errorf("left: table %s", after[0].Name)
	}
	return err
}
