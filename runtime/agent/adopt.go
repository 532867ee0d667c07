package agent

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/runtime/container"
	"gitk8s.dev/gitk8s/runtime/network"
)

// podMeta is what the agent remembers of a pod beside what the runtime knows.
type podMeta struct {
	Namespace  string                  `json:"namespace"`
	Name       string                  `json:"name"`
	IPs        []netip.Addr            `json:"ips,omitempty"`
	IP         string                  `json:"ip,omitempty"` // what there was before there were several
	Instances  map[string]instanceMeta `json:"instances,omitempty"`
	Containers map[string]ctrMeta      `json:"containers,omitempty"`
	// Status is how a static pod has ended: of other pods the API knows.
	Status *v1.PodStatus `json:"status,omitempty"`
}

type instanceMeta struct {
	Image   string `json:"image,omitempty"`
	ImageID string `json:"imageID,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

type ctrMeta struct {
	CrashDelay time.Duration `json:"crashDelay,omitempty"`
	CrashAt    time.Time     `json:"crashAt,omitzero"`
}

func (w *worker) metaPath() string { return filepath.Join(w.a.podDir(w.uid), "pod.json") }

func (w *worker) readMeta() podMeta {
	var m podMeta
	data, err := os.ReadFile(w.metaPath())
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.log.Warn("read what is known of the pod; its status may lack images and messages", "error", err)
	}
	return m
}

// writeMeta replaces the file by rename. It is not synced: it need survive the
// agent, not the machine, whose restart ends the containers too.
func (w *worker) writeMeta() {
	m := podMeta{Namespace: w.s.pod.Namespace, Name: w.s.pod.Name, Instances: map[string]instanceMeta{}, Containers: map[string]ctrMeta{}}
	m.IPs = w.s.ips
	for _, c := range w.s.ctrs {
		for _, in := range []*instance{c.cur, c.prev} {
			if in != nil {
				m.Instances[in.ID] = instanceMeta{in.Image, in.ImageID, in.Reason, in.Message}
			}
		}
		m.Containers[c.spec.Name] = ctrMeta{c.crash.Delay, c.crash.At}
	}
	if w.static && w.s.terminal != "" && (w.s.failure == nil || w.s.failure.Reason != reasonShutdown) {
		status := w.computeStatus(w.a.cfg.Now())
		m.Status = &status
	}
	data, err := json.Marshal(m)
	if err == nil {
		err = os.MkdirAll(w.a.podDir(w.uid), 0o750)
	}
	tmp := w.metaPath() + ".tmp"
	if err == nil {
		err = os.WriteFile(tmp, data, 0o600)
	}
	if err == nil {
		err = os.Rename(tmp, w.metaPath())
	}
	if err != nil {
		w.log.Warn("write what is known of the pod", "error", err)
	}
}

// adopt fills a new state with what an earlier agent left: first what the runtime
// found, then, for what it knows nothing of, the status in the API.
func adopt(s *podState, found *container.SandboxStatus, meta podMeta, now time.Time) {
	st := &s.pod.Status
	if st.StartTime != nil {
		s.startTime = st.StartTime.Time
	}
	if ip, err := netip.ParseAddr(meta.IP); len(meta.IPs) > 0 {
		s.ips = meta.IPs
	} else if err == nil {
		s.ips = []netip.Addr{ip}
	} else if found != nil {
		s.ips = network.PodIPs(st)
	}
	if st.Phase == v1.PodSucceeded || st.Phase == v1.PodFailed {
		s.terminal = st.Phase
		if st.Reason != "" {
			s.failure = &podFailure{Reason: st.Reason, Message: st.Message, Rejected: len(st.ContainerStatuses) == 0}
		}
	}
	runs := map[string][]*instance{}
	if found != nil {
		for _, cs := range found.Containers {
			name, attempt, ok := parseInstanceID(cs.ID)
			if ok {
				runs[name] = append(runs[name], adoptInstance(cs, attempt, meta.Instances[cs.ID]))
			}
		}
	}
	statuses := map[string]v1.ContainerStatus{}
	for _, list := range [][]v1.ContainerStatus{st.InitContainerStatuses, st.ContainerStatuses, st.EphemeralContainerStatuses} {
		for _, cs := range list {
			statuses[cs.Name] = cs
		}
	}
	for _, c := range s.ctrs {
		cs, known := statuses[c.spec.Name]
		if list := runs[c.spec.Name]; len(list) > 0 {
			sort.Slice(list, func(i, j int) bool { return list[i].Attempt > list[j].Attempt })
			c.cur = list[0]
			if len(list) > 1 {
				c.prev = list[1]
			}
			adoptProbes(c, cs, known)
		} else if known {
			adoptStatus(c, cs, now)
		}
		cm := meta.Containers[c.spec.Name]
		c.crash = retry{cm.CrashDelay, cm.CrashAt}
		if c.exited() && c.cur.ExitCode == 0 && c.kind == initCtr && found != nil {
			c.done = true
		}
		if c.kind == mainCtr && c.cur != nil && found != nil && len(runs[c.spec.Name]) > 0 {
			s.mainStarted = true
		}
	}
}

func adoptInstance(cs container.ContainerStatus, attempt int, m instanceMeta) *instance {
	in := &instance{
		ID: cs.ID, Attempt: attempt, Running: cs.State == container.Running,
		StartedAt: cs.StartedAt, FinishedAt: cs.FinishedAt, ExitCode: cs.ExitCode,
		Image: m.Image, ImageID: m.ImageID, Reason: m.Reason, Message: m.Message, User: cs.User,
	}
	if !in.Running && in.Reason == "" {
		in.Reason = exitReason(cs.ExitCode, cs.OOMKilled)
		if cs.Error != "" {
			in.Reason, in.Message = "StartError", cs.Error
		}
	}
	return in
}

// adoptProbes takes over what probes said of a container that still runs, so that
// a restarted agent does not take a ready pod out of service.
func adoptProbes(c *ctr, cs v1.ContainerStatus, known bool) {
	if !c.cur.Running {
		return
	}
	same := known && strings.TrimPrefix(cs.ContainerID, containerIDPrefix) != "" && int(cs.RestartCount) == c.cur.Attempt
	if c.spec.StartupProbe == nil {
		c.started = true
	} else {
		c.started = same && cs.Started != nil && *cs.Started
	}
	if c.spec.ReadinessProbe == nil {
		c.ready = c.started
	} else {
		c.ready = same && cs.Ready
	}
}

// adoptStatus makes a run of what the API says of a container that the runtime
// does not know: the machine was restarted, or the pod was stopped with the agent.
func adoptStatus(c *ctr, cs v1.ContainerStatus, now time.Time) {
	in := &instance{ID: instanceID(cs.Name, int(cs.RestartCount)), Attempt: int(cs.RestartCount), Image: cs.Image, ImageID: cs.ImageID}
	t := cs.State.Terminated
	switch {
	case t != nil:
	case cs.State.Running != nil:
		in.StartedAt, in.FinishedAt = cs.State.Running.StartedAt.Time, now
		in.ExitCode, in.Reason = 137, "ContainerStatusUnknown"
		in.Message = "The container could not be located when the pod was started again"
	case cs.LastTerminationState.Terminated != nil:
		t = cs.LastTerminationState.Terminated
	default:
		return
	}
	if t != nil {
		in.StartedAt, in.FinishedAt = t.StartedAt.Time, t.FinishedAt.Time
		in.ExitCode, in.Reason, in.Message = int(t.ExitCode), t.Reason, t.Message
	}
	c.cur = in
}
