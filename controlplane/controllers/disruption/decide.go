package disruption

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// goneWithin is how long an evicted pod may take to show that it is being deleted;
// after that it counts as staying, as in kube-controller-manager.
const goneWithin = 2 * time.Minute

// Snapshot is everything a decision about one budget rests on.
type Snapshot struct {
	Budget *policyv1.PodDisruptionBudget
	// Pods that the budget selects.
	Pods []*corev1.Pod
	// Scale is how many pods the controllers of Pods want together; only asked for
	// when the budget counts by it (see countsByScale).
	Scale int
	// Err says why Scale could not be found.
	Err error
}

// countsByScale says whether a budget needs the scale of its pods' controllers: a
// share of pods is one of those wanted, not of those that happen to be there
// ("Specifying a Disruption Budget for your Application").
func countsByScale(b *policyv1.PodDisruptionBudget) bool {
	return b.Spec.MaxUnavailable != nil || b.Spec.MinAvailable != nil && b.Spec.MinAvailable.Type == intstr.String
}

// Decide is the status of a budget at now, and when to look again; zero if only a
// change can alter it.
func Decide(s Snapshot, now time.Time) (policyv1.PodDisruptionBudgetStatus, time.Duration) {
	b := s.Budget
	st := policyv1.PodDisruptionBudgetStatus{
		ObservedGeneration: b.Generation, Conditions: append([]metav1.Condition(nil), b.Status.Conditions...),
	}
	disrupted, recheck := stillDisrupted(s, now)
	st.DisruptedPods = disrupted
	expected, desired, err := wanted(s)
	if err != nil {
		// Nothing is known, so nothing may be taken down.
		st.DesiredHealthy, st.ExpectedPods, st.CurrentHealthy = b.Status.DesiredHealthy, b.Status.ExpectedPods, b.Status.CurrentHealthy
		setAllowed(&st, metav1.ConditionFalse, policyv1.SyncFailedReason, err.Error(), now)
		return st, recheck
	}
	for _, p := range s.Pods {
		if _, going := disrupted[p.Name]; !going && p.DeletionTimestamp == nil && controller.PodReady(p) {
			st.CurrentHealthy++
		}
	}
	st.ExpectedPods, st.DesiredHealthy = int32(expected), int32(desired)
	if expected > 0 {
		st.DisruptionsAllowed = max(st.CurrentHealthy-st.DesiredHealthy, 0)
	}
	if st.DisruptionsAllowed > 0 {
		setAllowed(&st, metav1.ConditionTrue, policyv1.SufficientPodsReason, "", now)
	} else {
		setAllowed(&st, metav1.ConditionFalse, policyv1.InsufficientPodsReason, "", now)
	}
	return st, recheck
}

// wanted is how many pods there should be and how many of them must be healthy.
func wanted(s Snapshot) (expected, desired int, err error) {
	spec := &s.Budget.Spec
	if countsByScale(s.Budget) && s.Err != nil {
		return 0, 0, s.Err
	}
	switch {
	case spec.MaxUnavailable != nil:
		n, err := intstr.GetScaledValueFromIntOrPercent(spec.MaxUnavailable, s.Scale, true)
		if err != nil {
			return 0, 0, fmt.Errorf("maxUnavailable: %w", err)
		}
		return s.Scale, max(s.Scale-n, 0), nil
	case spec.MinAvailable == nil:
		return len(s.Pods), 0, nil
	case spec.MinAvailable.Type == intstr.Int:
		return len(s.Pods), int(spec.MinAvailable.IntVal), nil
	default:
		n, err := intstr.GetScaledValueFromIntOrPercent(spec.MinAvailable, s.Scale, true)
		if err != nil {
			return 0, 0, fmt.Errorf("minAvailable: %w", err)
		}
		return s.Scale, n, nil
	}
}

// stillDisrupted are the evicted pods whose deletion has not been seen, and when
// the first of them will be given up.
func stillDisrupted(s Snapshot, now time.Time) (map[string]metav1.Time, time.Duration) {
	var out map[string]metav1.Time
	var recheck time.Duration
	for _, p := range s.Pods {
		at, ok := s.Budget.Status.DisruptedPods[p.Name]
		left := at.Add(goneWithin).Sub(now)
		if !ok || p.DeletionTimestamp != nil || left <= 0 {
			continue
		}
		if out == nil {
			out = map[string]metav1.Time{}
		}
		out[p.Name] = at
		if recheck == 0 || left < recheck {
			recheck = left
		}
	}
	return out, recheck
}

func setAllowed(st *policyv1.PodDisruptionBudgetStatus, status metav1.ConditionStatus, reason, message string, now time.Time) {
	c := metav1.Condition{
		Type: policyv1.DisruptionAllowedCondition, Status: status, Reason: reason, Message: message, ObservedGeneration: st.ObservedGeneration,
	}
	if old := meta.FindStatusCondition(st.Conditions, c.Type); old == nil || old.Status != status {
		c.LastTransitionTime = metav1.NewTime(now)
	}
	meta.SetStatusCondition(&st.Conditions, c)
}
