package apiserver

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/controlplane/apiserver/defaults"
	"gitk8s.dev/gitk8s/controlplane/apiserver/validation"
)

// CompleteStaticPod does to a pod out of a node's file what the API server would do to
// one that is created: it sets the defaults and says what is wrong with it. A node runs
// such pods without the API.
func CompleteStaticPod(pod *corev1.Pod) error {
	defaults.Pod(pod)
	for _, class := range validation.SystemPriorityClasses() {
		if pod.Spec.PriorityClassName == class.Name && pod.Spec.Priority == nil {
			pod.Spec.Priority = &class.Value
		}
	}
	return validation.StaticPod(pod)
}

// mirror says why a worker may not create a pod, in the words of the NodeRestriction
// admission plugin, or nil: only mirrors of static pods of its own may it create.
func (n nodeRestriction) mirror(ctx context.Context, node string, pod *corev1.Pod) error {
	owner := metav1.OwnerReference{}
	if len(pod.OwnerReferences) > 0 {
		owner = pod.OwnerReferences[0]
	}
	switch {
	case !validation.IsMirror(pod):
		return fmt.Errorf("pod does not have %q annotation, node %q can only create mirror pods", corev1.MirrorPodAnnotationKey, node)
	case pod.Spec.NodeName != node:
		return fmt.Errorf("node %q can only create pods with spec.nodeName set to itself", node)
	case len(pod.OwnerReferences) > 1:
		return fmt.Errorf("node %q can only create pods with a single owner reference set to itself", node)
	case owner.APIVersion != "v1" || owner.Kind != "Node" || owner.Name != node:
		return fmt.Errorf("node %q can only create pods with an owner reference set to itself", node)
	case !ptr.Deref(owner.Controller, false):
		return fmt.Errorf("node %q can only create pods with a controller owner reference set to itself", node)
	case ptr.Deref(owner.BlockOwnerDeletion, false):
		return fmt.Errorf("node %q must not set blockOwnerDeletion on an owner reference", node)
	}
	obj, err := n.server.stores[corev1.Resource("nodes")].Get(request.WithNamespace(ctx, ""), node, &metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("error looking up node %s to verify uid: %w", node, err)
	}
	if uid := obj.(*corev1.Node).UID; owner.UID != uid {
		return fmt.Errorf("node %s UID mismatch: expected %s got %s", node, uid, owner.UID)
	}
	what, err := validation.APIReference(pod)
	if err == nil && what != "" {
		err = fmt.Errorf("node %q can not create pods that reference %q", node, what)
	}
	return err
}
