package agent

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"
)

func thresholds(t *testing.T, text string) []EvictionThreshold {
	t.Helper()
	out, err := ParseEvictionHard(text)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestParseEvictionHard(t *testing.T) {
	if got := thresholds(t, ""); len(got) != 0 {
		t.Errorf("an empty text: %+v", got)
	}
	if got := thresholds(t, "nodefs.available<0%,imagefs.available<100%"); len(got) != 0 {
		t.Errorf("thresholds that are off: %+v", got)
	}
	got := thresholds(t, "nodefs.inodesFree<5%, memory.available<100Mi")
	if len(got) != 2 || got[0].Signal != "memory.available" || got[0].limit(0).Value() != 100<<20 || got[1].limit(1000).Value() != 50 {
		t.Errorf("got %+v", got)
	}
	for text, want := range map[string]string{
		"memory.available>1Gi":                         "invalid eviction threshold syntax memory.available>1Gi, expected <signal><operator><value>",
		"memory.available<":                            "invalid eviction threshold syntax",
		"memory.available<1Gi,":                        "invalid eviction threshold syntax",
		"cpu.available<1":                              "unsupported eviction signal cpu.available",
		"memory.available<1Gi,memory.available<2Gi":    "found duplicate eviction threshold for signal memory.available",
		"memory.available<-1Gi":                        "eviction threshold memory.available must be positive: -1Gi",
		"memory.available<much":                        "quantities must match",
		"nodefs.available<101%":                        "must be between 0% and 100%",
		"nodefs.available<NaN%":                        "must be between 0% and 100%",
		"nodefs.available<-1%":                         "must be between 0% and 100%",
		"nodefs.available<ten%,memory.available<100Mi": "invalid syntax",
	} {
		if _, err := ParseEvictionHard(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestCrossed(t *testing.T) {
	const gi = 1 << 30
	disk := func(available int64) observations {
		return observations{"nodefs.available": {available, 252 * gi}, "imagefs.available": {available, 252 * gi}}
	}
	for name, tt := range map[string]struct {
		seen observations
		want []string
	}{
		"a fairly full disk": {disk(40 * gi), nil},
		"images":             {disk(30 * gi), []string{"imagefs.available"}},
		"a full disk":        {disk(20 * gi), []string{"nodefs.available", "imagefs.available"}},
		"memory first":       {observations{"nodefs.inodesFree": {4, 100}, "memory.available": {100<<20 - 1, gi}}, []string{"memory.available", "nodefs.inodesFree"}},
		"at the threshold":   {observations{"nodefs.inodesFree": {5, 100}, "memory.available": {100 << 20, gi}}, nil},
		"nothing is known":   {nil, nil},
	} {
		var got []string
		for _, c := range crossed(thresholds(t, DefaultEvictionHard), tt.seen) {
			got = append(got, c.Signal)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// A condition stays for five minutes after it was last observed.
func TestPressureSeen(t *testing.T) {
	seen := pressureSeen{}
	seen.observe(thresholds(t, "nodefs.available<10%"), t0)
	seen.observe(thresholds(t, "memory.available<1Gi"), t0.Add(time.Minute))
	for _, tt := range []struct {
		after time.Duration
		want  []v1.NodeConditionType
	}{
		{time.Minute, []v1.NodeConditionType{v1.NodeDiskPressure, v1.NodeMemoryPressure}},
		{5 * time.Minute, []v1.NodeConditionType{v1.NodeMemoryPressure}},
		{6 * time.Minute, nil},
	} {
		if got := seen.conditions(t0.Add(tt.after)); !slices.Equal(got, tt.want) {
			t.Errorf("after %s: %v, want %v", tt.after, got, tt.want)
		}
	}
}

// asks is a pod with a priority and a request of memory and of disk.
func asks(name string, priority int32, request string) *v1.Pod {
	p := &v1.Pod{Spec: v1.PodSpec{Priority: &priority, Containers: []v1.Container{{Name: "c"}}}}
	p.Name = name
	if request != "" {
		q := resource.MustParse(request)
		p.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceMemory: q, v1.ResourceEphemeralStorage: q}
	}
	return p
}

func TestRankForEviction(t *testing.T) {
	const mi = 1 << 20
	tests := map[string]struct {
		res  v1.ResourceName
		pods []evictable
		want string
	}{
		"over its request before within": {v1.ResourceMemory, []evictable{
			{pod: asks("within", 0, "100Mi"), used: 90 * mi}, {pod: asks("over", 0, "10Mi"), used: 11 * mi},
		}, "over within"},
		"over counts more than priority": {v1.ResourceMemory, []evictable{
			{pod: asks("low", 0, "100Mi"), used: 90 * mi}, {pod: asks("high", 1000, ""), used: mi},
		}, "high low"},
		"priority counts more than use": {v1.ResourceMemory, []evictable{
			{pod: asks("high", 10, ""), used: 900 * mi}, {pod: asks("low", 0, ""), used: mi}, {pod: asks("none", -5, ""), used: mi},
		}, "none low high"},
		"who is over by more": {v1.ResourceEphemeralStorage, []evictable{
			{pod: asks("much", 0, "900Mi"), used: 910 * mi}, {pod: asks("more", 0, ""), used: 20 * mi},
		}, "more much"},
		"no inodes can be asked for": {resourceInodes, []evictable{
			{pod: asks("few", 0, ""), used: 3}, {pod: asks("many", 0, "1Gi"), used: 30},
		}, "many few"},
		"who cannot be measured first": {v1.ResourceMemory, []evictable{
			{pod: asks("known", 0, ""), used: 900 * mi}, {pod: asks("unknown", 10, ""), unknown: true},
		}, "unknown known"},
	}
	for name, tt := range tests {
		rankForEviction(tt.pods, tt.res)
		var got []string
		for _, e := range tt.pods {
			got = append(got, e.pod.Name)
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// Whatever the pods: none is evicted before one that is further over its request, none
// before one of a lower priority that is over as well, and the order in which they are
// met does not matter.
func TestRankForEvictionProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pods := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) evictable {
			request := rapid.Int64Range(0, 4).Draw(t, "request")
			return evictable{
				pod:  asks("", rapid.Int32Range(-2, 2).Draw(t, "priority"), fmt.Sprint(request)),
				used: rapid.Int64Range(0, 8).Draw(t, "used"), unknown: rapid.IntRange(0, 9).Draw(t, "unknown") == 0,
			}
		}), 0, 12).Draw(t, "pods")
		for i := range pods {
			pods[i].pod.Name = fmt.Sprint(i)
		}
		over := func(e evictable) int64 {
			q := e.pod.Spec.Containers[0].Resources.Requests[v1.ResourceMemory]
			return e.used - q.Value()
		}
		key := func(e evictable) [4]int64 {
			if e.unknown {
				return [4]int64{0, 0, int64(*e.pod.Spec.Priority), 0}
			}
			within := int64(1)
			if over(e) > 0 {
				within = 0
			}
			return [4]int64{1, within, int64(*e.pod.Spec.Priority), -over(e)}
		}
		keys := func(pods []evictable) (out [][4]int64) {
			rankForEviction(pods, v1.ResourceMemory)
			for _, e := range pods {
				out = append(out, key(e))
			}
			return out
		}
		shuffled := rapid.Permutation(pods).Draw(t, "shuffled")
		got := keys(pods)
		if !slices.IsSortedFunc(got, func(a, b [4]int64) int { return slices.Compare(a[:], b[:]) }) {
			t.Fatalf("not in order: %v", got)
		}
		if again := keys(shuffled); !slices.Equal(got, again) {
			t.Fatalf("met in another order: %v, before %v", again, got)
		}
	})
}

func TestEvictionMessage(t *testing.T) {
	e := &evictable{pod: asks("p", 0, "10Mi"), containers: map[string]int64{"c": 20 << 20}}
	got := evictionMessage(&thresholds(t, "memory.available<100Mi")[0], observation{50 << 20, 1 << 30}, e)
	if want := "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. " +
		"Container c was using 20Mi, request is 10Mi, has larger consumption of memory. "; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	e.containers["c"] = 5 << 20
	got = evictionMessage(&thresholds(t, "nodefs.available<10%")[0], observation{50 << 20, 1 << 30}, e)
	if want := "The node was low on resource: ephemeral-storage. Threshold quantity: 107374182, available: 50Mi. "; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAdmitUnderPressure(t *testing.T) {
	memory, disk := []v1.NodeConditionType{v1.NodeMemoryPressure}, []v1.NodeConditionType{v1.NodeDiskPressure}
	both := []v1.NodeConditionType{v1.NodeDiskPressure, v1.NodeMemoryPressure}
	tolerate := v1.Toleration{Key: v1.TaintNodeMemoryPressure, Operator: v1.TolerationOpExists}
	tests := map[string]struct {
		conditions []v1.NodeConditionType
		adjust     func(*v1.PodSpec)
		refused    string
	}{
		"no pressure":            {nil, nil, ""},
		"memory, best effort":    {memory, nil, "[MemoryPressure]"},
		"memory, burstable":      {memory, func(s *v1.PodSpec) { s.Containers = asks("", 0, "1Mi").Spec.Containers }, ""},
		"memory, tolerating":     {memory, func(s *v1.PodSpec) { s.Tolerations = []v1.Toleration{tolerate} }, ""},
		"memory, tolerating all": {memory, func(s *v1.PodSpec) { s.Tolerations = []v1.Toleration{{Operator: v1.TolerationOpExists}} }, ""},
		"memory, tolerating evictors": {memory, func(s *v1.PodSpec) {
			tol := tolerate
			tol.Effect = v1.TaintEffectNoExecute
			s.Tolerations = []v1.Toleration{tol}
		}, "[MemoryPressure]"},
		"disk, burstable":  {disk, func(s *v1.PodSpec) { s.Containers = asks("", 0, "1Mi").Spec.Containers }, "[DiskPressure]"},
		"both, tolerating": {both, func(s *v1.PodSpec) { s.Tolerations = []v1.Toleration{tolerate} }, "[DiskPressure MemoryPressure]"},
		"disk, critical":   {disk, func(s *v1.PodSpec) { s.Priority = ptr.To[int32](systemCritical) }, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := stateOf("a")
			s.sandbox, s.pressure = sandboxNone, tt.conditions
			if tt.adjust != nil {
				tt.adjust(&s.pod.Spec)
			}
			f := decide(s, t0).failure
			switch {
			case tt.refused == "" && f != nil:
				t.Errorf("refused: %+v", f)
			case tt.refused != "" && (f == nil || !f.Rejected || f.Reason != "Evicted" || f.Message != "Pod was rejected: The node had condition: "+tt.refused+". "):
				t.Errorf("got %+v", f)
			}
			s.admitted = true
			if f := decide(s, t0).failure; f != nil {
				t.Errorf("a pod that was taken in is refused: %+v", f)
			}
		})
	}
}
