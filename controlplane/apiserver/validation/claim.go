package validation

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// PersistentVolumeClaim checks a claim, and on update that only what may change
// has.
func PersistentVolumeClaim(claim, old *corev1.PersistentVolumeClaim) field.ErrorList {
	path := field.NewPath("spec")
	errs := claimSpec(&claim.Spec, path)
	if old == nil {
		return errs
	}
	merged := claim.Spec.DeepCopy()
	if old.Spec.VolumeName == "" {
		merged.VolumeName = old.Spec.VolumeName // this is how a claim is bound
	}
	if old.Spec.StorageClassName == nil {
		merged.StorageClassName = old.Spec.StorageClassName // the default class, once there is one
	}
	if old.Status.Phase == corev1.ClaimBound {
		merged.Resources.Requests = old.Spec.Resources.Requests
		merged.VolumeAttributesClassName = old.Spec.VolumeAttributesClassName
		errs = append(errs, grown(claim, old, path.Child("resources", "requests", "storage"))...)
	}
	if !same(*merged, old.Spec) {
		errs = append(errs, field.Forbidden(path, "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"))
	}
	return errs
}

// grown checks that a claim asks for no less than before, unless it takes back an
// expansion that has not happened ("Persistent Volumes", "Recovering from Failure
// when Expanding Volumes").
func grown(claim, old *corev1.PersistentVolumeClaim, path *field.Path) field.ErrorList {
	size, before, have := claim.Spec.Resources.Requests[corev1.ResourceStorage], old.Spec.Resources.Requests[corev1.ResourceStorage], old.Status.Capacity[corev1.ResourceStorage]
	if size.Cmp(before) < 0 && size.Cmp(have) <= 0 {
		return field.ErrorList{field.Forbidden(path, "field can not be less than status.capacity")}
	}
	return nil
}

func claimSpec(spec *corev1.PersistentVolumeClaimSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(spec.AccessModes) == 0 {
		errs = append(errs, field.Required(path.Child("accessModes"), "at least 1 access mode is required"))
	}
	if spec.Selector != nil {
		errs = append(errs, metavalidation.ValidateLabelSelector(spec.Selector, metavalidation.LabelSelectorValidationOptions{}, path.Child("selector"))...)
	}
	for i, mode := range spec.AccessModes {
		errs = append(errs, oneOf(path.Child("accessModes").Index(i), mode,
			corev1.ReadWriteOnce, corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOncePod)...)
	}
	if len(spec.AccessModes) > 1 && slices.Contains(spec.AccessModes, corev1.ReadWriteOncePod) {
		errs = append(errs, field.Forbidden(path.Child("accessModes"), "may not use ReadWriteOncePod with other access modes"))
	}
	storage := path.Child("resources").Key(string(corev1.ResourceStorage))
	if size, ok := spec.Resources.Requests[corev1.ResourceStorage]; !ok {
		errs = append(errs, field.Required(storage, ""))
	} else if size.Sign() <= 0 {
		errs = append(errs, field.Invalid(storage, size.String(), "must be greater than zero"))
	}
	if spec.StorageClassName != nil && *spec.StorageClassName != "" {
		errs = append(errs, check(path.Child("storageClassName"), *spec.StorageClassName, utilvalidation.IsDNS1123Subdomain)...)
	}
	if spec.VolumeMode != nil {
		errs = append(errs, oneOf(path.Child("volumeMode"), *spec.VolumeMode, corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem)...)
	}
	return errs
}
