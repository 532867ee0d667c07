package podautoscaler

import (
	"fmt"
	"math"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/sets"
)

// The numbers of kube-controller-manager's flags of the same names.
const (
	// tolerance is how far usage may be from its target before anything is done.
	tolerance = 0.1
	// cpuInitializationPeriod: a pod that is younger may still be starting, which
	// says nothing about its load.
	cpuInitializationPeriod = 5 * time.Minute
	// initialReadinessDelay: a pod that became unready within it after its start has
	// never been ready.
	initialReadinessDelay = 30 * time.Second
)

// Usage is what a pod's containers use, measured over Window until At.
type Usage struct {
	At         time.Time
	Window     time.Duration
	Containers map[string]corev1.ResourceList
}

// metricError is why a metric is not known; reason is that of the condition.
type metricError struct {
	reason string
	err    error
}

func (e *metricError) Error() string { return e.err.Error() }

// metric is how many pods a metric asks for, its name, and what it is now.
func (d *decision) metric(spec autoscalingv2.MetricSpec, current int32) (int32, string, autoscalingv2.MetricStatus, *metricError) {
	status := autoscalingv2.MetricStatus{Type: spec.Type}
	var m measure
	var value *autoscalingv2.MetricValueStatus
	reason, kind := "FailedGetResourceMetric", "resource"
	switch {
	case spec.Type == autoscalingv2.ResourceMetricSourceType && spec.Resource != nil:
		m = measure{resource: spec.Resource.Name, target: spec.Resource.Target}
		status.Resource = &autoscalingv2.ResourceMetricStatus{Name: spec.Resource.Name}
		value = &status.Resource.Current
	case spec.Type == autoscalingv2.ContainerResourceMetricSourceType && spec.ContainerResource != nil:
		m = measure{resource: spec.ContainerResource.Name, container: spec.ContainerResource.Container, target: spec.ContainerResource.Target}
		status.ContainerResource = &autoscalingv2.ContainerResourceMetricStatus{Name: m.resource, Container: m.container}
		value = &status.ContainerResource.Current
		reason, kind = "FailedGetContainerResourceMetric", "container resource"
	default:
		err := fmt.Errorf("metrics of type %s are not served here; use Resource or ContainerResource", spec.Type)
		return 0, "", status, &metricError{"FailedGet" + string(spec.Type) + "Metric", err}
	}
	m.decision, m.current = d, current
	n, now, err := m.replicas()
	*value = now
	what := fmt.Sprintf("%s %s", m.resource, kind)
	if m.target.AverageUtilization != nil {
		what += " utilization (percentage of request)"
	}
	if err != nil {
		unit := string(m.resource)
		if m.target.AverageUtilization != nil {
			unit += " utilization"
		}
		return 0, "", status, &metricError{reason, fmt.Errorf("failed to get %s: %w", unit, err)}
	}
	return n, what, status, nil
}

// measure is one resource of the pods or of one container of each.
type measure struct {
	*decision
	resource  corev1.ResourceName
	container string
	target    autoscalingv2.MetricTarget
	current   int32
}

// pod is what is known of a pod that counts, in thousandths.
type pod struct {
	used, wanted int64
	state        podState
}

type podState int

const (
	measured podState = iota
	// unready pods have no load to speak of yet, missing ones were not measured.
	unready
	missing
)

// replicas is how many pods the measure asks for.
func (m *measure) replicas() (int32, autoscalingv2.MetricValueStatus, error) {
	var now autoscalingv2.MetricValueStatus
	if m.UsedErr != nil {
		return 0, now, fmt.Errorf("unable to get metrics for resource %s: %w", m.resource, m.UsedErr)
	}
	if m.target.AverageUtilization == nil && m.target.AverageValue == nil {
		return 0, now, fmt.Errorf("neither an average utilization target nor an average value target was set")
	}
	pods, err := m.pods()
	if err != nil {
		return 0, now, err
	}
	var used, wanted int64
	states := map[podState]int{}
	for _, p := range pods {
		if states[p.state]++; p.state == measured {
			used, wanted = used+p.used, wanted+p.wanted
		}
	}
	if states[measured] == 0 {
		return 0, now, fmt.Errorf("did not receive metrics for targeted pods (pods might be unready)")
	}
	m.tell(&now, used, wanted, states[measured])
	ratio := m.ratio(used, wanted)
	again := states[missing] > 0 || (states[unready] > 0 && ratio > 1)
	if !again {
		if m.close(ratio) {
			return m.current, now, nil
		}
		return atMost(math.Ceil(ratio * float64(states[measured]))), now, nil
	}
	return m.cautiously(pods, ratio), now, nil
}

// cautiously decides with pods of which not everything is known, assuming what
// keeps the number as it is: on the way up they use nothing, on the way down all
// that they may. If that turns the direction, nothing is done.
func (m *measure) cautiously(pods []pod, ratio float64) int32 {
	var used, wanted int64
	counted := 0
	for _, p := range pods {
		switch {
		case p.state == unready && ratio <= 1:
			continue
		case p.state != measured && ratio > 1:
			p.used = 0
		case p.state == missing && ratio < 1:
			p.used = p.wanted
			if u := m.target.AverageUtilization; u != nil {
				p.used = p.wanted * int64(max(100, *u)) / 100
			}
		case p.state == missing:
			continue
		}
		used, wanted, counted = used+p.used, wanted+p.wanted, counted+1
	}
	next := m.ratio(used, wanted)
	if m.close(next) || (ratio < 1 && next > 1) || (ratio > 1 && next < 1) {
		return m.current
	}
	n := atMost(math.Ceil(next * float64(counted)))
	if (next < 1 && n > m.current) || (next > 1 && n < m.current) {
		return m.current
	}
	return n
}

