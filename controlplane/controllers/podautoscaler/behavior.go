package podautoscaler

import (
	"math"
	"slices"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/utils/ptr"
)

// defaultDownWindow is how long a lower need must last, unless the autoscaler says
// otherwise ("Stabilization window").
const defaultDownWindow = 5 * time.Minute

// maxWindow is the longest time that a behavior may look back.
const maxWindow = time.Hour

// History is what an autoscaler has recommended and done, as far as its behavior
// looks back. The zero value is that of a new one. It is not changed, only replaced.
type History struct {
	recommended []recommendation
	changes     []change
}

type recommendation struct {
	at       time.Time
	replicas int32
}

// change is a scaling by so many pods, less than zero when it was down.
type change struct {
	at time.Time
	by int32
}

func (h History) recommend(replicas int32, now time.Time) History {
	recent := slices.DeleteFunc(slices.Clone(h.recommended), func(r recommendation) bool { return now.Sub(r.at) > maxWindow })
	h.recommended = append(recent, recommendation{now, replicas})
	return h
}

func (h History) scaled(from, to int32, now time.Time) History {
	recent := slices.DeleteFunc(slices.Clone(h.changes), func(c change) bool { return now.Sub(c.at) > maxWindow })
	h.changes = append(recent, change{now, to - from})
	return h
}

// rulesOf completes a behavior with the documented default: up by four pods or to
// the double in 15 seconds, down to what is needed.
func rulesOf(b *autoscalingv2.HorizontalPodAutoscalerBehavior) (up, down autoscalingv2.HPAScalingRules) {
	double := autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15}
	if b != nil {
		up, down = ptr.Deref(b.ScaleUp, up), ptr.Deref(b.ScaleDown, down)
	}
	if up.Policies == nil {
		up.Policies = []autoscalingv2.HPAScalingPolicy{{Type: autoscalingv2.PodsScalingPolicy, Value: 4, PeriodSeconds: 15}, double}
	}
	if down.Policies == nil {
		down.Policies = []autoscalingv2.HPAScalingPolicy{double}
	}
	return up, down
}

func window(r autoscalingv2.HPAScalingRules, otherwise time.Duration) time.Duration {
	if r.StabilizationWindowSeconds == nil {
		return otherwise
	}
	return time.Duration(*r.StabilizationWindowSeconds) * time.Second
}

// stabilize goes up no further than the lowest and down no further than the highest
// recommendation of the rules' windows.
func (h History) stabilize(current, wanted int32, up, down autoscalingv2.HPAScalingRules, now time.Time) int32 {
	upTo, downTo := wanted, wanted
	for _, r := range h.recommended {
		if r.at.After(now.Add(-window(up, 0))) {
			upTo = min(upTo, r.replicas)
		}
		if r.at.After(now.Add(-window(down, defaultDownWindow))) {
			downTo = max(downTo, r.replicas)
		}
	}
	return min(max(current, upTo), downTo)
}

// upLimit is the most that the policies allow now.
func (h History) upLimit(current int32, r autoscalingv2.HPAScalingRules, now time.Time) int32 {
	return h.limit(current, r, now, 1)
}

// downLimit is the least that the policies allow now.
func (h History) downLimit(current int32, r autoscalingv2.HPAScalingRules, now time.Time) int32 {
	return h.limit(current, r, now, -1)
}

// limit is how far the policies let the number of pods go in a direction, seen from
// where it was at the beginning of each policy's period.
func (h History) limit(current int32, r autoscalingv2.HPAScalingRules, now time.Time, direction float64) int32 {
	choice := ptr.Deref(r.SelectPolicy, autoscalingv2.MaxChangePolicySelect)
	if choice == autoscalingv2.DisabledPolicySelect {
		return current
	}
	limits := make([]int32, 0, len(r.Policies))
	for _, p := range r.Policies {
		start := current
		for _, c := range h.changes {
			if c.at.After(now.Add(-time.Duration(p.PeriodSeconds) * time.Second)) {
				start -= c.by
			}
		}
		limit := float64(start) + direction*float64(p.Value)
		if p.Type == autoscalingv2.PercentScalingPolicy {
			limit = float64(start) * (1 + direction*float64(p.Value)/100)
		}
		if direction > 0 {
			limit = math.Ceil(limit)
		}
		limits = append(limits, int32(max(0, min(limit, math.MaxInt32))))
	}
	if (choice == autoscalingv2.MaxChangePolicySelect) == (direction > 0) {
		return slices.Max(limits)
	}
	return slices.Min(limits)
}
