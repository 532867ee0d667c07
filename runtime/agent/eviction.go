package agent

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// DefaultEvictionHard is what kubelet evicts at if it is told nothing else ("Node-pressure
// Eviction", hard eviction thresholds).
const DefaultEvictionHard = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%"

const (
	// pressureTransition is how long a condition stays after it was last observed, so
	// that a node at a threshold does not toggle.
	pressureTransition = 5 * time.Minute
	// resourceInodes names inodes where resources are named.
	resourceInodes v1.ResourceName = "inodes"
	// systemCritical is the priority from which pods are critical.
	systemCritical = 2_000_000_000
)

// evictionSignals are what a threshold can be about, the first to reclaim first. The
// node keeps pods and images on one file system, which both nodefs and imagefs mean.
var evictionSignals = []struct {
	name      string
	resource  v1.ResourceName
	condition v1.NodeConditionType
}{
	{"memory.available", v1.ResourceMemory, v1.NodeMemoryPressure},
	{"nodefs.available", v1.ResourceEphemeralStorage, v1.NodeDiskPressure},
	{"nodefs.inodesFree", resourceInodes, v1.NodeDiskPressure},
	{"imagefs.available", v1.ResourceEphemeralStorage, v1.NodeDiskPressure},
	{"imagefs.inodesFree", resourceInodes, v1.NodeDiskPressure},
}

// observation is how much of something there is and how much of it is free.
type observation struct{ available, capacity int64 }

// observations by signal.
type observations map[string]observation

// EvictionThreshold is how little of something may be left.
type EvictionThreshold struct {
	Signal string
	// Quantity or, where it is nil, Percent of the capacity.
	Quantity *resource.Quantity
	Percent  float64
}

// ParseEvictionHard reads thresholds as kubelet's --eviction-hard has them; none of an
// empty text. One of 0 % or 100 % is off.
func ParseEvictionHard(text string) ([]EvictionThreshold, error) {
	var out []EvictionThreshold
	seen := map[string]bool{}
	for statement := range strings.SplitSeq(text, ",") {
		if text == "" {
			break
		}
		signal, value, ok := strings.Cut(strings.TrimSpace(statement), "<")
		if !ok || value == "" {
			return nil, fmt.Errorf("invalid eviction threshold syntax %v, expected <signal><operator><value>", statement)
		}
		if signalRank(signal) < 0 {
			return nil, fmt.Errorf("unsupported eviction signal %v", signal)
		}
		if seen[signal] {
			return nil, fmt.Errorf("found duplicate eviction threshold for signal %v", signal)
		}
		seen[signal] = true
		t := EvictionThreshold{Signal: signal}
		if percent, ok := strings.CutSuffix(value, "%"); ok {
			var err error
			if t.Percent, err = strconv.ParseFloat(percent, 64); err != nil {
				return nil, fmt.Errorf("eviction threshold %s: %w", signal, err)
			}
			if !(t.Percent >= 0 && t.Percent <= 100) {
				return nil, fmt.Errorf("eviction percentage threshold %v must be between 0%% and 100%%", signal)
			}
			if t.Percent == 0 || t.Percent == 100 {
				continue
			}
		} else {
			q, err := resource.ParseQuantity(value)
			if err != nil {
				return nil, fmt.Errorf("eviction threshold %s: %w", signal, err)
			}
			if q.Sign() <= 0 {
				return nil, fmt.Errorf("eviction threshold %v must be positive: %s", signal, value)
			}
			t.Quantity = &q
		}
		out = append(out, t)
	}
	slices.SortStableFunc(out, func(a, b EvictionThreshold) int { return cmp.Compare(signalRank(a.Signal), signalRank(b.Signal)) })
	return out, nil
}

// signalRank is the place of a signal, or -1.
func signalRank(signal string) int {
	for i := range evictionSignals {
		if evictionSignals[i].name == signal {
			return i
		}
	}
	return -1
}

func (t *EvictionThreshold) resource() v1.ResourceName {
	return evictionSignals[signalRank(t.Signal)].resource
}

func (t *EvictionThreshold) condition() v1.NodeConditionType {
	return evictionSignals[signalRank(t.Signal)].condition
}

// limit is the threshold for a capacity.
func (t *EvictionThreshold) limit(capacity int64) *resource.Quantity {
	if t.Quantity != nil {
		return t.Quantity
	}
	return resource.NewQuantity(int64(float64(capacity)*t.Percent/100), resource.BinarySI)
}

// crossed are the thresholds that the observations are below of, in their order.
func crossed(thresholds []EvictionThreshold, seen observations) []EvictionThreshold {
	var out []EvictionThreshold
	for _, t := range thresholds {
		if o, ok := seen[t.Signal]; ok && o.available < t.limit(o.capacity).Value() {
			out = append(out, t)
		}
	}
	return out
}

