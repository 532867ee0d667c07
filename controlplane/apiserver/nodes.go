package apiserver

import (
	"context"
	"errors"
	"fmt"
	"slices"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/endpoints/request"

	"gitk8s.dev/gitk8s/controlplane/apiserver/authz"
)

// podReader answers the authorizer out of the pods' watch cache. The cache takes
// in an event before any watcher gets it, so a worker that has seen its pod finds
// the pod's Secrets readable.
type podReader struct{ server *Server }

var _ authz.Pods = podReader{}

// Pod implements authz.Pods.
func (r podReader) Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	ctx = request.WithNamespace(ctx, namespace)
	pods := r.server.stores[corev1.Resource("pods")]
	obj, err := pods.Get(ctx, name, &metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		obj, err = pods.Get(ctx, name, &metav1.GetOptions{})
	}
	if err != nil {
		return nil, err
	}
	return obj.(*corev1.Pod), nil
}

// PodsOnNode implements authz.Pods.
func (r podReader) PodsOnNode(ctx context.Context, namespace, node string) ([]corev1.Pod, error) {
	list, err := r.server.stores[corev1.Resource("pods")].List(request.WithNamespace(ctx, namespace), &metainternalversion.ListOptions{
		FieldSelector:   fields.OneTermEqualSelector("spec.nodeName", node),
		ResourceVersion: "0",
	})
	if err != nil {
		return nil, err
	}
	return list.(*corev1.PodList).Items, nil
}

// volumeReader answers the authorizer about volumes.
type volumeReader struct{ server *Server }

var _ authz.Volumes = volumeReader{}

// Volume implements authz.Volumes.
func (r volumeReader) Volume(ctx context.Context, name string) (*corev1.PersistentVolume, error) {
	volumes := r.server.stores[corev1.Resource("persistentvolumes")]
	obj, err := volumes.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return obj.(*corev1.PersistentVolume), nil
}

// nodeRestriction keeps a worker from creating a Node or a lease under another
// name than its own, as the NodeRestriction admission plugin of kube-apiserver, from
// creating pods that are no mirrors of its own static pods, from asking for a token of
// a pod that it does not run, and from changing more of a volume than that its
// directory is gone.
type nodeRestriction struct{ server *Server }

var _ admission.ValidationInterface = nodeRestriction{}

// Handles implements admission.Interface.
func (nodeRestriction) Handles(op admission.Operation) bool {
	return op == admission.Create || op == admission.Update
}

// Validate implements admission.ValidationInterface.
func (n nodeRestriction) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	node, ok := authz.NodeName(a.GetUserInfo())
	if req, isToken := a.GetObject().(*authenticationv1.TokenRequest); ok && isToken {
		if err := n.token(ctx, node, a.GetNamespace(), req.Spec.BoundObjectRef); err != nil {
			return admission.NewForbidden(a, err)
		}
		return nil
	}
	if !ok || a.GetSubresource() != "" {
		return nil
	}
	if a.GetOperation() == admission.Update {
		if pv, ok := a.GetObject().(*corev1.PersistentVolume); ok && !letsGo(pv, a.GetOldObject().(*corev1.PersistentVolume)) {
			return admission.NewForbidden(a, fmt.Errorf("node %q may only remove the finalizer %s of a volume", node, localPathProvisioner))
		}
		return nil
	}
	switch a.GetResource().GroupResource().String() {
	case "pods":
		if err := n.mirror(ctx, node, a.GetObject().(*corev1.Pod)); err != nil {
			return admission.NewForbidden(a, err)
		}
		return nil
	case "nodes", "leases.coordination.k8s.io":
	default:
		return nil
	}
	name := a.GetName()
	if name == "" {
		name = accessor(a.GetObject()).GetName()
	}
	if name != node {
		return admission.NewForbidden(a, fmt.Errorf("node %q may not create one named %q", node, name))
	}
	return nil
}

// letsGo says whether a volume is as it was but for the finalizer by which its
// directory holds it.
func letsGo(pv, old *corev1.PersistentVolume) bool {
	want := old.DeepCopy()
	want.Finalizers = slices.DeleteFunc(want.Finalizers, func(f string) bool { return f == localPathProvisioner })
	want.ManagedFields, want.ResourceVersion = pv.ManagedFields, pv.ResourceVersion
	return equality.Semantic.DeepEqual(pv, want)
}

// token says why a worker may not have a token with this binding, or nil.
func (n nodeRestriction) token(ctx context.Context, node, namespace string, ref *authenticationv1.BoundObjectReference) error {
	switch {
	case ref == nil || ref.APIVersion != "v1" || ref.Kind != "Pod" || ref.Name == "":
		return errors.New("node requested token not bound to a pod")
	case ref.UID == "":
		return errors.New("node requested token with a pod binding without a uid")
	}
	pod, err := podReader(n).Pod(ctx, namespace, ref.Name)
	if err != nil {
		return err
	}
	if pod.UID != ref.UID {
		return fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID)
	}
	if pod.Spec.NodeName != node {
		return errors.New("node requested token bound to a pod scheduled on a different node")
	}
	return nil
}
