package agent

import (
	"context"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
	"gitk8s.dev/gitk8s/registry"
)

// lowDisk is a node of whose disk so many of 100 GiB are free.
func lowDisk(gib int64) func(string) (observations, error) {
	return func(string) (observations, error) {
		return observations{"nodefs.available": {gib << 30, 100 << 30}}, nil
	}
}

func nodeCondition(n *testNode, t v1.NodeConditionType) v1.ConditionStatus {
	node, err := n.admin.CoreV1().Nodes().Get(context.Background(), n.name, metav1.GetOptions{})
	n.must(err)
	for _, c := range node.Status.Conditions {
		if c.Type == t {
			return c.Status
		}
	}
	return ""
}

// TestReadSignals reads what the machine has.
func TestReadSignals(t *testing.T) {
	seen, err := readSignals(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for signal, o := range seen {
		if signalRank(signal) < 0 || o.capacity <= 0 || o.available < 0 || o.available > o.capacity {
			t.Errorf("%s: %+v", signal, o)
		}
	}
	if len(seen) < 3 {
		t.Errorf("seen: %+v", seen)
	}
	if _, err := readSignals("/absent"); err == nil {
		t.Error("a directory that is not there is looked at")
	}
}

// TestFreeDisk removes the logs of dead containers and unused images before it evicts
// anything.
func TestFreeDisk(t *testing.T) {
	plane := apiservertest.StartWith(t, nil)
	rt := newFakeRuntime()
	n := newTestNode(t, plane, "node-f", rt, &fakePuller{config: defaultImage}, &fakeNetwork{})
	var ahead atomic.Int64
	n.cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	n.ready()
	long := time.Now().Add(-time.Hour)
	store := &fakeStore{images: []registry.ImageInfo{{Digest: "a", PulledAt: long}, {Digest: "b", PulledAt: long}}}
	n.agent.cfg.ImageStore, n.agent.cfg.EvictionHard = store, thresholds(t, DefaultEvictionHard)
	ns := n.namespace("free")
	p := n.pod(ns, "again", nil)
	n.untilReady(ns, "again")
	rt.exit(string(p.UID), "main-0", 0)
	n.until(ns, "again", "a second run", func(p *v1.Pod) bool { return podReady(p) && p.Status.ContainerStatuses[0].RestartCount == 1 })
	logs := []string{n.agent.logPath(p, "main", 0), n.agent.logPath(p, "main", 1)}
	for _, l := range logs {
		n.must(os.WriteFile(l, []byte("x"), 0o600))
	}
	looks := 0
	n.agent.checkPressure(context.Background(), func(dir string) (observations, error) {
		looks++
		return lowDisk(int64(5 * looks))(dir) // 10 of 100 are enough
	})
	if len(store.images) != 0 {
		t.Errorf("images left: %+v", store.images)
	}
	if _, err := os.Stat(logs[0]); !os.IsNotExist(err) {
		t.Errorf("the log of the run before: %v", err)
	}
	if _, err := os.Stat(logs[1]); err != nil {
		t.Errorf("the log of the present run: %v", err)
	}
	eventually(t, "DiskPressure", func() bool { return nodeCondition(n, v1.NodeDiskPressure) == v1.ConditionTrue })
	if n.agent.pressure.evicted != nil {
		t.Error("a pod was evicted although there was room again")
	}
	// What it takes in nevertheless is what the node needs.
	n.pod(ns, "late", nil)
	late := n.until(ns, "late", "Failed", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
	if late.Status.Reason != "Evicted" || late.Status.Message != "Pod was rejected: The node had condition: [DiskPressure]. " || findCondition(late.Status.Conditions, v1.DisruptionTarget) != nil {
		t.Errorf("status: %+v", late.Status)
	}
	n.pod(ns, "critical", func(p *v1.Pod) { p.Spec.PriorityClassName = "system-node-critical" })
	n.untilReady(ns, "critical")
	// The pressure is over, and five minutes after it its condition.
	n.agent.checkPressure(context.Background(), lowDisk(50))
	if got := nodeCondition(n, v1.NodeDiskPressure); got != v1.ConditionTrue {
		t.Errorf("DiskPressure is %s at once", got)
	}
	ahead.Store(int64(pressureTransition))
	n.agent.checkPressure(context.Background(), lowDisk(50))
	eventually(t, "the end of DiskPressure", func() bool { return nodeCondition(n, v1.NodeDiskPressure) == v1.ConditionFalse })
	n.pod(ns, "again-welcome", nil)
	n.untilReady(ns, "again-welcome")
}

// testPressure evicts the pod that fills the disk, one a look.
func (r *realNode) testPressure(ns string) {
	low := lowDisk(1)
	for _, name := range []string{"small", "large", "critical"} {
		r.pod(ns, name, func(p *v1.Pod) {
			p.Spec.Containers[0].Args = []string{"sleep"}
			p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](600)
			if name == "critical" {
				p.Spec.PriorityClassName = "system-node-critical"
			}
		})
		r.untilReady(ns, name)
	}
	for name, size := range map[string]string{"small": "4096", "large": "2097152", "critical": "4194304"} {
		if out, err := r.exec(ns, name, "app", "fill", "/tmp/f", size); err != nil || out != "<nil>\n" {
			r.t.Fatalf("%s: %s, %v", name, out, err)
		}
	}
	r.agent.cfg.EvictionHard = thresholds(r.t.(*testing.T), "nodefs.available<10%")
	defer func() {
		r.agent.cfg.EvictionHard = nil
		r.agent.pressure.mu.Lock()
		r.agent.pressure.seen = nil
		r.agent.pressure.mu.Unlock()
	}()
	failed := func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed }
	for _, name := range []string{"large", "small"} {
		eventually(r.t, "the next eviction", func() bool { return !r.agent.stillEnding() })
		r.agent.checkPressure(context.Background(), low)
		p := r.until(ns, name, "Failed", failed)
		c := findCondition(p.Status.Conditions, v1.DisruptionTarget)
		const why = "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 1Gi. Container main was using "
		if p.Status.Reason != "Evicted" || !strings.HasPrefix(p.Status.Message, why) || c == nil || c.Reason != "TerminationByKubelet" || c.Message != p.Status.Message {
			r.t.Errorf("%s: %s: %q, %+v", name, p.Status.Reason, p.Status.Message, c)
		}
	}
	eventually(r.t, "the last eviction", func() bool { return !r.agent.stillEnding() })
	r.agent.checkPressure(context.Background(), low)
	if p := r.until(ns, "critical", "known", func(p *v1.Pod) bool { return p != nil }); !podReady(p) {
		r.t.Errorf("the critical pod: %+v", p.Status)
	}
	eventually(r.t, "DiskPressure", func() bool { return nodeCondition(r.testNode, v1.NodeDiskPressure) == v1.ConditionTrue })
	list, err := r.admin.CoreV1().Events(metav1.NamespaceDefault).List(context.Background(), metav1.ListOptions{})
	r.must(err)
	if !slices.ContainsFunc(list.Items, func(e v1.Event) bool {
		return e.Reason == "EvictionThresholdMet" && e.Message == "Attempting to reclaim ephemeral-storage" && e.InvolvedObject.Name == r.name
	}) {
		r.t.Error("no event tells that the node is short of disk")
	}
	for _, name := range []string{"small", "large", "critical"} {
		r.deletePod(ns, name, 0)
	}
}
