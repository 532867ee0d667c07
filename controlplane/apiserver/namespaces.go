package apiserver

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/dryrun"
)

// The namespaces that every cluster has.
const (
	namespaceDefault = metav1.NamespaceDefault
	namespaceSystem  = metav1.NamespaceSystem
	namespacePublic  = metav1.NamespacePublic
	namespaceLease   = corev1.NamespaceNodeLease
)

func systemNamespaces() []string {
	return []string{namespaceDefault, namespaceSystem, namespacePublic, namespaceLease}
}

func namespaceCreate(_ context.Context, obj runtime.Object) {
	ns := obj.(*corev1.Namespace)
	ns.Status.Phase = corev1.NamespaceActive
	if !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
		ns.Spec.Finalizers = append(ns.Spec.Finalizers, corev1.FinalizerKubernetes)
	}
}

func namespaceUpdate(_ context.Context, obj, old runtime.Object) {
	obj.(*corev1.Namespace).Spec.Finalizers = old.(*corev1.Namespace).Spec.Finalizers
}

func namespaceFields(obj runtime.Object) fields.Set {
	return fields.Set{"status.phase": string(obj.(*corev1.Namespace).Status.Phase)}
}

// configureNamespaces keeps a namespace stored until its content is gone: the
// last update that empties spec.finalizers may remove it.
func configureNamespaces(_ *Server, st *registry.Store) {
	st.ShouldDeleteDuringUpdate = func(ctx context.Context, key string, obj, existing runtime.Object) bool {
		return len(obj.(*corev1.Namespace).Spec.Finalizers) == 0 &&
			registry.ShouldDeleteDuringUpdate(ctx, key, obj, existing)
	}
}

func namespaceSubresources(_ *Server, st *store) map[string]rest.Storage {
	finalize := *st.Store
	finalize.UpdateStrategy = finalizeStrategy{st.UpdateStrategy.(strategy)}
	finalize.ResetFieldsStrategy = nil
	return map[string]rest.Storage{
		"":         &namespaceStore{plainStore: st, store: st},
		"finalize": &statusStore{store: &finalize},
	}
}

// finalizeStrategy lets /finalize change spec.finalizers and nothing else.
type finalizeStrategy struct{ strategy }

// PrepareForUpdate implements rest.RESTUpdateStrategy.
func (finalizeStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	ns, oldNS := obj.(*corev1.Namespace), old.(*corev1.Namespace)
	finalizers := ns.Spec.Finalizers
	resourceVersion := ns.ResourceVersion
	oldNS.DeepCopyInto(ns)
	ns.Spec.Finalizers = finalizers
	ns.ResourceVersion = resourceVersion
}

// ValidateUpdate implements rest.RESTUpdateStrategy.
func (finalizeStrategy) ValidateUpdate(context.Context, runtime.Object, runtime.Object) field.ErrorList {
	return nil
}

// plainStore is what a store offers without deletion. Namespaces, as in
// kube-apiserver, cannot be deleted as a collection.
type plainStore interface {
	rest.Storage
	rest.StorageWithReadiness
	rest.Scoper
	rest.SingularNameProvider
	rest.ShortNamesProvider
	rest.CategoriesProvider
	rest.Getter
	rest.Lister
	rest.Watcher
	rest.Creater
	rest.Updater
	rest.TableConvertor
	rest.ResetFieldsStrategy
}

// namespaceStore deletes a namespace in two steps: it first marks it, and removes
// it when the namespace controller has emptied spec.finalizers.
type namespaceStore struct {
	plainStore
	store *store
}

var _ rest.GracefulDeleter = &namespaceStore{}

// Delete implements rest.GracefulDeleter.
func (s *namespaceStore) Delete(ctx context.Context, name string, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions) (runtime.Object, bool, error) {
	if slices.Contains(systemNamespaces(), name) && name != namespaceLease {
		return nil, false, apierrors.NewForbidden(corev1.Resource("namespaces"), name,
			fmt.Errorf("this namespace may not be deleted"))
	}
	obj, err := s.store.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return nil, false, err
	}
	ns := obj.(*corev1.Namespace)
	if options == nil {
		options = &metav1.DeleteOptions{}
	}
	if options.Preconditions == nil {
		options.Preconditions = &metav1.Preconditions{}
	}
	if options.Preconditions.UID == nil {
		options.Preconditions.UID = &ns.UID
	} else if *options.Preconditions.UID != ns.UID {
		return nil, false, apierrors.NewConflict(corev1.Resource("namespaces"), name,
			fmt.Errorf("the UID in the precondition (%s) is not that of the namespace (%s)", *options.Preconditions.UID, ns.UID))
	}
	if !ns.DeletionTimestamp.IsZero() {
		if len(ns.Spec.Finalizers) > 0 {
			return ns, false, nil
		}
		return s.store.Delete(ctx, name, validate, options)
	}
	out, err := s.mark(ctx, name, validate, options)
	return out, false, err
}

// mark sets the deletion timestamp and the phase.
func (s *namespaceStore) mark(ctx context.Context, name string, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions) (runtime.Object, error) {
	if validate != nil {
		obj, err := s.store.Get(ctx, name, &metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		if err := validate(ctx, obj); err != nil {
			return nil, err
		}
	}
	return guaranteedUpdate(ctx, s.store, name, options.Preconditions, dryrun.IsDryRun(options.DryRun), func(obj runtime.Object) error {
		ns := obj.(*corev1.Namespace)
		if ns.DeletionTimestamp.IsZero() {
			now := metav1.Now()
			ns.DeletionTimestamp = &now
		}
		ns.Status.Phase = corev1.NamespaceTerminating
		return nil
	})
}

// namespaceLifecycle refuses new objects in namespaces that are not there or are
// being deleted, as the NamespaceLifecycle admission plugin of kube-apiserver.
type namespaceLifecycle struct{ server *Server }

var _ admission.MutationInterface = namespaceLifecycle{}

// Handles implements admission.Interface.
func (namespaceLifecycle) Handles(op admission.Operation) bool { return op == admission.Create }

// Admit implements admission.MutationInterface.
func (l namespaceLifecycle) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetNamespace() == "" || a.GetKind().GroupKind() == corev1.SchemeGroupVersion.WithKind("Namespace").GroupKind() {
		return nil
	}
	if a.GetResource().Group == "authorization.k8s.io" {
		return nil
	}
	namespaces := l.server.stores[corev1.Resource("namespaces")]
	// The watch cache answers nearly always; a miss is looked up in the store, for
	// a namespace made a moment ago.
	obj, err := namespaces.Get(ctx, a.GetNamespace(), &metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		obj, err = namespaces.Get(ctx, a.GetNamespace(), &metav1.GetOptions{})
	}
	if err != nil {
		return err
	}
	ns := obj.(*corev1.Namespace)
	if ns.Status.Phase != corev1.NamespaceTerminating && ns.DeletionTimestamp.IsZero() {
		return nil
	}
	forbidden := admission.NewForbidden(a, fmt.Errorf("unable to create new content in namespace %s because it is being terminated", a.GetNamespace()))
	if status, ok := forbidden.(*apierrors.StatusError); ok {
		status.ErrStatus.Details.Causes = append(status.ErrStatus.Details.Causes, metav1.StatusCause{
			Type:    corev1.NamespaceTerminatingCause,
			Message: fmt.Sprintf("namespace %s is being terminated", a.GetNamespace()),
			Field:   "metadata.namespace",
		})
	}
	return forbidden
}
