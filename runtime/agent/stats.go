package agent

import (
	"context"
	"fmt"
	"net/http"
	"sort"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The part of the kubelet's stats API (k8s.io/kubelet/pkg/apis/stats/v1alpha1)
// that metrics-server and kubectl top read.
type statsSummary struct {
	Node nodeStats  `json:"node"`
	Pods []podStats `json:"pods"`
}

type nodeStats struct {
	NodeName string       `json:"nodeName"`
	Memory   *memoryStats `json:"memory,omitempty"`
}

type podStats struct {
	PodRef     podRef           `json:"podRef"`
	StartTime  metav1.Time      `json:"startTime"`
	Containers []containerStats `json:"containers"`
}

type podRef struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	UID       string `json:"uid"`
}

type containerStats struct {
	Name      string       `json:"name"`
	StartTime metav1.Time  `json:"startTime"`
	CPU       *cpuStats    `json:"cpu,omitempty"`
	Memory    *memoryStats `json:"memory,omitempty"`
}

type cpuStats struct {
	Time                 metav1.Time `json:"time"`
	UsageCoreNanoSeconds uint64      `json:"usageCoreNanoSeconds"`
}

type memoryStats struct {
	Time            metav1.Time `json:"time"`
	AvailableBytes  *uint64     `json:"availableBytes,omitempty"`
	WorkingSetBytes *uint64     `json:"workingSetBytes,omitempty"`
}

// stats reads the cgroups of everything that runs.
func (a *Agent) stats(ctx context.Context) statsSummary {
	sum := statsSummary{Node: nodeStats{NodeName: a.cfg.NodeName}, Pods: []podStats{}}
	if used, available, err := machineMemory(); err == nil {
		u, v := uint64(used), uint64(available)
		sum.Node.Memory = &memoryStats{Time: metav1.NewTime(time.Now()), AvailableBytes: &v, WorkingSetBytes: &u}
	}
	for _, p := range a.lookAtPods(ctx) {
		ps := podStats{PodRef: podRef{p.name, p.namespace, p.uid}, StartTime: p.started, Containers: []containerStats{}}
		for _, c := range p.containers {
			t := metav1.NewTime(c.at)
			ps.Containers = append(ps.Containers, containerStats{
				Name: c.name, StartTime: metav1.NewTime(c.started),
				CPU: &cpuStats{t, uint64(c.cpu.Nanoseconds())}, Memory: &memoryStats{Time: t, WorkingSetBytes: &c.memory},
			})
		}
		sum.Pods = append(sum.Pods, ps)
	}
	sort.Slice(sum.Pods, func(i, j int) bool {
		x, y := sum.Pods[i].PodRef, sum.Pods[j].PodRef
		return x.Namespace+"/"+x.Name < y.Namespace+"/"+y.Name
	})
	return sum
}

func (a *Agent) serveStats(rw http.ResponseWriter, r *http.Request) error {
	return writeJSON(rw, a.stats(r.Context()))
}

// serveMetrics prints what the kubelet's metrics of the same names tell.
func (a *Agent) serveMetrics(rw http.ResponseWriter, _ *http.Request) error {
	pods, running := 0, 0
	a.eachWorker(func(w *worker) {
		v := w.view.Load()
		if v == nil {
			return
		}
		if v.status.Phase == v1.PodRunning {
			pods++
		}
		for _, in := range v.cur {
			if in.Running {
				running++
			}
		}
	})
	var b strings.Builder
	fmt.Fprintf(&b, "# HELP kubelet_running_pods Pods that have a running container.\n# TYPE kubelet_running_pods gauge\nkubelet_running_pods %d\n", pods)
	fmt.Fprintf(&b, "# HELP kubelet_running_containers Containers by state.\n# TYPE kubelet_running_containers gauge\nkubelet_running_containers{container_state=\"running\"} %d\n", running)
	if a.cfg.MoreMetrics != nil {
		if err := a.cfg.MoreMetrics(&b); err != nil {
			return err
		}
	}
	rw.Header().Set("Content-Type", "text/plain; version=0.0.4")
	_, err := rw.Write([]byte(b.String()))
	return err
}

// serveNetwork says what the node's kernel does for services and policies.
func (a *Agent) serveNetwork(rw http.ResponseWriter, _ *http.Request) error {
	if a.cfg.NetworkState == nil {
		return notFound("this worker does not look after a network")
	}
	state, err := a.cfg.NetworkState()
	if err != nil {
		return err
	}
	return writeJSON(rw, state)
}
