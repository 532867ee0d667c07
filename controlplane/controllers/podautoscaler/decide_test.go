package podautoscaler

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func cpu(percent int32) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
		Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent},
	}}
}

func memory(average string) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
		Name: corev1.ResourceMemory, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: ptr.To(resource.MustParse(average))},
	}}
}

func container(name string, percent int32) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ContainerResourceMetricSourceType, ContainerResource: &autoscalingv2.ContainerResourceMetricSource{
		Name: corev1.ResourceCPU, Container: name, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent},
	}}
}

// snapshot of an autoscaler between 1 and 10 of a target with pods as told: "80" is
// a pod that uses 80 % of its request of 1 CPU and 80 MiB of memory, "-" one that was
// not measured, "p" a pending one, "y80" a young one that is not ready, "d" one that
// is being deleted.
func snapshot(pods string, metrics ...autoscalingv2.MetricSpec) Snapshot {
	s := Snapshot{
		Autoscaler: &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Name: "web", Generation: 3}, Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			MinReplicas: ptr.To[int32](1), MaxReplicas: 10, Metrics: metrics,
		}},
		Scale: &autoscalingv1.Scale{Status: autoscalingv1.ScaleStatus{Selector: "app=web"}},
		Used:  map[string]Usage{},
	}
	for i, state := range strings.Fields(pods) {
		started := metav1.NewTime(now.Add(-time.Hour))
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("web-%d", i), Namespace: "shop"}, Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("100Mi"),
			}}}},
		}}
		p.Status.Phase, p.Status.StartTime = corev1.PodRunning, &started
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: started}}
		if rest, young := strings.CutPrefix(state, "y"); young {
			state = rest
			p.Status.StartTime = ptr.To(metav1.NewTime(now.Add(-time.Minute)))
			p.Status.Conditions[0].Status = corev1.ConditionFalse
		}
		var percent int64
		switch _, err := fmt.Sscan(state, &percent); {
		case err == nil:
			s.Used[p.Name] = Usage{At: now, Window: 15 * time.Second, Containers: map[string]corev1.ResourceList{"c": {
				corev1.ResourceCPU: *resource.NewMilliQuantity(10*percent, resource.DecimalSI), corev1.ResourceMemory: *resource.NewQuantity(percent<<20, resource.BinarySI),
			}}}
		case state == "p":
			p.Status.Phase = corev1.PodPending
		case state == "d":
			p.DeletionTimestamp = ptr.To(metav1.NewTime(now))
		}
		if state != "d" {
			s.Scale.Spec.Replicas++
		}
		s.Pods = append(s.Pods, p)
	}
	return s
}

// steady is a history in which so many have been recommended for long.
func steady(n int32) History { return History{recommended: []recommendation{{now.Add(-time.Hour), n}}} }

func conditionOf(st autoscalingv2.HorizontalPodAutoscalerStatus, kind autoscalingv2.HorizontalPodAutoscalerConditionType) string {
	for _, c := range st.Conditions {
		if c.Type == kind {
			return string(c.Status) + " " + c.Reason
		}
	}
	return ""
}

