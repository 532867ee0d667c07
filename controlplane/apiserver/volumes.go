package apiserver

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/controlplane/apiserver/printers"
	"gitk8s.dev/gitk8s/controlplane/apiserver/validation"
)

const (
	// Finalizers by which nothing is deleted that is in use ("Persistent Volumes",
	// "Storage Object in Use Protection").
	claimProtection  = "kubernetes.io/pvc-protection"
	volumeProtection = "kubernetes.io/pv-protection"

	// localPathClass is the class that every cluster has, and localPathProvisioner
	// who makes its volumes (docs/contracts.md).
	localPathClass       = "local-path"
	localPathProvisioner = "gitk8s.dev/local-path"
)

// volumeResources are the kinds by which administrators offer storage.
func volumeResources() []*resource {
	return []*resource{
		{
			gv: corev1.SchemeGroupVersion, kind: "PersistentVolume", plural: "persistentvolumes",
			singular: "persistentvolume", shortNames: []string{"pv"},
			newObject: object[corev1.PersistentVolume], newList: object[corev1.PersistentVolumeList],
			table: printers.PersistentVolumes, name: apivalidation.NameIsDNSSubdomain, status: true,
			check: checked(validation.PersistentVolume), prepareCreate: volumeCreate, prepareStatusUpdate: volumeStatusUpdate,
			warnings: volumeWarnings,
		},
		{
			gv: storagev1.SchemeGroupVersion, kind: "StorageClass", plural: "storageclasses",
			singular: "storageclass", shortNames: []string{"sc"},
			newObject: object[storagev1.StorageClass], newList: object[storagev1.StorageClassList],
			table: printers.StorageClasses, name: apivalidation.NameIsDNSSubdomain,
			check: checked(validation.StorageClass), warnings: classWarnings,
		},
	}
}

func volumeCreate(_ context.Context, obj runtime.Object) {
	pv := obj.(*corev1.PersistentVolume)
	pv.Status.Phase, pv.Status.LastPhaseTransitionTime = corev1.VolumePending, ptr.To(metav1.Now())
	protect(pv, volumeProtection)
}

func volumeStatusUpdate(_ context.Context, obj, old runtime.Object) {
	pv, before := obj.(*corev1.PersistentVolume), old.(*corev1.PersistentVolume)
	if pv.Status.Phase != before.Status.Phase {
		pv.Status.LastPhaseTransitionTime = ptr.To(metav1.Now())
	}
}

func protect(obj metav1.Object, finalizer string) {
	if !slices.Contains(obj.GetFinalizers(), finalizer) {
		obj.SetFinalizers(append(obj.GetFinalizers(), finalizer))
	}
}

// storageAdmission does to claims what the admission plugins DefaultStorageClass
// and PersistentVolumeClaimResize of kube-apiserver do.
type storageAdmission struct{ server *Server }

var (
	_ admission.MutationInterface   = storageAdmission{}
	_ admission.ValidationInterface = storageAdmission{}
)

// Handles implements admission.Interface.
func (storageAdmission) Handles(op admission.Operation) bool {
	return op == admission.Create || op == admission.Update
}

func isClaim(a admission.Attributes) bool {
	return a.GetResource().GroupResource() == corev1.Resource("persistentvolumeclaims") && a.GetSubresource() == ""
}

// Admit gives a claim that names no class the default one: of several the newest.
func (s storageAdmission) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	claim, ok := a.GetObject().(*corev1.PersistentVolumeClaim)
	if !ok || !isClaim(a) || a.GetOperation() != admission.Create ||
		claim.Spec.StorageClassName != nil || claim.Annotations[corev1.BetaStorageClassAnnotation] != "" {
		return nil
	}
	list, err := listAll(ctx, s.classes())
	if err != nil {
		return admission.NewForbidden(a, err)
	}
	var best *storagev1.StorageClass
	classes := list.(*storagev1.StorageClassList).Items
	for i := range classes {
		c := &classes[i]
		if printers.IsDefaultClass(c) && (best == nil || newer(c, best)) {
			best = c
		}
	}
	if best != nil {
		claim.Spec.StorageClassName = &best.Name
	}
	return nil
}

// newer says which of two classes that are marked as the default one counts.
func newer(a, b metav1.Object) bool {
	first, second := a.GetCreationTimestamp(), b.GetCreationTimestamp()
	if first.Equal(&second) {
		return a.GetName() < b.GetName()
	}
	return second.Before(&first)
}

// Validate lets a claim ask for more only if its class can give more. That it is
// bound has been seen to: the spec of one that is not is immutable.
func (s storageAdmission) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	claim, ok := a.GetObject().(*corev1.PersistentVolumeClaim)
	if !ok || !isClaim(a) || a.GetOperation() != admission.Update {
		return nil
	}
	old, ok := a.GetOldObject().(*corev1.PersistentVolumeClaim)
	if !ok {
		return nil
	}
	size, before := claim.Spec.Resources.Requests[corev1.ResourceStorage], old.Spec.Resources.Requests[corev1.ResourceStorage]
	if size.Cmp(before) <= 0 {
		return nil
	}
	if name := ptr.Deref(claim.Spec.StorageClassName, ""); name != "" {
		obj, err := s.classes().Get(ctx, name, &metav1.GetOptions{})
		if err == nil && ptr.Deref(obj.(*storagev1.StorageClass).AllowVolumeExpansion, false) {
			return nil
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return admission.NewForbidden(a, errors.New("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"))
}

func (s storageAdmission) classes() *store {
	return s.server.stores[storagev1.Resource("storageclasses")]
}

// bootstrapClass makes the class that claims get when they name none. Once it is
// there it is its users': an edit stays, and it is made anew only when the server
// starts and it is missing.
func bootstrapClass(ctx context.Context, client kubernetes.Interface) error {
	_, err := client.StorageV1().StorageClasses().Create(ctx, &storagev1.StorageClass{
		ObjectMeta:        metav1.ObjectMeta{Name: localPathClass, Annotations: map[string]string{printers.DefaultClassAnnotation: "true"}},
		Provisioner:       localPathProvisioner,
		ReclaimPolicy:     ptr.To(corev1.PersistentVolumeReclaimDelete),
		VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer),
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create storageclass %s: %w", localPathClass, err)
	}
	return nil
}
