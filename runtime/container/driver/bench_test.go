package driver

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gitk8s.dev/gitk8s/runtime/container"
)

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// startOne measures from the making of the sandbox to the first line in the log.
func (b *bench) startOne(id string) time.Duration {
	began := time.Now()
	err := b.RunSandbox(context.Background(), container.SandboxConfig{ID: id, Hostname: id, CgroupParent: b.parent})
	if err != nil {
		b.t.Error(err)
		return 0
	}
	cfg := b.config("app", "sleep")
	cfg.LogPath = b.dir + "/logs/" + id
	if err := b.StartContainer(context.Background(), id, cfg); err != nil {
		b.t.Error(err)
		return 0
	}
	for {
		if st, err := os.Stat(cfg.LogPath); err == nil && st.Size() > 0 {
			return time.Since(began)
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// BenchmarkStart reports the time from no sandbox to the first line of the log.
func BenchmarkStart(tb *testing.B) {
	for _, parallel := range []int{1, 8} {
		tb.Run(fmt.Sprintf("parallel-%d", parallel), func(tb *testing.B) {
			b := newBench(tb)
			var all []time.Duration
			n := 0
			for tb.Loop() {
				took := make([]time.Duration, parallel)
				var wg sync.WaitGroup
				for i := range parallel {
					id := fmt.Sprintf("s%d", n)
					n++
					wg.Go(func() { took[i] = b.startOne(id) })
				}
				wg.Wait()
				all = append(all, took...)
				tb.StopTimer()
				for i := range parallel {
					if err := b.RemoveSandbox(context.Background(), fmt.Sprintf("s%d", n-1-i)); err != nil {
						tb.Error(err)
					}
				}
				tb.StartTimer()
			}
			tb.ReportMetric(float64(median(all).Microseconds())/1000, "p50-ms")
		})
	}
}

// BenchmarkExec reports a command in a running container.
func BenchmarkExec(tb *testing.B) {
	b := newBench(tb)
	sb := b.sandbox()
	b.start(sb, b.config("app", "sleep"))
	var all []time.Duration
	for tb.Loop() {
		began := time.Now()
		var out bytes.Buffer
		if _, err := b.Exec(context.Background(), sb, "app", container.ExecConfig{Args: []string{"app", "print", "x"}, Stdout: &out}); err != nil || out.String() != "x\n" {
			tb.Fatal(err, &out)
		}
		all = append(all, time.Since(began))
	}
	tb.ReportMetric(float64(median(all).Microseconds())/1000, "p50-ms")
	// A shim shares most of its pages with the others.
	for range 9 {
		b.start(b.sandbox(), b.config("app", "sleep"))
	}
	tb.ReportMetric(pss(tb, b.shimPid(sb)), "shim-PSS-MB")
	tb.ReportMetric(pss(tb, b.status(sb, "app").Pid), "pid1-PSS-MB")
}

func pss(tb testing.TB, pid int) float64 {
	smaps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(smaps)) {
		if f := strings.Fields(line); f[0] == "Pss:" {
			kb, _ := strconv.ParseFloat(f[1], 64)
			return kb / 1024
		}
	}
	return 0
}