func TestDecide(t *testing.T) {
	for _, c := range []struct {
		name    string
		pods    string
		metrics []autoscalingv2.MetricSpec
		want    int32
		active  string
		limited string
	}{
		{"as it should be", "50 50", []autoscalingv2.MetricSpec{cpu(50)}, 2, "True ValidMetricFound", "False DesiredWithinRange"},
		{"near enough", "54 55", []autoscalingv2.MetricSpec{cpu(50)}, 2, "True ValidMetricFound", "False DesiredWithinRange"},
		{"up", "80 80", []autoscalingv2.MetricSpec{cpu(50)}, 4, "True ValidMetricFound", "False DesiredWithinRange"},
		{"down", "10 10 10 10", []autoscalingv2.MetricSpec{cpu(50)}, 1, "True ValidMetricFound", "False DesiredWithinRange"},
		{"down to the least", "0 0", []autoscalingv2.MetricSpec{cpu(50)}, 1, "True ValidMetricFound", "True TooFewReplicas"},
		{"up to the most", "200 200 200", []autoscalingv2.MetricSpec{cpu(50)}, 7, "True ValidMetricFound", "True ScaleUpLimit"},
		{"up to the greatest number", "200 200 200 200 200 200", []autoscalingv2.MetricSpec{cpu(50)}, 10, "True ValidMetricFound", "True TooManyReplicas"},
		{"the metric that wants most", "50 50", []autoscalingv2.MetricSpec{cpu(50), memory("25Mi")}, 4, "True ValidMetricFound", "False DesiredWithinRange"},
		{"a value", "60 60", []autoscalingv2.MetricSpec{memory("30Mi")}, 4, "True ValidMetricFound", "False DesiredWithinRange"},
		{"one container", "80 80", []autoscalingv2.MetricSpec{container("c", 40)}, 4, "True ValidMetricFound", "False DesiredWithinRange"},
		{"no such container", "80 80", []autoscalingv2.MetricSpec{container("x", 40)}, 2, "False FailedGetContainerResourceMetric", ""},
		{"one on its way out does not count", "80 d", []autoscalingv2.MetricSpec{cpu(40)}, 2, "True ValidMetricFound", "False DesiredWithinRange"},
		{"a pending one holds up the way up", "100 p", []autoscalingv2.MetricSpec{cpu(50)}, 2, "True ValidMetricFound", "False DesiredWithinRange"},
		{"a young one counts as idle on the way up", "100 y300", []autoscalingv2.MetricSpec{cpu(25)}, 4, "True ValidMetricFound", "False DesiredWithinRange"},
		{"a pending one is no reason to stay", "10 10 p", []autoscalingv2.MetricSpec{cpu(50)}, 1, "True ValidMetricFound", "False DesiredWithinRange"},
		{"one that is not measured counts as idle on the way up", "200 -", []autoscalingv2.MetricSpec{cpu(50)}, 4, "True ValidMetricFound", "False DesiredWithinRange"},
		{"and as busy on the way down", "10 10 -", []autoscalingv2.MetricSpec{cpu(50)}, 3, "True ValidMetricFound", "False DesiredWithinRange"},
		{"nothing measured", "- -", []autoscalingv2.MetricSpec{cpu(50)}, 2, "False FailedGetResourceMetric", ""},
		{"one of two unknown, more wanted", "80 80", []autoscalingv2.MetricSpec{cpu(40), {Type: autoscalingv2.ExternalMetricSourceType}}, 4, "True ValidMetricFound", "False DesiredWithinRange"},
		{"one of two unknown, less wanted", "10 10", []autoscalingv2.MetricSpec{cpu(50), {Type: autoscalingv2.ExternalMetricSourceType}}, 2, "False FailedGetExternalMetric", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := snapshot(c.pods, c.metrics...)
			s.History = steady(1)
			d := Decide(s, now)
			got := s.Scale.Spec.Replicas
			if d.Rescale {
				got = d.Status.DesiredReplicas
			}
			if got != c.want {
				t.Errorf("%d, want %d; %+v", got, c.want, d.Status.Conditions)
			}
			if a := conditionOf(d.Status, autoscalingv2.ScalingActive); a != c.active {
				t.Errorf("ScalingActive is %s, want %s", a, c.active)
			}
			if l := conditionOf(d.Status, autoscalingv2.ScalingLimited); l != c.limited {
				t.Errorf("ScalingLimited is %s, want %s", l, c.limited)
			}
			if *d.Status.ObservedGeneration != 3 || d.Status.CurrentReplicas != s.Scale.Spec.Replicas {
				t.Errorf("%+v", d.Status)
			}
		})
	}
}

func TestBounds(t *testing.T) {
	s := snapshot("50", cpu(50))
	for replicas, want := range map[int32]int32{0: 0, 1: 2, 2: 2, 12: 10} {
		s.Autoscaler.Spec.MinReplicas = ptr.To[int32](2)
		s.Scale.Spec.Replicas = replicas
		if d := Decide(s, now); d.Status.DesiredReplicas != want || d.Rescale != (want != replicas) {
			t.Errorf("%d pods: %d are desired, want %d", replicas, d.Status.DesiredReplicas, want)
		}
	}
	s.Scale.Spec.Replicas = 0
	if got := conditionOf(Decide(s, now).Status, autoscalingv2.ScalingActive); got != "False ScalingDisabled" {
		t.Errorf("scaled to zero by hand: %s", got)
	}
}

func TestUnknown(t *testing.T) {
	s := snapshot("80 80", cpu(50))
	s.UsedErr = errors.New("nobody answers")
	d := Decide(s, now)
	if d.Rescale || conditionOf(d.Status, autoscalingv2.ScalingActive) != "False FailedGetResourceMetric" || d.Events[0].Message != "failed to get cpu utilization: unable to get metrics for resource cpu: nobody answers" {
		t.Errorf("%+v", d)
	}
	s.ScaleErr = errors.New("no such thing")
	if d := Decide(s, now); d.Rescale || conditionOf(d.Status, autoscalingv2.AbleToScale) != "False FailedGetScale" {
		t.Errorf("%+v", d)
	}
	s = snapshot("80 80", cpu(50))
	s.Ambiguous = []string{"other"}
	if d := Decide(s, now); d.Rescale || conditionOf(d.Status, autoscalingv2.ScalingActive) != "False AmbiguousSelector" {
		t.Errorf("%+v", d)
	}
	s = snapshot("80 80", cpu(50))
	s.Pods[0].Spec.Containers[0].Resources.Requests = nil
	if d := Decide(s, now); d.Rescale || d.Events[0].Message != "failed to get cpu utilization: missing request for cpu in container c of Pod web-0" {
		t.Errorf("%+v", d)
	}
}

