package driver

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDelegable: the machine's own cgroup is nobody's to divide, and the words say what
// to do; one that was delegated to a user is, once.
func TestDelegable(t *testing.T) {
	parent, err := Delegable()
	if delegated == "" {
		if err == nil {
			t.Skipf("somebody has delegated %s", parent)
		}
		want := "is not delegated to you"
		if !unified() {
			want = "only cgroup v2 can be delegated"
		}
		if own, e := ownCgroup(); e == nil && own != "/" && unified() {
			t.Skipf("this process is in %s: %v", own, err)
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say that it %s", err, want)
		}
		return
	}
	if err != nil || parent != delegated {
		t.Errorf("after it was taken: %q, %v", parent, err)
	}
	if b, err := os.ReadFile(filepath.Join(cgroupRoot, parent, subtreeControl)); err != nil || strings.TrimSpace(string(b)) != strings.Join(needed, " ") {
		t.Errorf("controllers %q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(cgroupRoot, parent, "cgroup.procs")); err != nil || len(b) > 0 {
		t.Errorf("processes beside the cgroups with limits: %q, %v", b, err)
	}
}
