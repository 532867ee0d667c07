package agent

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

func TestUsage(t *testing.T) {
	start := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	// The container is as old as the test minus an hour, and uses half a core; the
	// machine uses one.
	look := func(s float64) *usageLook {
		return &usageLook{node: cpuSample{at(s), time.Duration(s * 1e9)}, pods: []podLook{{name: "p", namespace: "n", uid: "u", containers: []containerLook{
			{name: "c", key: "u/c-0", started: at(-3600), cpuSample: cpuSample{at(s), time.Duration(s * 5e8)}, memory: 1 << 20},
		}}}}
	}
	var m usageMeter
	ask := func(s float64) (usageReport, bool) {
		l := look(s)
		since, all := m.since(l)
		m.remember(l)
		return report("node", l, since, 7), all
	}
	if r, all := ask(0); all || r.Node != nil || len(r.Pods) != 0 {
		t.Errorf("the first look is compared with nothing, got %+v", r)
	}
	if _, all := ask(5); all {
		t.Error("a look of 5 seconds ago is too fresh")
	}
	for _, c := range []struct{ s, window float64 }{{15, 15}, {16, 16}, {24, 24}, {25, 10}, {40, 15}} {
		r, all := ask(c.s)
		if !all || r.Node == nil || len(r.Pods) != 1 {
			t.Fatalf("at %v: %+v", c.s, r)
		}
		p := r.Pods[0]
		if got := p.Window.Seconds(); got != c.window {
			t.Errorf("at %v: window %v, want %v", c.s, got, c.window)
		}
		usage := p.Containers[0].Usage
		if got := usage[v1.ResourceCPU]; got.MilliValue() != 500 {
			t.Errorf("at %v: the container uses %s", c.s, got.String())
		}
		if got := usage[v1.ResourceMemory]; got.Value() != 1<<20 {
			t.Errorf("at %v: the container has %s", c.s, got.String())
		}
		if got := r.Node.Usage[v1.ResourceCPU]; got.MilliValue() != 1000 {
			t.Errorf("at %v: the node uses %s", c.s, got.String())
		}
	}
	if _, all := ask(1000); all {
		t.Error("what was a quarter of an hour ago says nothing about now")
	}
}

func TestUsageOfYoungContainer(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	l := &usageLook{node: cpuSample{now, 0}, pods: []podLook{{uid: "u", containers: []containerLook{
		{key: "u/c-0", started: now.Add(-20 * time.Second), cpuSample: cpuSample{now, 5 * time.Second}},
	}}}}
	var m usageMeter
	since, all := m.since(l)
	r := report("node", l, since, 0)
	if all || r.Node != nil || len(r.Pods) != 1 {
		t.Fatalf("only the container is known since its start, got %+v", r)
	}
	if cpu := r.Pods[0].Containers[0].Usage[v1.ResourceCPU]; cpu.MilliValue() != 250 {
		t.Errorf("it uses %s", cpu.String())
	}
	m.remember(l)
	m.remember(&usageLook{node: cpuSample{now.Add(time.Minute), 0}})
	if len(m.history) != 1 {
		t.Errorf("what does not run is remembered: %v", m.history)
	}
}

func TestMachineCPU(t *testing.T) {
	before, err := machineCPU()
	if err != nil || before <= 0 {
		t.Fatal(before, err)
	}
	if after, err := machineCPU(); err != nil || after < before {
		t.Errorf("%s after %s, %v", after, before, err)
	}
}
