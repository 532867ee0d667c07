package etcd

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestReserve: the database owns blocks beyond its end, its size and content stay.
func TestReserve(t *testing.T) {
	file := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	end, err := reserve(file, 0)
	if err != nil || end != reserveBytes+7 {
		t.Fatalf("reserved up to %d, %v", end, err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	blocks := info.Sys().(*syscall.Stat_t).Blocks * 512
	if b, err := os.ReadFile(file); err != nil || string(b) != "content" || info.Size() != 7 {
		t.Errorf("the file became %q of %d bytes, %v", b, info.Size(), err)
	}
	if blocks < reserveBytes {
		t.Errorf("%d bytes are allocated, want %d", blocks, reserveBytes)
	}
	// A database that shrank has all it needs.
	if again, err := reserve(file, end+1); err != nil || again != end {
		t.Errorf("again: %d, %v", again, err)
	}
	if _, err := reserve(file+"-gone", 0); err == nil {
		t.Error("a file that is not there was reserved")
	}
}
