package reconciler

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

// TestStatusPatchForgets: what an operation or a sync said does not stay behind in
// the next one's answer.
func TestStatusPatchForgets(t *testing.T) {
	now := metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	was := &v1alpha1.ApplicationStatus{
		HeldAt:        &v1alpha1.Hold{Commit: "a"},
		LastOperation: &v1alpha1.OperationResult{ID: "1", Done: true, Succeeded: true, Message: "Ready"},
		LastSync:      &v1alpha1.SyncResult{Commit: "a", FinishedAt: &now, Failures: 3, RetryAt: &now, Message: "no"},
	}
	is := &v1alpha1.ApplicationStatus{
		LastOperation: &v1alpha1.OperationResult{ID: "2"},
		LastSync:      &v1alpha1.SyncResult{Commit: "b"},
	}
	patch, err := statusPatch(&v1alpha1.Application{}, was, is)
	if err != nil {
		t.Fatal(err)
	}
	live, err := json.Marshal(map[string]any{"status": was})
	if err != nil {
		t.Fatal(err)
	}
	merged, err := jsonpatch.MergePatch(live, patch)
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Status v1alpha1.ApplicationStatus }
	if err := json.Unmarshal(merged, &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(&got.Status, is) {
		t.Errorf("the status became %s", merged)
	}
}
