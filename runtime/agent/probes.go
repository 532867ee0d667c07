package agent

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/runtime/container"
	"gitk8s.dev/gitk8s/runtime/probe"
)

// probeStop ends one probe of a run.
type probeStop struct {
	kind probe.Kind
	stop func()
}

// addProbes begins to ask about c's present run. The startup probe comes first and
// alone. adopted says that the run was found, not started, by this agent.
func (w *worker) addProbes(c *ctr, adopted bool) {
	if !adopted {
		c.started = c.spec.StartupProbe == nil
		c.ready = c.spec.ReadinessProbe == nil
	}
	if !c.started {
		w.addProbe(c, probe.Startup, c.spec.StartupProbe, adopted)
		return
	}
	w.addLaterProbes(c, adopted)
}

// addLaterProbes begins the probes that the startup probe holds back.
func (w *worker) addLaterProbes(c *ctr, adopted bool) {
	if c.spec.LivenessProbe != nil {
		w.addProbe(c, probe.Liveness, c.spec.LivenessProbe, adopted)
	}
	if c.spec.ReadinessProbe != nil {
		w.addProbe(c, probe.Readiness, c.spec.ReadinessProbe, adopted)
	}
}

func (w *worker) addProbe(c *ctr, kind probe.Kind, spec *v1.Probe, adopted bool) {
	id := c.cur.ID
	job := probe.Job{
		Kind: kind, Spec: spec, Started: c.cur.StartedAt, Spread: adopted,
		Target: probe.Target{
			IP: firstIP(w.s.ips), Ports: c.spec.Ports,
			Exec: func(ctx context.Context, command []string) (int, string, error) { return w.exec(ctx, id, command) },
		},
		Report: func(r probe.Report) { w.post(func() { w.probed(c, id, spec, r) }) },
	}
	if kind == probe.Readiness && c.ready {
		job.Initial = probe.Success
	}
	w.probes[c] = append(w.probes[c], probeStop{kind, w.a.prober.Add(job)})
}

// stopProbes ends c's probes of the kinds given, or all.
func (w *worker) stopProbes(c *ctr, kinds ...probe.Kind) {
	var left []probeStop
	for _, p := range w.probes[c] {
		keep := len(kinds) > 0
		for _, k := range kinds {
			keep = keep && p.kind != k
		}
		if keep {
			left = append(left, p)
		} else {
			p.stop()
		}
	}
	if len(left) == 0 {
		delete(w.probes, c)
	} else {
		w.probes[c] = left
	}
}

// probed takes an answer about the run id of c.
func (w *worker) probed(c *ctr, id string, spec *v1.Probe, r probe.Report) {
	if c.cur == nil || c.cur.ID != id || !c.running() {
		return
	}
	switch r.Outcome.Result {
	case probe.Failure:
		w.event(v1.EventTypeWarning, "Unhealthy", fmt.Sprintf("%s probe failed: %s", r.Kind, r.Outcome.Output), c.spec.Name)
	case probe.Unknown:
		w.event(v1.EventTypeWarning, "Unhealthy", fmt.Sprintf("%s probe errored: %s", r.Kind, r.Outcome.Output), c.spec.Name)
	}
	if !r.Changed {
		return
	}
	good := r.Result == probe.Success
	switch r.Kind {
	case probe.Readiness:
		c.ready = good
	case probe.Startup:
		w.stopProbes(c, probe.Startup)
		if good {
			c.started = true
			c.ready = c.spec.ReadinessProbe == nil
			w.addLaterProbes(c, false)
		} else {
			w.killUnhealthy(c, spec, "failed startup probe")
		}
	case probe.Liveness:
		if !good {
			w.killUnhealthy(c, spec, "failed liveness probe")
		}
	}
}

func (w *worker) killUnhealthy(c *ctr, spec *v1.Probe, why string) {
	grace := 30 * time.Second
	if g := w.s.pod.Spec.TerminationGracePeriodSeconds; g != nil {
		grace = time.Duration(*g) * time.Second
	}
	if spec.TerminationGracePeriodSeconds != nil {
		// KEP-2238: a hung container need not be waited for as long as a healthy one.
		grace = time.Duration(*spec.TerminationGracePeriodSeconds) * time.Second
	}
	c.kill = &killOrder{fmt.Sprintf("Container %s %s, will be restarted", c.spec.Name, why), grace}
}

// exec runs a command in the run id and returns its exit code and the beginning of
// its output.
func (w *worker) exec(ctx context.Context, id string, command []string) (int, string, error) {
	out := &limitedBuffer{limit: 10 << 10}
	code, err := w.a.cfg.Runtime.Exec(ctx, w.uid, id, container.ExecConfig{Args: command, Stdout: out, Stderr: out})
	return code, out.String(), err
}

// limitedBuffer keeps the first limit bytes and drops the rest. It stands for both
// stdout and stderr, which are written at the same time.
type limitedBuffer struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	limit int
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if room := b.limit - b.buf.Len(); room > 0 {
		b.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (b *limitedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// httpHook sends the request of a lifecycle handler: any answer below 400 is good.
func httpHook(ctx context.Context, a *v1.HTTPGetAction, ip string, ports []v1.ContainerPort) error {
	out := probe.Once(ctx, &v1.Probe{ProbeHandler: v1.ProbeHandler{HTTPGet: a}, TimeoutSeconds: 30}, probe.Target{IP: ip, Ports: ports})
	if out.Result != probe.Success {
		return fmt.Errorf("%s", out.Output)
	}
	return nil
}
