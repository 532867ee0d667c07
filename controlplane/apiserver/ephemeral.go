package apiserver

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"gitk8s.dev/gitk8s/controlplane/apiserver/validation"
)

// openEphemeralContainers opens pods/ephemeralcontainers, the one way to add
// containers to a pod that runs (KEP-277).
func openEphemeralContainers(main *store) *statusStore {
	st := *main.Store
	st.UpdateStrategy = ephemeralContainersStrategy{main.UpdateStrategy.(strategy)}
	st.ResetFieldsStrategy = nil
	return &statusStore{store: &st}
}

// ephemeralContainersStrategy changes spec.ephemeralContainers and nothing else.
type ephemeralContainersStrategy struct{ strategy }

// PrepareForUpdate implements rest.RESTUpdateStrategy.
func (s ephemeralContainersStrategy) PrepareForUpdate(ctx context.Context, obj, old runtime.Object) {
	pod, oldPod := obj.(*corev1.Pod), old.(*corev1.Pod)
	added := pod.Spec.EphemeralContainers
	name, uid, version, managed := pod.Name, pod.UID, pod.ResourceVersion, pod.ManagedFields
	oldPod.DeepCopyInto(pod)
	pod.Name, pod.UID, pod.ResourceVersion, pod.ManagedFields = name, uid, version, managed
	pod.Spec.EphemeralContainers = added
	s.strategy.PrepareForUpdate(ctx, obj, old)
}

// ValidateUpdate implements rest.RESTUpdateStrategy.
func (ephemeralContainersStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	pod, oldPod := obj.(*corev1.Pod), old.(*corev1.Pod)
	errs := apivalidation.ValidateObjectMetaUpdate(&pod.ObjectMeta, &oldPod.ObjectMeta, field.NewPath("metadata"))
	return append(errs, validation.PodEphemeralContainers(pod, oldPod)...)
}
