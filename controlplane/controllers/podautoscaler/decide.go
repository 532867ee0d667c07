package podautoscaler

import (
	"fmt"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Snapshot is everything a decision about one autoscaler rests on.
type Snapshot struct {
	Autoscaler *autoscalingv2.HorizontalPodAutoscaler
	// Scale is that of the target, and ScaleErr why it is not known.
	Scale    *autoscalingv1.Scale
	ScaleErr error
	// Ambiguous names other autoscalers of the same pods.
	Ambiguous []string
	// Pods that the target's selector selects, and what they use, by name.
	Pods []*corev1.Pod
	Used map[string]Usage
	// UsedErr is why it is not known what they use.
	UsedErr error
	// History is what was decided before.
	History History
}

// Event is one event of the autoscaler.
type Event struct{ Type, Reason, Message string }

// Decision is what is to be done.
type Decision struct {
	// Rescale: the target should have Status.DesiredReplicas pods, for Reason.
	Rescale bool
	Reason  string
	Status  autoscalingv2.HorizontalPodAutoscalerStatus
	Events  []Event
	History History
}

// decision is a Decision in the making.
type decision struct {
	Snapshot
	now time.Time
	out Decision
}

// Decide says how many pods the target of an autoscaler should have ("Horizontal Pod
// Autoscaling", "Algorithm details"). The conditions, reasons and messages are those
// of kube-controller-manager.
func Decide(s Snapshot, now time.Time) Decision {
	d := &decision{Snapshot: s, now: now}
	d.out.Status = *s.Autoscaler.Status.DeepCopy()
	d.out.Status.ObservedGeneration = &s.Autoscaler.Generation
	d.out.History = s.History
	if s.ScaleErr != nil {
		d.condition(autoscalingv2.AbleToScale, corev1.ConditionFalse, "FailedGetScale", "the HPA controller was unable to get the target's current scale: %v", s.ScaleErr)
		d.warn("FailedGetScale", s.ScaleErr.Error())
		return d.out
	}
	d.condition(autoscalingv2.AbleToScale, corev1.ConditionTrue, "SucceededGetScale", "the HPA controller was able to get the target's current scale")
	current := s.Scale.Spec.Replicas
	desired, reason, ok := d.desired(current)
	d.out.Status.CurrentReplicas = current
	if !ok {
		return d.out
	}
	d.out.Status.DesiredReplicas = desired
	if desired != current {
		d.out.Rescale, d.out.Reason = true, reason
	}
	return d.out
}

// Rescaled says in a decision's status and history that its target has been scaled.
func (d *Decision) Rescaled(from int32, now time.Time) {
	to := d.Status.DesiredReplicas
	setCondition(&d.Status, autoscalingv2.AbleToScale, corev1.ConditionTrue, "SucceededRescale",
		fmt.Sprintf("the HPA controller was able to update the target scale to %d", to), now)
	at := metav1.NewTime(now)
	d.Status.LastScaleTime = &at
	d.History = d.History.scaled(from, to, now)
	d.Events = append(d.Events, Event{corev1.EventTypeNormal, "SuccessfulRescale", fmt.Sprintf("New size: %d; reason: %s", to, d.Reason)})
}

// Failed says that the target could not be scaled.
func (d *Decision) Failed(current int32, err error, now time.Time) {
	setCondition(&d.Status, autoscalingv2.AbleToScale, corev1.ConditionFalse, "FailedUpdateScale",
		fmt.Sprintf("the HPA controller was unable to update the target scale: %v", err), now)
	d.Events = append(d.Events, Event{corev1.EventTypeWarning, "FailedRescale", fmt.Sprintf("New size: %d; reason: %s; error: %v", d.Status.DesiredReplicas, d.Reason, err)})
	d.Status.DesiredReplicas = current
}

// desired is the number of pods that there should be; not ok if it is not known.
func (d *decision) desired(current int32) (int32, string, bool) {
	spec := &d.Autoscaler.Spec
	least := int32(1)
	if spec.MinReplicas != nil {
		least = *spec.MinReplicas
	}
	switch {
	case current == 0 && least != 0:
		// Whoever scaled it to zero has switched the autoscaler off.
		d.condition(autoscalingv2.ScalingActive, corev1.ConditionFalse, "ScalingDisabled", "scaling is disabled since the replica count of the target is zero")
		return 0, "", true
	case current > spec.MaxReplicas:
		return spec.MaxReplicas, "Current number of replicas above Spec.MaxReplicas", true
	case current < least:
		return least, "Current number of replicas below Spec.MinReplicas", true
	}
	wanted, metric, ok := d.byMetrics(current)
	if !ok {
		return current, "", false
	}
	reason := ""
	if wanted > current {
		reason = metric + " above target"
	} else if wanted < current {
		reason = "All metrics below target"
	}
	return d.behave(current, wanted, least), reason, true
}

// byMetrics is the largest number of pods that a metric asks for. When a metric is
// not known, the others may still ask for more, but not for less.
func (d *decision) byMetrics(current int32) (wanted int32, metric string, ok bool) {
	if d.Scale.Status.Selector == "" {
		return d.inactive("InvalidSelector", "SelectorRequired", "the HPA target's scale is missing a selector")
	}
	if len(d.Ambiguous) > 0 {
		return d.inactive("AmbiguousSelector", "AmbiguousSelector", fmt.Sprintf("pods by selector %s are controlled by multiple HPAs: %v", d.Scale.Status.Selector, d.Ambiguous))
	}
	d.out.Status.CurrentMetrics = nil
	var firstErr *metricError
	failed := 0
	for _, spec := range d.Autoscaler.Spec.Metrics {
		n, name, status, err := d.metric(spec, current)
		d.out.Status.CurrentMetrics = append(d.out.Status.CurrentMetrics, status)
		if err != nil {
			failed++
			if firstErr == nil {
				firstErr = err
			}
			d.warn(err.reason, err.Error())
			continue
		}
		if metric == "" || n > wanted {
			wanted, metric = n, name
		}
	}
	if failed == len(d.Autoscaler.Spec.Metrics) || (failed > 0 && wanted < current) {
		d.condition(autoscalingv2.ScalingActive, corev1.ConditionFalse, firstErr.reason, "the HPA was unable to compute the replica count: %v", firstErr)
		d.warn("FailedComputeMetricsReplicas", fmt.Sprintf("invalid metrics (%d invalid out of %d), first error is: %v", failed, len(d.Autoscaler.Spec.Metrics), firstErr))
		return 0, "", false
	}
	d.condition(autoscalingv2.ScalingActive, corev1.ConditionTrue, "ValidMetricFound", "the HPA was able to successfully calculate a replica count from %s", metric)
	return wanted, metric, true
}

func (d *decision) inactive(reason, event, message string) (int32, string, bool) {
	d.condition(autoscalingv2.ScalingActive, corev1.ConditionFalse, reason, "%s", message)
	d.warn(event, message)
	return 0, "", false
}

// behave keeps a wanted number of pods within what the behavior and the bounds allow.
func (d *decision) behave(current, wanted, least int32) int32 {
	up, down := rulesOf(d.Autoscaler.Spec.Behavior)
	h := d.out.History
	if len(h.recommended) == 0 {
		// Nothing is known of the time before: the present size was right then.
		h.recommended = []recommendation{{d.now, current}}
	}
	steady := h.stabilize(current, wanted, up, down, d.now)
	d.out.History = h.recommend(wanted, d.now)
	switch {
	case steady == wanted:
		d.condition(autoscalingv2.AbleToScale, corev1.ConditionTrue, "ReadyForNewScale", "recommended size matches current size")
	case wanted > steady:
		d.condition(autoscalingv2.AbleToScale, corev1.ConditionTrue, "ScaleUpStabilized", "recent recommendations were lower than current one, applying the lowest recent recommendation")
	default:
		d.condition(autoscalingv2.AbleToScale, corev1.ConditionTrue, "ScaleDownStabilized", "recent recommendations were higher than current one, applying the highest recent recommendation")
	}
	limit := func(allowed int32, reason, message string) int32 {
		d.condition(autoscalingv2.ScalingLimited, corev1.ConditionTrue, reason, "%s", message)
		return allowed
	}
	if steady > current {
		rate := max(h.upLimit(current, up, d.now), current)
		switch most := min(rate, d.Autoscaler.Spec.MaxReplicas); {
		case steady > most && rate >= d.Autoscaler.Spec.MaxReplicas:
			return limit(most, "TooManyReplicas", "the desired replica count is more than the maximum replica count")
		case steady > most:
			return limit(most, "ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate")
		}
	}
	if steady < current {
		rate := min(h.downLimit(current, down, d.now), current)
		switch fewest := max(rate, least); {
		case steady < fewest && rate <= least:
			return limit(fewest, "TooFewReplicas", "the desired replica count is less than the minimum replica count")
		case steady < fewest:
			return limit(fewest, "ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate")
		}
	}
	d.condition(autoscalingv2.ScalingLimited, corev1.ConditionFalse, "DesiredWithinRange", "the desired count is within the acceptable range")
	return steady
}

func (d *decision) warn(reason, message string) {
	d.out.Events = append(d.out.Events, Event{corev1.EventTypeWarning, reason, message})
}

func (d *decision) condition(kind autoscalingv2.HorizontalPodAutoscalerConditionType, status corev1.ConditionStatus, reason, format string, args ...any) {
	setCondition(&d.out.Status, kind, status, reason, fmt.Sprintf(format, args...), d.now)
}

func setCondition(st *autoscalingv2.HorizontalPodAutoscalerStatus, kind autoscalingv2.HorizontalPodAutoscalerConditionType, status corev1.ConditionStatus, reason, message string, now time.Time) {
	c := autoscalingv2.HorizontalPodAutoscalerCondition{Type: kind, Status: status, Reason: reason, Message: message, LastTransitionTime: metav1.NewTime(now)}
	for i := range st.Conditions {
		if old := &st.Conditions[i]; old.Type == kind {
			if old.Status == status {
				c.LastTransitionTime = old.LastTransitionTime
			}
			*old = c
			return
		}
	}
	st.Conditions = append(st.Conditions, c)
}