// ratio of usage to the target; wanted is what the pods ask for, or for a target
// that is a value that value for each pod.
func (m *measure) ratio(used, wanted int64) float64 {
	if wanted == 0 {
		return 0
	}
	if u := m.target.AverageUtilization; u != nil {
		return float64(used) * 100 / float64(wanted) / float64(*u)
	}
	return float64(used) / float64(wanted)
}

// close says whether a ratio is near enough to one.
func (m *measure) close(ratio float64) bool {
	down, up := tolerance, tolerance
	if b := m.Autoscaler.Spec.Behavior; b != nil {
		if b.ScaleDown != nil && b.ScaleDown.Tolerance != nil {
			down = b.ScaleDown.Tolerance.AsApproximateFloat64()
		}
		if b.ScaleUp != nil && b.ScaleUp.Tolerance != nil {
			up = b.ScaleUp.Tolerance.AsApproximateFloat64()
		}
	}
	return ratio >= 1-down && ratio <= 1+up
}

func (m *measure) tell(now *autoscalingv2.MetricValueStatus, used, wanted int64, pods int) {
	average := used / int64(pods)
	if m.resource == corev1.ResourceCPU {
		now.AverageValue = resource.NewMilliQuantity(average, resource.DecimalSI)
	} else {
		now.AverageValue = resource.NewQuantity(average/1000, resource.BinarySI)
	}
	if m.target.AverageUtilization != nil && wanted > 0 {
		percent := int32(min(used*100/wanted, math.MaxInt32))
		now.AverageUtilization = &percent
	}
}

// pods sorts the target's pods into those with a load, those without one yet and
// those of which nothing is known.
func (m *measure) pods() ([]pod, error) {
	if len(m.Pods) == 0 {
		return nil, fmt.Errorf("no pods returned by selector while calculating replica count")
	}
	var out []pod
	for _, p := range m.Pods {
		if p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodFailed {
			continue
		}
		one := pod{}
		var err error
		if one.wanted, err = m.wanted(p); err != nil {
			return nil, err
		}
		usage, known := m.Used[p.Name]
		if known {
			one.used, known = m.used(usage)
		}
		switch {
		case p.Status.Phase == corev1.PodPending:
			one.state = unready
		case !known:
			one.state = missing
		case m.resource == corev1.ResourceCPU && starting(p, usage, m.now):
			one.state = unready
		}
		out = append(out, one)
	}
	return out, nil
}

// starting says whether what a pod uses may be what it takes to start.
func starting(p *corev1.Pod, usage Usage, now time.Time) bool {
	var ready *corev1.PodCondition
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == corev1.PodReady {
			ready = &p.Status.Conditions[i]
		}
	}
	if ready == nil || p.Status.StartTime == nil {
		return true
	}
	no := ready.Status == corev1.ConditionFalse
	if p.Status.StartTime.Add(cpuInitializationPeriod).After(now) {
		return no || usage.At.Before(ready.LastTransitionTime.Add(usage.Window))
	}
	return no && p.Status.StartTime.Add(initialReadinessDelay).After(ready.LastTransitionTime.Time)
}

// used adds up what containers use; false if that of one is not known.
func (m *measure) used(u Usage) (sum int64, ok bool) {
	for name, used := range u.Containers {
		if m.container != "" && name != m.container {
			continue
		}
		q, known := used[m.resource]
		if !known {
			return 0, false
		}
		sum, ok = sum+q.MilliValue(), true
	}
	return sum, ok
}

// wanted is what the target's percentage is of: the requests of a pod's containers;
// or else the target's value itself.
func (m *measure) wanted(p *corev1.Pod) (sum int64, err error) {
	if v := m.target.AverageValue; m.target.AverageUtilization == nil && v != nil {
		return v.MilliValue(), nil
	}
	found := sets.New[string]()
	add := func(c *corev1.Container) error {
		if m.container != "" && c.Name != m.container {
			return nil
		}
		q, ok := c.Resources.Requests[m.resource]
		if !ok {
			return fmt.Errorf("missing request for %s in container %s of Pod %s", m.resource, c.Name, p.Name)
		}
		found.Insert(c.Name)
		sum += q.MilliValue()
		return nil
	}
	for i := range p.Spec.Containers {
		if err := add(&p.Spec.Containers[i]); err != nil {
			return 0, err
		}
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			continue
		}
		if err := add(c); err != nil {
			return 0, err
		}
	}
	if m.container != "" && !found.Has(m.container) {
		return 0, fmt.Errorf("container %s not present in metrics for pod %s/%s", m.container, p.Namespace, p.Name)
	}
	return sum, nil
}

func atMost(n float64) int32 { return int32(min(n, math.MaxInt32)) }
