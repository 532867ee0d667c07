package validation

import (
	"reflect"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// volumes checks the volumes and returns their names.
func volumes(list []corev1.Volume, path *field.Path) (sets.Set[string], field.ErrorList) {
	var errs field.ErrorList
	names := sets.New[string]()
	for i := range list {
		v, p := &list[i], path.Index(i)
		if bad := requiredLabel(p.Child("name"), v.Name); len(bad) > 0 {
			errs = append(errs, bad...)
		} else if names.Has(v.Name) {
			errs = append(errs, field.Duplicate(p.Child("name"), v.Name))
		}
		names.Insert(v.Name)
		errs = append(errs, volume(&v.VolumeSource, p)...)
	}
	return names, errs
}

func volume(v *corev1.VolumeSource, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	set := setSources(v)
	if len(set) > 1 {
		for _, name := range set[1:] {
			errs = append(errs, field.Forbidden(path.Child(name), "may not specify more than 1 volume type"))
		}
	}
	if len(set) == 0 {
		errs = append(errs, field.Required(path, "must specify a volume type"))
	}
	if s := v.HostPath; s != nil {
		p := path.Child("hostPath")
		if s.Path == "" {
			errs = append(errs, field.Required(p.Child("path"), ""))
		}
		errs = append(errs, noBackSteps(p.Child("path"), s.Path)...)
		errs = append(errs, hostPathType(s.Type, p.Child("type"))...)
	}
	if s := v.EmptyDir; s != nil && s.SizeLimit != nil && s.SizeLimit.Sign() < 0 {
		errs = append(errs, field.Forbidden(path.Child("emptyDir", "sizeLimit"), "SizeLimit field must be a valid resource quantity"))
	}
	if s := v.Secret; s != nil {
		p := path.Child("secret")
		if s.SecretName == "" {
			errs = append(errs, field.Required(p.Child("secretName"), ""))
		}
		errs = append(errs, fileMode(p.Child("defaultMode"), s.DefaultMode)...)
		errs = append(errs, keyItems(s.Items, p.Child("items"))...)
	}
	if s := v.ConfigMap; s != nil {
		p := path.Child("configMap")
		if s.Name == "" {
			errs = append(errs, field.Required(p.Child("name"), ""))
		}
		errs = append(errs, fileMode(p.Child("defaultMode"), s.DefaultMode)...)
		errs = append(errs, keyItems(s.Items, p.Child("items"))...)
	}
	if s := v.DownwardAPI; s != nil {
		errs = append(errs, fileMode(path.Child("downwardAPI", "defaultMode"), s.DefaultMode)...)
		errs = append(errs, downward(s.Items, path.Child("downwardAPI", "items"))...)
	}
	if s := v.Projected; s != nil {
		errs = append(errs, projected(s, path.Child("projected"))...)
	}
	if s := v.Ephemeral; s != nil {
		p := path.Child("ephemeral", "volumeClaimTemplate")
		if s.VolumeClaimTemplate == nil {
			errs = append(errs, field.Required(p, ""))
		} else {
			errs = append(errs, claimSpec(&s.VolumeClaimTemplate.Spec, p.Child("spec"))...)
		}
	}
	if s := v.PersistentVolumeClaim; s != nil && s.ClaimName == "" {
		errs = append(errs, field.Required(path.Child("persistentVolumeClaim", "claimName"), ""))
	}
	return errs
}

// setSources names the sources that a volume has, by their JSON names; v points to
// a struct of pointers.
func setSources(v any) []string {
	var out []string
	r := reflect.ValueOf(v).Elem()
	for i := range r.NumField() {
		if !r.Field(i).IsNil() {
			name := r.Type().Field(i).Tag.Get("json")
			out = append(out, name[:len(name)-len(",omitempty")])
		}
	}
	return out
}

func hostPathType(t *corev1.HostPathType, p *field.Path) field.ErrorList {
	if t == nil || *t == corev1.HostPathUnset {
		return nil
	}
	return oneOf(p, *t, corev1.HostPathDirectoryOrCreate, corev1.HostPathDirectory, corev1.HostPathFileOrCreate,
		corev1.HostPathFile, corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev)
}

func keyItems(items []corev1.KeyToPath, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, item := range items {
		p := path.Index(i)
		if item.Key == "" {
			errs = append(errs, field.Required(p.Child("key"), ""))
		}
		if item.Path == "" {
			errs = append(errs, field.Required(p.Child("path"), ""))
		}
		errs = append(errs, relativePath(p.Child("path"), item.Path)...)
		errs = append(errs, fileMode(p.Child("mode"), item.Mode)...)
	}
	return errs
}

func downward(items []corev1.DownwardAPIVolumeFile, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range items {
		item, p := &items[i], path.Index(i)
		if item.Path == "" {
			errs = append(errs, field.Required(p.Child("path"), ""))
		}
		errs = append(errs, relativePath(p.Child("path"), item.Path)...)
		errs = append(errs, fileMode(p.Child("mode"), item.Mode)...)
		switch {
		case item.FieldRef != nil && item.ResourceFieldRef != nil:
			errs = append(errs, field.Invalid(p, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously"))
		case item.FieldRef != nil:
			errs = append(errs, fieldRef(item.FieldRef, volumeFields, p.Child("fieldRef"))...)
		case item.ResourceFieldRef != nil:
			errs = append(errs, resourceRef(item.ResourceFieldRef, true, p.Child("resourceFieldRef"))...)
		default:
			errs = append(errs, field.Required(p, "one of fieldRef and resourceFieldRef is required"))
		}
	}
	return errs
}

func projected(v *corev1.ProjectedVolumeSource, path *field.Path) field.ErrorList {
	errs := fileMode(path.Child("defaultMode"), v.DefaultMode)
	for i := range v.Sources {
		s, p := &v.Sources[i], path.Child("sources").Index(i)
		count := 0
		if s.Secret != nil {
			count++
			if s.Secret.Name == "" {
				errs = append(errs, field.Required(p.Child("secret", "name"), ""))
			}
			errs = append(errs, keyItems(s.Secret.Items, p.Child("secret", "items"))...)
		}
		if s.ConfigMap != nil {
			count++
			if s.ConfigMap.Name == "" {
				errs = append(errs, field.Required(p.Child("configMap", "name"), ""))
			}
			errs = append(errs, keyItems(s.ConfigMap.Items, p.Child("configMap", "items"))...)
		}
		if s.DownwardAPI != nil {
			count++
			errs = append(errs, downward(s.DownwardAPI.Items, p.Child("downwardAPI", "items"))...)
		}
		if s.ServiceAccountToken != nil {
			count++
			errs = append(errs, tokenProjection(s.ServiceAccountToken, p.Child("serviceAccountToken"))...)
		}
		if count > 1 {
			errs = append(errs, field.Forbidden(p, "may not specify more than 1 volume type per source"))
		}
	}
	return errs
}

func tokenProjection(s *corev1.ServiceAccountTokenProjection, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if s.Path == "" {
		errs = append(errs, field.Required(path.Child("path"), ""))
	} else {
		errs = append(errs, relativePath(path.Child("path"), s.Path)...)
	}
	p := path.Child("expirationSeconds")
	switch {
	case s.ExpirationSeconds == nil:
	case *s.ExpirationSeconds < 10*60:
		errs = append(errs, field.Invalid(p, *s.ExpirationSeconds, "may not specify a duration less than 10 minutes"))
	case *s.ExpirationSeconds > 1<<32:
		errs = append(errs, field.Invalid(p, *s.ExpirationSeconds, "may not specify a duration larger than 2^32 seconds"))
	}
	return errs
}
