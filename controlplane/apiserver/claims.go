package apiserver

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/runtime"

	"gitk8s.dev/gitk8s/controlplane/apiserver/printers"
	"gitk8s.dev/gitk8s/controlplane/apiserver/validation"
)

// claimResources are the kinds by which pods ask for storage.
func claimResources() []*resource {
	return []*resource{
		{
			gv: corev1.SchemeGroupVersion, kind: "PersistentVolumeClaim", plural: "persistentvolumeclaims",
			singular: "persistentvolumeclaim", shortNames: []string{"pvc"}, namespaced: true,
			newObject: object[corev1.PersistentVolumeClaim], newList: object[corev1.PersistentVolumeClaimList],
			table: printers.PersistentVolumeClaims, name: apivalidation.NameIsDNSSubdomain, status: true,
			check: checked(validation.PersistentVolumeClaim), prepareCreate: claimCreate,
			warnings: claimWarnings,
		},
	}
}

// claimCreate starts the life of a claim: nothing is bound to it yet, and it will
// not go while a pod uses it.
func claimCreate(_ context.Context, obj runtime.Object) {
	claim := obj.(*corev1.PersistentVolumeClaim)
	claim.Status.Phase = corev1.ClaimPending
	protect(claim, claimProtection)
}
