package agent

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// What CPU something uses is a difference of two looks at a counter. The node looks
// when it is asked, and remembers: who asks again and again, as an autoscaler does,
// gets the time between. Who asks for the first time waits for a second look.
const (
	// minWindow is the shortest time over which a remembered look is compared, and
	// maxWindow the longest: what was long ago says little about now.
	minWindow = 10 * time.Second
	maxWindow = 2 * time.Minute
	// firstWindow is the time between the looks when nothing is remembered.
	firstWindow = time.Second
)

// usageReport is what the node and its pods use, in the form of metrics.k8s.io; of a
// pod the metadata has no more than who it is.
type usageReport struct {
	Node *metricsv1beta1.NodeMetrics `json:"node"`
	Pods []metricsv1beta1.PodMetrics `json:"pods"`
}

// cpuSample is a counter of CPU time at a time.
type cpuSample struct {
	at  time.Time
	cpu time.Duration
}

// cpuHistory remembers the last two looks at a counter that are minWindow apart.
type cpuHistory struct{ last, before cpuSample }

// since is the look with which now is compared; false if there is none that is
// neither too fresh nor too old.
func (h *cpuHistory) since(now time.Time) (cpuSample, bool) {
	for _, s := range []cpuSample{h.last, h.before} {
		if age := now.Sub(s.at); !s.at.IsZero() && age >= minWindow && age <= maxWindow {
			return s, true
		}
	}
	return cpuSample{}, false
}

// add remembers a look.
func (h *cpuHistory) add(s cpuSample) {
	if s.at.Sub(h.last.at) >= minWindow {
		h.last, h.before = s, h.last
	}
}

// usageMeter remembers looks: of the node under the empty name, of a run of a
// container under its pod's and its own.
type usageMeter struct {
	mu      sync.Mutex
	history map[string]*cpuHistory
}

// usageLook is one look at everything that runs.
type usageLook struct {
	node cpuSample
	pods []podLook
}

type podLook struct {
	name, namespace, uid string
	started              metav1.Time
	containers           []containerLook
}

type containerLook struct {
	name, key string
	started   time.Time
	cpuSample
	memory uint64
}

// counters are all counters of a look, by the name under which they are remembered.
func (l *usageLook) counters() map[string]cpuSample {
	out := map[string]cpuSample{"": l.node}
	for _, p := range l.pods {
		for _, c := range p.containers {
			out[c.key] = c.cpuSample
		}
	}
	return out
}

// since finds for each counter the look to compare with: a remembered one, or for a
// container that is young its start. It says whether all were found.
func (m *usageMeter) since(l *usageLook) (map[string]cpuSample, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	found, all := map[string]cpuSample{}, true
	look := func(key string, now time.Time, started time.Time) {
		if h := m.history[key]; h != nil {
			if s, ok := h.since(now); ok {
				found[key] = s
				return
			}
		}
		if age := now.Sub(started); age >= firstWindow && age <= maxWindow {
			found[key] = cpuSample{at: started}
			return
		}
		all = false
	}
	look("", l.node.at, time.Time{})
	for _, p := range l.pods {
		for _, c := range p.containers {
			look(c.key, c.at, c.started)
		}
	}
	return found, all
}

// remember keeps a look, and forgets what does not run any more.
func (m *usageMeter) remember(l *usageLook) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := map[string]*cpuHistory{}
	for key, s := range l.counters() {
		h := m.history[key]
		if h == nil {
			h = &cpuHistory{}
		}
		h.add(s)
		next[key] = h
	}
	m.history = next
}

// usage is what the node and its pods use.
func (a *Agent) usage(ctx context.Context) (usageReport, error) {
	now, err := a.lookAtUsage(ctx)
	if err != nil {
		return usageReport{}, err
	}
	since, all := a.meter.since(&now)
	a.meter.remember(&now)
	if !all {
		first := now.counters()
		select {
		case <-ctx.Done():
			return usageReport{}, ctx.Err()
		case <-time.After(firstWindow):
		}
		if now, err = a.lookAtUsage(ctx); err != nil {
			return usageReport{}, err
		}
		for key, s := range first {
			if _, ok := since[key]; !ok {
				since[key] = s
			}
		}
	}
	memory, _, err := machineMemory()
	return report(a.cfg.NodeName, &now, since, memory), err
}

