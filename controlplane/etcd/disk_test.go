package etcd_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"gitk8s.dev/gitk8s/controlplane/etcd"
)

// TestWritesUntilTheDiskIsFull writes until the disk has no block left: the process
// ends and says why, and once there is room everything acknowledged is there.
func TestWritesUntilTheDiskIsFull(t *testing.T) {
	disk := t.TempDir()
	// Two segments of the log, the reserve, and not much more.
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=200m"); errors.Is(err, syscall.EPERM) {
		t.Skip("mounting a small file system needs root")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	dir := filepath.Join(disk, "etcd")
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir, childPadding+"=262144")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("the process ended with %v, want exit code 1", err)
	}
	for _, want := range []string{"etcd cannot go on", "no space left on device"} {
		if !strings.Contains(errOut.String(), want) {
			t.Errorf("%q is missing in: %s", want, errOut.String())
		}
	}
	acknowledged := strings.Count(out.String(), "\n")
	if acknowledged < 100 {
		t.Errorf("only %d writes were acknowledged", acknowledged)
	}

	if err := syscall.Mount("", disk, "", syscall.MS_REMOUNT, "size=400m"); err != nil {
		t.Fatal(err)
	}
	s, err := etcd.Start(t.Context(), etcd.Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	resp, err := s.Client().Get(t.Context(), "/k/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		t.Fatal(err)
	}
	if resp.Count < int64(acknowledged) {
		t.Errorf("%d writes were acknowledged and %d are there", acknowledged, resp.Count)
	}
	t.Logf("%d writes before the end: %s", acknowledged, errOut.String())
	if _, err := s.Client().Put(t.Context(), "/k/more", "v"); err != nil {
		t.Errorf("with room again: %v", err)
	}
}
