package driver

import (
	"os"
	"path/filepath"
	"slices"
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
	b, err := os.ReadFile(filepath.Join(cgroupRoot, parent, subtreeControl))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range needed {
		if !slices.Contains(strings.Fields(string(b)), c) {
			t.Errorf("controllers %q are without %s", b, c)
		}
	}
	if b, err := os.ReadFile(filepath.Join(cgroupRoot, parent, "cgroup.procs")); err != nil || len(b) > 0 {
		t.Errorf("processes beside the cgroups with limits: %q, %v", b, err)
	}
}