// pressureSeen is when each condition of the node was last observed.
type pressureSeen map[v1.NodeConditionType]time.Time

func (p pressureSeen) observe(met []EvictionThreshold, now time.Time) {
	for _, t := range met {
		p[t.condition()] = now
	}
}

// conditions are those that the node is in, in order.
func (p pressureSeen) conditions(now time.Time) []v1.NodeConditionType {
	var out []v1.NodeConditionType
	for c, at := range p {
		if now.Sub(at) < pressureTransition {
			out = append(out, c)
		}
	}
	slices.Sort(out)
	return out
}

// critical says that a pod is needed to run the node: it is neither refused nor
// evicted. Static pods all are, as kubelet sees it.
func critical(pod *v1.Pod) bool { return isStatic(pod) || hasCriticalPriority(pod) }

func hasCriticalPriority(pod *v1.Pod) bool {
	return pod.Spec.Priority != nil && *pod.Spec.Priority >= systemCritical
}

// refusePressure says why a node under pressure does not run a pod, or nil: of memory
// it refuses those that ask for none, of anything else all.
func refusePressure(pod *v1.Pod, conditions []v1.NodeConditionType) *podFailure {
	if len(conditions) == 0 || critical(pod) {
		return nil
	}
	if slices.Equal(conditions, []v1.NodeConditionType{v1.NodeMemoryPressure}) {
		if qosClass(pod) != v1.PodQOSBestEffort || toleratesMemoryPressure(pod) {
			return nil
		}
	}
	return &podFailure{Reason: reasonEvicted, Message: fmt.Sprintf("Pod was rejected: The node had condition: %v. ", conditions), Rejected: true}
}

func toleratesMemoryPressure(pod *v1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Tolerations, func(t v1.Toleration) bool {
		return (t.Key == v1.TaintNodeMemoryPressure || t.Key == "" && t.Operator == v1.TolerationOpExists) &&
			(t.Effect == "" || t.Effect == v1.TaintEffectNoSchedule) && (t.Operator == v1.TolerationOpExists || t.Value == "")
	})
}

// evictable is a pod with what it and its containers use of what is short.
type evictable struct {
	w          *worker
	pod        *v1.Pod
	used       int64
	containers map[string]int64
	// unknown: it could not be measured.
	unknown bool
}

// rankForEviction puts the pod to evict first: those that use more than they asked
// for before those that do not, then by priority, then by how much more ("Pod
// selection for kubelet eviction").
func rankForEviction(pods []evictable, res v1.ResourceName) {
	requests := map[*v1.Pod]int64{}
	for i := range pods {
		q := resourcehelper.PodRequests(pods[i].pod, resourcehelper.PodResourcesOptions{})[res]
		requests[pods[i].pod] = q.Value()
	}
	over := func(e *evictable) int64 { return e.used - requests[e.pod] }
	first := func(a, b bool) int {
		switch {
		case a == b:
			return 0
		case a:
			return -1
		}
		return 1
	}
	priority := func(e *evictable) int32 {
		if e.pod.Spec.Priority == nil {
			return 0
		}
		return *e.pod.Spec.Priority
	}
	slices.SortStableFunc(pods, func(a, b evictable) int {
		if a.unknown || b.unknown {
			return cmp.Or(first(a.unknown, b.unknown), cmp.Compare(priority(&a), priority(&b)))
		}
		return cmp.Or(
			first(over(&a) > 0, over(&b) > 0),
			cmp.Compare(priority(&a), priority(&b)),
			cmp.Compare(over(&b), over(&a)),
		)
	})
}

// evictionMessage says why a pod is evicted, in kubelet's words.
func evictionMessage(t *EvictionThreshold, seen observation, e *evictable) string {
	res := t.resource()
	format := resource.BinarySI
	if res == resourceInodes {
		format = resource.DecimalSI
	}
	var b strings.Builder
	fmt.Fprintf(&b, "The node was low on resource: %s. Threshold quantity: %s, available: %s. ",
		res, t.limit(seen.capacity), resource.NewQuantity(seen.available, format))
	for i := range e.pod.Spec.Containers {
		c := &e.pod.Spec.Containers[i]
		request := c.Resources.Requests[res]
		if used, ok := e.containers[c.Name]; ok && used > request.Value() && res != resourceInodes {
			fmt.Fprintf(&b, "Container %s was using %s, request is %s, has larger consumption of %s. ",
				c.Name, resource.NewQuantity(used, resource.BinarySI), request.String(), res)
		}
	}
	return b.String()
}
