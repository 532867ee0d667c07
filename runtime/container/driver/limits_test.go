package driver

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gitk8s.dev/gitk8s/runtime/container"
)

// limitFiles are where the kernel keeps the limits of a cgroup, with what they say.
type limitFiles map[string]string

// TestLimitsReachTheKernel: what a container is given stands in its cgroup, and what
// it is given later replaces it. CPU shares become weights on cgroup v2, whose
// mapping is libcontainer's.
func TestLimitsReachTheKernel(t *testing.T) {
	given, later := limitFiles{
		"memory/memory.limit_in_bytes": "67108864", "cpu/cpu.cfs_quota_us": "20000", "cpu/cpu.cfs_period_us": "100000", "pids/pids.max": "50",
	}, limitFiles{"memory/memory.limit_in_bytes": "134217728", "cpu/cpu.cfs_quota_us": "5000"}
	if unified() {
		given = limitFiles{"memory.max": "67108864", "cpu.max": "20000 100000", "pids.max": "50"}
		later = limitFiles{"memory.max": "134217728", "cpu.max": "5000 100000"}
	}
	b := newBench(t)
	sb := b.sandbox()
	cfg := b.config("limited", "sleep")
	cfg.Resources = container.Resources{MemoryLimit: 64 << 20, CPUQuota: 20000, CPUPeriod: 100000, PidsLimit: 50}
	b.start(sb, cfg)
	b.checkLimits(sb, cfg.ID, given)
	more := container.Resources{MemoryLimit: 128 << 20, CPUQuota: 5000, CPUPeriod: 100000, PidsLimit: 50}
	if err := b.UpdateResources(context.Background(), sb, cfg.ID, more); err != nil {
		t.Fatal(err)
	}
	b.checkLimits(sb, cfg.ID, later)
}

func (b *bench) checkLimits(sandbox, id string, want limitFiles) {
	b.t.Helper()
	group := cgroupPath(container.SandboxConfig{ID: sandbox, CgroupParent: b.parent}, id)
	for file, value := range want {
		hierarchy, name := filepath.Split(file)
		got, err := os.ReadFile(filepath.Join(cgroupRoot, hierarchy, group, name))
		if err != nil || strings.TrimSpace(string(got)) != value {
			b.t.Errorf("%s is %q, want %q (%v)", file, got, value, err)
		}
	}
}
