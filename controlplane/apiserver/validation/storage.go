package validation

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// PersistentVolume checks a volume, and on update that it is still the same one.
func PersistentVolume(pv, old *corev1.PersistentVolume) field.ErrorList {
	spec, path := &pv.Spec, field.NewPath("spec")
	errs := volumeModes(spec.AccessModes, path.Child("accessModes"))
	errs = append(errs, volumeCapacity(spec.Capacity, path.Child("capacity"))...)
	errs = append(errs, volumeNodes(spec.NodeAffinity, path.Child("nodeAffinity"))...)
	errs = append(errs, volumeSource(pv, path)...)
	errs = append(errs, oneOf(path.Child("persistentVolumeReclaimPolicy"), spec.PersistentVolumeReclaimPolicy,
		corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRecycle, corev1.PersistentVolumeReclaimRetain)...)
	if spec.StorageClassName != "" {
		errs = append(errs, check(path.Child("storageClassName"), spec.StorageClassName, utilvalidation.IsDNS1123Subdomain)...)
	}
	if spec.VolumeMode != nil {
		errs = append(errs, oneOf(path.Child("volumeMode"), *spec.VolumeMode, corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem)...)
	}
	if old == nil {
		return errs
	}
	if !same(spec.PersistentVolumeSource, old.Spec.PersistentVolumeSource) {
		errs = append(errs, field.Forbidden(path.Child("persistentvolumesource"), "spec.persistentvolumesource is immutable after creation"))
	}
	errs = append(errs, apivalidation.ValidateImmutableField(spec.VolumeMode, old.Spec.VolumeMode, path.Child("volumeMode"))...)
	if old.Spec.NodeAffinity != nil {
		errs = append(errs, apivalidation.ValidateImmutableField(spec.NodeAffinity, old.Spec.NodeAffinity, path.Child("nodeAffinity"))...)
	}
	return errs
}

func volumeModes(modes []corev1.PersistentVolumeAccessMode, path *field.Path) field.ErrorList {
	if len(modes) == 0 {
		return field.ErrorList{field.Required(path, "")}
	}
	var errs field.ErrorList
	for _, mode := range modes {
		errs = append(errs, oneOf(path, mode,
			corev1.ReadWriteOnce, corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOncePod)...)
	}
	if slices.Contains(modes, corev1.ReadWriteOncePod) && slices.ContainsFunc(modes, func(m corev1.PersistentVolumeAccessMode) bool { return m != corev1.ReadWriteOncePod }) {
		errs = append(errs, field.Forbidden(path, "may not use ReadWriteOncePod with other access modes"))
	}
	return errs
}

func volumeCapacity(capacity corev1.ResourceList, path *field.Path) field.ErrorList {
	if len(capacity) == 0 {
		return field.ErrorList{field.Required(path, "")}
	}
	size, ok := capacity[corev1.ResourceStorage]
	if !ok || len(capacity) > 1 {
		return field.ErrorList{field.NotSupported(path, capacity, []corev1.ResourceName{corev1.ResourceStorage})}
	}
	if size.Sign() <= 0 {
		return field.ErrorList{field.Invalid(path.Key(string(corev1.ResourceStorage)), size.String(), "must be greater than zero")}
	}
	return nil
}

func volumeNodes(a *corev1.VolumeNodeAffinity, path *field.Path) field.ErrorList {
	if a == nil {
		return nil
	}
	if a.Required == nil {
		return field.ErrorList{field.Required(path.Child("required"), "must specify required node constraints")}
	}
	path = path.Child("required", "nodeSelectorTerms")
	var errs field.ErrorList
	if len(a.Required.NodeSelectorTerms) == 0 {
		errs = append(errs, field.Required(path, "must have at least one node selector term"))
	}
	for i := range a.Required.NodeSelectorTerms {
		errs = append(errs, nodeTerm(&a.Required.NodeSelectorTerms[i], path.Index(i))...)
	}
	return errs
}

