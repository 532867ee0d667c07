package podautoscaler

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"
)

// TestFollowsLoad: under any behavior the number of pods stays within its bounds and
// what the policies allow in each of their periods; and once the load is steady, the
// number becomes what the load needs and stays.
func TestFollowsLoad(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		least := rapid.Int32Range(1, 5).Draw(t, "min")
		most := rapid.Int32Range(least, 20).Draw(t, "max")
		rules := func(name string) *autoscalingv2.HPAScalingRules {
			return &autoscalingv2.HPAScalingRules{
				StabilizationWindowSeconds: ptr.To(rapid.Int32Range(0, 120).Draw(t, name+" window")),
				Policies: []autoscalingv2.HPAScalingPolicy{{
					Type: autoscalingv2.PodsScalingPolicy, Value: rapid.Int32Range(1, 4).Draw(t, name+" pods"), PeriodSeconds: rapid.Int32Range(15, 90).Draw(t, name+" period"),
				}},
			}
		}
		behavior := &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: rules("up"), ScaleDown: rules("down")}
		replicas := rapid.Int32Range(least, most).Draw(t, "replicas")
		var history History
		type size struct {
			at       time.Time
			replicas int32
		}
		sizes := []size{{now, replicas}}
		at := now
		step := func(load int) {
			at = at.Add(15 * time.Second)
			each := fmt.Sprint(load / int(replicas))
			s := snapshot(strings.Repeat(each+" ", int(replicas)), cpu(50))
			for name, u := range s.Used {
				u.At = at
				s.Used[name] = u
			}
			s.Autoscaler.Spec.MinReplicas, s.Autoscaler.Spec.MaxReplicas, s.Autoscaler.Spec.Behavior = &least, most, behavior
			s.History = history
			d := Decide(s, at)
			if d.Rescale {
				from := replicas
				replicas = d.Status.DesiredReplicas
				d.Rescaled(from, at)
			}
			history = d.History
			if replicas < least || replicas > most {
				t.Fatalf("%d pods, not between %d and %d", replicas, least, most)
			}
			// The size when a policy's period began bounds the size now.
			began := func(p autoscalingv2.HPAScalingPolicy) int32 {
				out := sizes[0].replicas
				for _, s := range sizes {
					if at.Sub(s.at) >= time.Duration(p.PeriodSeconds)*time.Second {
						out = s.replicas
					}
				}
				return out
			}
			before := sizes[len(sizes)-1].replicas
			if p := behavior.ScaleUp.Policies[0]; replicas > before && replicas > began(p)+p.Value {
				t.Fatalf("up from %d to %d, with %+v and %v", before, replicas, p, sizes)
			}
			if p := behavior.ScaleDown.Policies[0]; replicas < before && replicas < began(p)-p.Value {
				t.Fatalf("down from %d to %d, with %+v and %v", before, replicas, p, sizes)
			}
			sizes = append(sizes, size{at, replicas})
		}
		for range rapid.IntRange(0, 20).Draw(t, "steps") {
			step(rapid.IntRange(0, 1500).Draw(t, "load"))
		}
		load := rapid.IntRange(0, 1500).Draw(t, "steady load")
		for range 150 {
			step(load)
		}
		settled := replicas
		for range 20 {
			if step(load); replicas != settled {
				t.Fatalf("%d pods, then %d, under the same load of %d", settled, replicas, load)
			}
		}
		// Within the tolerance around the target, or what it takes, or at a bound.
		ratio := float64(load/int(settled)) / 50
		need := min(max(int32(math.Ceil(ratio*float64(settled))), least), most)
		if (ratio < 1-tolerance || ratio > 1+tolerance) && need != settled {
			t.Fatalf("%d pods for a load of %d that needs %d, between %d and %d", settled, load, need, least, most)
		}
	})
}
