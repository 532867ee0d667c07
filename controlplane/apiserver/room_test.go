package apiserver

import (
	"errors"
	"net/http"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
)

// TestRoom: with no room left, new objects are refused, and upkeep goes on.
func TestRoom(t *testing.T) {
	full := room{func() error { return errors.New("no space left") }}
	going := metav1.NewTime(time.Unix(1, 0))
	for _, tt := range []struct {
		name                string
		group, kind, plural string
		sub                 string
		op                  admission.Operation
		old                 runtime.Object
		refused             bool
	}{
		{name: "a new ConfigMap", kind: "ConfigMap", plural: "configmaps", op: admission.Create, refused: true},
		{name: "a changed Secret", kind: "Secret", plural: "secrets", op: admission.Update, old: &corev1.Secret{}, refused: true},
		{name: "a new pod", kind: "Pod", plural: "pods", op: admission.Create, refused: true},
		{name: "a scale", group: "apps", kind: "Scale", plural: "deployments", sub: "scale", op: admission.Update, old: &corev1.Pod{}, refused: true},
		{name: "a pod's status", kind: "Pod", plural: "pods", sub: "status", op: admission.Update, old: &corev1.Pod{}},
		{name: "an exec", kind: "PodExecOptions", plural: "pods", sub: "exec", op: admission.Create},
		{name: "a lease", group: "coordination.k8s.io", kind: "Lease", plural: "leases", op: admission.Update, old: &corev1.Pod{}},
		{name: "an event", kind: "Event", plural: "events", op: admission.Create},
		{name: "an access review", group: "authorization.k8s.io", kind: "SubjectAccessReview", plural: "subjectaccessreviews", op: admission.Create},
		{name: "a deletion", kind: "ConfigMap", plural: "configmaps", op: admission.Delete},
		{name: "the last finalizer of what is being deleted", kind: "ConfigMap", plural: "configmaps", op: admission.Update,
			old: &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &going}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := admission.NewAttributesRecord(nil, tt.old, schema.GroupVersionKind{Group: tt.group, Version: "v1", Kind: tt.kind}, "default", "x",
				schema.GroupVersionResource{Group: tt.group, Version: "v1", Resource: tt.plural}, tt.sub, tt.op, nil, false, nil)
			for _, r := range []room{full, {func() error { return nil }}, {}} {
				var err error
				if r.Handles(tt.op) {
					err = r.Admit(t.Context(), a, nil)
				}
				var status apierrors.APIStatus
				isFull := r.check != nil && r.check() != nil
				if refused := errors.As(err, &status) && status.Status().Code == http.StatusInsufficientStorage; refused != (tt.refused && isFull) || refused != (err != nil) {
					t.Errorf("full: %v, answer: %v", isFull, err)
				}
			}
		})
	}
}