// TestStabilization: down only when it has been enough for five minutes; up at once.
func TestStabilization(t *testing.T) {
	s := snapshot("10 10 10 10", cpu(50))
	d := Decide(s, now)
	if d.Rescale || conditionOf(d.Status, autoscalingv2.AbleToScale) != "True ScaleDownStabilized" {
		t.Errorf("a new autoscaler scales down at once: %+v", d)
	}
	at := now
	for !d.Rescale {
		at = at.Add(15 * time.Second)
		s.History = d.History
		d = Decide(s, at)
	}
	if waited := at.Sub(now); waited != 5*time.Minute || d.Status.DesiredReplicas != 1 {
		t.Errorf("down to %d after %s", d.Status.DesiredReplicas, waited)
	}
	busy := snapshot("100 100", cpu(50))
	if d := Decide(busy, now); !d.Rescale || d.Status.DesiredReplicas != 4 {
		t.Errorf("%+v", d)
	}
}

func TestBehavior(t *testing.T) {
	rules := func(choice autoscalingv2.ScalingPolicySelect, policies ...autoscalingv2.HPAScalingPolicy) autoscalingv2.HPAScalingRules {
		return autoscalingv2.HPAScalingRules{SelectPolicy: &choice, Policies: policies}
	}
	podsIn := func(n, seconds int32) autoscalingv2.HPAScalingPolicy {
		return autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PodsScalingPolicy, Value: n, PeriodSeconds: seconds}
	}
	percentIn := func(n, seconds int32) autoscalingv2.HPAScalingPolicy {
		return autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: n, PeriodSeconds: seconds}
	}
	defaultUp, defaultDown := rulesOf(nil)
	h := History{changes: []change{{now.Add(-90 * time.Second), 5}, {now.Add(-30 * time.Second), 3}}}
	for _, c := range []struct {
		name     string
		history  History
		rules    autoscalingv2.HPAScalingRules
		up, down int32
	}{
		{"default up", History{}, defaultUp, 20, 0},
		{"default down", History{}, defaultDown, 20, 0},
		{"pods", History{}, rules(autoscalingv2.MaxChangePolicySelect, podsIn(3, 60)), 13, 7},
		{"percent rounds outwards", History{}, rules(autoscalingv2.MaxChangePolicySelect, percentIn(25, 60)), 13, 7},
		{"the one that changes most", History{}, rules(autoscalingv2.MaxChangePolicySelect, podsIn(3, 60), percentIn(50, 60)), 15, 5},
		{"the one that changes least", History{}, rules(autoscalingv2.MinChangePolicySelect, podsIn(3, 60), percentIn(50, 60)), 13, 7},
		{"switched off", History{}, rules(autoscalingv2.DisabledPolicySelect, podsIn(3, 60)), 10, 10},
		{"seen from the period's beginning", h, rules(autoscalingv2.MaxChangePolicySelect, podsIn(4, 60)), 11, 3},
		{"and from a longer one's", h, rules(autoscalingv2.MaxChangePolicySelect, podsIn(4, 120)), 6, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			if up, down := c.history.upLimit(10, c.rules, now), c.history.downLimit(10, c.rules, now); up != c.up || down != c.down {
				t.Errorf("up to %d, down to %d; want %d and %d", up, down, c.up, c.down)
			}
		})
	}
}

func TestRescaled(t *testing.T) {
	s := snapshot("100 100", cpu(50))
	d := Decide(s, now)
	failed := d
	d.Rescaled(2, now)
	if e := d.Events[0]; e.Reason != "SuccessfulRescale" || e.Message != "New size: 4; reason: cpu resource utilization (percentage of request) above target" {
		t.Errorf("%+v", e)
	}
	if len(d.History.changes) != 1 || d.History.changes[0].by != 2 || conditionOf(d.Status, autoscalingv2.AbleToScale) != "True SucceededRescale" {
		t.Errorf("%+v", d)
	}
	failed.Failed(2, errors.New("somebody was faster"), now)
	if failed.Status.DesiredReplicas != 2 || conditionOf(failed.Status, autoscalingv2.AbleToScale) != "False FailedUpdateScale" {
		t.Errorf("%+v", failed)
	}
}