// report compares a look with an earlier one. A pod of which not everything is
// known is left out, as metrics-server does.
func report(node string, now *usageLook, since map[string]cpuSample, memory int64) usageReport {
	out := usageReport{Pods: []metricsv1beta1.PodMetrics{}}
	if s, ok := since[""]; ok {
		out.Node = &metricsv1beta1.NodeMetrics{
			ObjectMeta: metav1.ObjectMeta{Name: node}, Timestamp: metav1.NewTime(now.node.at), Window: metav1.Duration{Duration: now.node.at.Sub(s.at)},
			Usage: used(now.node, s, memory),
		}
	}
	for _, p := range now.pods {
		pm := metricsv1beta1.PodMetrics{
			ObjectMeta: metav1.ObjectMeta{Name: p.name, Namespace: p.namespace, UID: types.UID(p.uid)}, Containers: []metricsv1beta1.ContainerMetrics{},
		}
		complete := len(p.containers) > 0
		for _, c := range p.containers {
			s, ok := since[c.key]
			if !ok {
				complete = false
				break
			}
			pm.Timestamp, pm.Window = metav1.NewTime(c.at), metav1.Duration{Duration: c.at.Sub(s.at)}
			pm.Containers = append(pm.Containers, metricsv1beta1.ContainerMetrics{Name: c.name, Usage: used(c.cpuSample, s, int64(c.memory))})
		}
		if complete {
			out.Pods = append(out.Pods, pm)
		}
	}
	return out
}

// used is CPU per time since an earlier look, and memory in bytes.
func used(now, since cpuSample, memory int64) v1.ResourceList {
	nanos := int64(0)
	if d := now.at.Sub(since.at); d > 0 && now.cpu > since.cpu {
		nanos = int64(float64(now.cpu-since.cpu) / d.Seconds())
	}
	return v1.ResourceList{
		v1.ResourceCPU:    *resource.NewScaledQuantity(nanos, resource.Nano),
		v1.ResourceMemory: *resource.NewQuantity(memory, resource.BinarySI),
	}
}

// lookAtUsage reads the counters of everything that runs.
func (a *Agent) lookAtUsage(ctx context.Context) (out usageLook, err error) {
	if out.node.cpu, err = machineCPU(); err != nil {
		return out, err
	}
	out.node.at = a.cfg.Now()
	out.pods = a.lookAtPods(ctx)
	return out, nil
}

// lookAtPods reads the counters of the containers that run.
func (a *Agent) lookAtPods(ctx context.Context) (out []podLook) {
	var workers []*worker
	a.eachWorker(func(w *worker) { workers = append(workers, w) })
	for _, w := range workers {
		v := w.view.Load()
		if v == nil {
			continue
		}
		p := podLook{name: w.name, namespace: w.namespace, uid: w.apiUID()}
		if v.status.StartTime != nil {
			p.started = *v.status.StartTime
		}
		for name, in := range v.cur {
			if !in.Running {
				continue
			}
			st, err := a.cfg.Runtime.Stats(ctx, w.uid, in.ID)
			if err != nil {
				continue // it ended meanwhile
			}
			p.containers = append(p.containers, containerLook{
				name: name, key: w.uid + "/" + in.ID, started: in.StartedAt, cpuSample: cpuSample{st.Time, st.CPU}, memory: st.MemoryWorkingSet,
			})
		}
		slices.SortFunc(p.containers, func(a, b containerLook) int { return strings.Compare(a.name, b.name) })
		out = append(out, p)
	}
	return out
}

// machineMemory is the machine's memory in bytes: what is in use, and what is
// available to programs that start.
func machineMemory() (used, available int64, err error) {
	if available, err = memInfo("MemAvailable"); err != nil {
		return 0, 0, err
	}
	total, err := memInfo("MemTotal")
	return max(total-available, 0), max(available, 0), err
}

// userHz is the unit of times in /proc/stat, the same on all Linux machines.
const userHz = 100

// machineCPU is the time that all processors have worked: all columns of /proc/stat
// but idle and iowait (proc_stat(5)). The time of guests is part of user's.
func machineCPU() (time.Duration, error) {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil {
		return 0, fmt.Errorf("/proc/stat: %w", err)
	}
	fields := strings.Fields(line)
	const idle, iowait, steal = 4, 5, 8
	var ticks int64
	for i := 1; i < len(fields) && i <= steal; i++ {
		if i == idle || i == iowait {
			continue
		}
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / userHz), nil
}

func (a *Agent) serveUsage(rw http.ResponseWriter, r *http.Request) error {
	u, err := a.usage(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(rw, u)
}
