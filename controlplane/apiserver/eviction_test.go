package apiserver

import (
	"strings"
	"testing"
	"time"

	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestDisrupt: a place in a budget is given once, and the refusal says what is
// missing. Only a budget that will be ready in a moment asks the client to wait: it
// waits without a word, and kubectl drain could not say what is in its way.
func TestDisrupt(t *testing.T) {
	b := &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Generation: 2},
		Status:     policyv1.PodDisruptionBudgetStatus{ObservedGeneration: 1, DisruptionsAllowed: 1, CurrentHealthy: 3, DesiredHealthy: 2},
	}
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	refused := func(why string, wait int) {
		t.Helper()
		err := disrupt(b, "b", now)
		seconds, _ := apierrors.SuggestsClientDelay(err)
		if !apierrors.IsTooManyRequests(err) || !apierrors.HasStatusCause(err, policyv1.DisruptionBudgetCause) || seconds != wait {
			t.Fatalf("%#v", err)
		}
		if causes := err.(*apierrors.StatusError).ErrStatus.Details.Causes; !strings.Contains(causes[0].Message, why) {
			t.Errorf("%q does not say %q", causes[0].Message, why)
		}
	}
	refused("still being processed", 10)
	b.Status.ObservedGeneration = 2
	if err := disrupt(b, "a", now); err != nil {
		t.Fatal(err)
	}
	if !b.Status.DisruptedPods["a"].Time.Equal(now) || b.Status.Conditions[0].Reason != policyv1.InsufficientPodsReason {
		t.Errorf("%+v", b.Status)
	}
	refused("needs 2 healthy pods and has 3 currently", 0)
}
