package disruption

import (
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func budget(minAvailable, maxUnavailable string) *policyv1.PodDisruptionBudget {
	b := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "web", Generation: 2}}
	if minAvailable != "" {
		v := intstr.Parse(minAvailable)
		b.Spec.MinAvailable = &v
	}
	if maxUnavailable != "" {
		v := intstr.Parse(maxUnavailable)
		b.Spec.MaxUnavailable = &v
	}
	return b
}

// podsOf makes a pod of each letter: r is Ready, n is not, d is being deleted.
func podsOf(states string) (out []*corev1.Pod) {
	for i, state := range states {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: string(rune('a' + i))}}
		if state != 'n' {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}
		if state == 'd' {
			p.DeletionTimestamp = &metav1.Time{Time: now}
		}
		out = append(out, p)
	}
	return out
}

func TestDecide(t *testing.T) {
	for _, c := range []struct {
		name             string
		budget           *policyv1.PodDisruptionBudget
		pods             string
		scale            int
		expected         int32
		desired, healthy int32
		allowed          int32
		reason           string
	}{
		{"one may go", budget("2", ""), "rrr", 0, 3, 2, 3, 1, policyv1.SufficientPodsReason},
		{"one is down already", budget("2", ""), "rrn", 0, 3, 2, 2, 0, policyv1.InsufficientPodsReason},
		{"one on its way out is down", budget("2", ""), "rrd", 0, 3, 2, 2, 0, policyv1.InsufficientPodsReason},
		{"too few is not less than none", budget("3", ""), "rnn", 0, 3, 3, 1, 0, policyv1.InsufficientPodsReason},
		{"no pods, none to take", budget("0", ""), "", 0, 0, 0, 0, 0, policyv1.InsufficientPodsReason},
		{"a share of those wanted", budget("50%", ""), "rr", 3, 3, 2, 2, 0, policyv1.InsufficientPodsReason},
		{"missing ones count against it", budget("", "1"), "rr", 3, 3, 2, 2, 0, policyv1.InsufficientPodsReason},
		{"maxUnavailable rounds up", budget("", "34%"), "rrr", 3, 3, 1, 3, 2, policyv1.SufficientPodsReason},
		{"more than there are", budget("", "9"), "rr", 2, 2, 0, 2, 2, policyv1.SufficientPodsReason},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := Decide(Snapshot{Budget: c.budget, Pods: podsOf(c.pods), Scale: c.scale}, now)
			got := [4]int32{s.ExpectedPods, s.DesiredHealthy, s.CurrentHealthy, s.DisruptionsAllowed}
			if want := [4]int32{c.expected, c.desired, c.healthy, c.allowed}; got != want {
				t.Errorf("expected, desired, healthy, allowed = %v, want %v", got, want)
			}
			if cond := meta.FindStatusCondition(s.Conditions, policyv1.DisruptionAllowedCondition); cond == nil || cond.Reason != c.reason {
				t.Errorf("condition %+v, want reason %s", cond, c.reason)
			}
			if s.ObservedGeneration != 2 {
				t.Errorf("observed generation %d", s.ObservedGeneration)
			}
		})
	}
}

func TestUnknownScaleAllowsNothing(t *testing.T) {
	s, _ := Decide(Snapshot{Budget: budget("", "1"), Pods: podsOf("rrr"), Err: errors.New("no scale")}, now)
	cond := meta.FindStatusCondition(s.Conditions, policyv1.DisruptionAllowedCondition)
	if s.DisruptionsAllowed != 0 || cond == nil || cond.Reason != policyv1.SyncFailedReason || cond.Message != "no scale" {
		t.Errorf("%+v", s)
	}
}

// TestEvicted: a pod that was evicted counts as down before its deletion is seen,
// and as staying when that takes too long.
func TestEvicted(t *testing.T) {
	b := budget("2", "")
	b.Status.DisruptedPods = map[string]metav1.Time{"a": metav1.NewTime(now.Add(-30 * time.Second)), "gone": metav1.NewTime(now)}
	s, recheck := Decide(Snapshot{Budget: b, Pods: podsOf("rrr")}, now)
	if s.DisruptionsAllowed != 0 || s.CurrentHealthy != 2 || len(s.DisruptedPods) != 1 || recheck != 90*time.Second {
		t.Errorf("%+v, look again after %s", s, recheck)
	}
	s, recheck = Decide(Snapshot{Budget: b, Pods: podsOf("rrr")}, now.Add(2*time.Minute))
	if s.DisruptionsAllowed != 1 || len(s.DisruptedPods) != 0 || recheck != 0 {
		t.Errorf("%+v, look again after %s", s, recheck)
	}
}