func volumeSource(pv *corev1.PersistentVolume, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	set := setSources(&pv.Spec.PersistentVolumeSource)
	if len(set) == 0 {
		return field.ErrorList{field.Required(path, "must specify a volume type")}
	}
	for _, name := range set[1:] {
		errs = append(errs, field.Forbidden(path.Child(name), "may not specify more than 1 volume type"))
	}
	if s := pv.Spec.HostPath; s != nil {
		p := path.Child("hostPath")
		if s.Path == "" {
			errs = append(errs, field.Required(p.Child("path"), ""))
		}
		errs = append(errs, noBackSteps(p.Child("path"), s.Path)...)
		errs = append(errs, hostPathType(s.Type, p.Child("type"))...)
		if strings.Trim(s.Path, "/") == "" && s.Path != "" && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
			errs = append(errs, field.Forbidden(path.Child("persistentVolumeReclaimPolicy"), "may not be 'recycle' for a hostPath mount of '/'"))
		}
	}
	if s := pv.Spec.Local; s != nil {
		p := path.Child("local")
		if s.Path == "" {
			errs = append(errs, field.Required(p.Child("path"), ""))
		}
		errs = append(errs, noBackSteps(p.Child("path"), s.Path)...)
		if pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil {
			errs = append(errs, field.Required(field.NewPath("metadata", "annotations"), "Local volume requires node affinity"))
		}
	}
	return errs
}

// Bounds of a class's parameters.
const (
	maxParameters     = 512
	maxParametersSize = 256 << 10
)

// StorageClass checks a class, and on update that it makes the same volumes.
func StorageClass(c, old *storagev1.StorageClass) field.ErrorList {
	path := field.NewPath("provisioner")
	var errs field.ErrorList
	if c.Provisioner == "" {
		errs = append(errs, field.Required(path, c.Provisioner))
	} else {
		errs = append(errs, check(path, strings.ToLower(c.Provisioner), utilvalidation.IsQualifiedName)...)
	}
	errs = append(errs, parameters(c.Parameters, field.NewPath("parameters"))...)
	if c.ReclaimPolicy != nil {
		errs = append(errs, oneOf(field.NewPath("reclaimPolicy"), *c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain)...)
	}
	if mode := field.NewPath("volumeBindingMode"); c.VolumeBindingMode == nil {
		errs = append(errs, field.Required(mode, ""))
	} else {
		errs = append(errs, oneOf(mode, *c.VolumeBindingMode, storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer)...)
	}
	errs = append(errs, topologies(c.AllowedTopologies, field.NewPath("allowedTopologies"))...)
	if old == nil {
		return errs
	}
	if !same(c.Parameters, old.Parameters) {
		errs = append(errs, field.Forbidden(field.NewPath("parameters"), "updates to parameters are forbidden."))
	}
	if c.Provisioner != old.Provisioner {
		errs = append(errs, field.Forbidden(path, "updates to provisioner are forbidden."))
	}
	if !same(c.ReclaimPolicy, old.ReclaimPolicy) {
		errs = append(errs, field.Forbidden(field.NewPath("reclaimPolicy"), "updates to reclaimPolicy are forbidden."))
	}
	return append(errs, apivalidation.ValidateImmutableField(c.VolumeBindingMode, old.VolumeBindingMode, field.NewPath("volumeBindingMode"))...)
}

func parameters(list map[string]string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(list) > maxParameters {
		errs = append(errs, field.TooLong(path, "StorageClass.Parameters", maxParameters))
	}
	size := 0
	for k, v := range list {
		if k == "" {
			errs = append(errs, field.Invalid(path, k, "field can not be empty."))
		}
		size += len(k) + len(v)
	}
	if size > maxParametersSize {
		errs = append(errs, field.TooLong(path, "", maxParametersSize))
	}
	return errs
}

func topologies(list []corev1.TopologySelectorTerm, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, term := range list {
		keys := unique{}
		for j, e := range term.MatchLabelExpressions {
			p := path.Index(i).Child("matchLabelExpressions").Index(j)
			errs = append(errs, keys.check(p.Child("key"), e.Key)...)
			errs = append(errs, metavalidation.ValidateLabelName(e.Key, p.Child("key"))...)
			if len(e.Values) == 0 {
				errs = append(errs, field.Required(p.Child("values"), ""))
			}
			seen := sets.New[string]()
			for k, v := range e.Values {
				if seen.Has(v) {
					errs = append(errs, field.Duplicate(p.Child("values").Index(k), v))
				}
				seen.Insert(v)
			}
		}
	}
	return errs
}
