package ttlafterfinished

import (
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestExpires(t *testing.T) {
	end := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name      string
		ttl       int32
		condition batchv1.JobConditionType
		status    corev1.ConditionStatus
		deleted   bool
		after     time.Duration
		ok        bool
	}{
		{"complete", 30, batchv1.JobComplete, corev1.ConditionTrue, false, 30 * time.Second, true},
		{"failed", 0, batchv1.JobFailed, corev1.ConditionTrue, false, 0, true},
		{"about to fail", 30, batchv1.JobFailureTarget, corev1.ConditionTrue, false, 0, false},
		{"not complete", 30, batchv1.JobComplete, corev1.ConditionFalse, false, 0, false},
		{"no time to live", -1, batchv1.JobComplete, corev1.ConditionTrue, false, 0, false},
		{"being deleted", 30, batchv1.JobComplete, corev1.ConditionTrue, true, 0, false},
	} {
		job := &batchv1.Job{}
		if c.ttl >= 0 {
			job.Spec.TTLSecondsAfterFinished = &c.ttl
		}
		if c.deleted {
			job.DeletionTimestamp = &metav1.Time{Time: end}
		}
		job.Status.Conditions = []batchv1.JobCondition{{Type: c.condition, Status: c.status, LastTransitionTime: metav1.NewTime(end)}}
		at, ok := Expires(job)
		if ok != c.ok || ok && at.Sub(end) != c.after {
			t.Errorf("%s: %s, %t", c.name, at, ok)
		}
	}
}
