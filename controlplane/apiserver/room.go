package apiserver

import (
	"context"
	"net/http"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/admission"
)

// reasonInsufficientStorage is the reason of a refused write, of HTTP status 507.
const reasonInsufficientStorage metav1.StatusReason = "InsufficientStorage"

// upkeep is written also when the disk is nearly full: what keeps running pods
// reachable, and tells people what is wrong. All of it is small and soon replaced.
var upkeep = sets.New(
	schema.GroupResource{Resource: "events"},
	schema.GroupResource{Resource: "nodes"},
	coordinationv1.Resource("leases"),
	discoveryv1.Resource("endpointslices"),
)

// room refuses writes while the store has no room for them, before the store would
// have to refuse everything. Deletions always pass: they make room.
type room struct{ check func() error }

// Handles implements admission.Interface.
func (r room) Handles(op admission.Operation) bool {
	return r.check != nil && (op == admission.Create || op == admission.Update)
}

// Admit implements admission.MutationInterface.
func (r room) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	switch sub := a.GetSubresource(); {
	case sub == "status", sub == "exec", sub == "attach", sub == "portforward", sub == "proxy", sub == "eviction":
		return nil
	case upkeep.Has(a.GetResource().GroupResource()), a.GetKind().Group == "authorization.k8s.io", a.GetKind().Group == "authentication.k8s.io":
		return nil
	case a.GetResource().GroupResource() == corev1.Resource("namespaces") && sub == "finalize":
		return nil
	}
	if a.GetOperation() == admission.Update {
		// What is being deleted is still to lose its finalizers.
		if old, err := meta.Accessor(a.GetOldObject()); err == nil && old.GetDeletionTimestamp() != nil {
			return nil
		}
	}
	if err := r.check(); err != nil {
		return &apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusInsufficientStorage, Reason: reasonInsufficientStorage,
			Message: err.Error(),
		}}
	}
	return nil
}
