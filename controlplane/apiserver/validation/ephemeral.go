package validation

import (
	"fmt"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// ephemeralFields are those of a container that an ephemeral one may set ("Ephemeral
// Containers" page): nothing that a service could be built on.
var ephemeralFields = sets.New("Name", "Image", "Command", "Args", "WorkingDir", "EnvFrom", "Env", "VolumeMounts",
	"VolumeDevices", "TerminationMessagePath", "TerminationMessagePolicy", "ImagePullPolicy", "SecurityContext",
	"Stdin", "StdinOnce", "TTY")

// PodEphemeralContainers checks a write to pods/ephemeralcontainers: containers may
// be added, and that is all.
func PodEphemeralContainers(pod, old *corev1.Pod) field.ErrorList {
	path := field.NewPath("spec", "ephemeralContainers")
	if IsMirror(old) {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "static pods do not support ephemeral containers")}
	}
	errs := ephemeralContainers(&pod.Spec, path)
	now := map[string]*corev1.EphemeralContainer{}
	for i := range pod.Spec.EphemeralContainers {
		now[pod.Spec.EphemeralContainers[i].Name] = &pod.Spec.EphemeralContainers[i]
	}
	for i := range old.Spec.EphemeralContainers {
		was := &old.Spec.EphemeralContainers[i]
		switch c := now[was.Name]; {
		case c == nil:
			errs = append(errs, field.Forbidden(path, fmt.Sprintf("existing ephemeral containers %q may not be removed\n", was.Name)))
		case !equality.Semantic.DeepEqual(was, c):
			errs = append(errs, field.Forbidden(path, fmt.Sprintf("existing ephemeral containers %q may not be changed\n", was.Name)))
		}
	}
	return errs
}

func ephemeralContainers(spec *corev1.PodSpec, path *field.Path) field.ErrorList {
	volumeNames, _ := volumes(spec.Volumes, field.NewPath("spec", "volumes"))
	others, seen := sets.New[string](), unique{}
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			others.Insert(list[i].Name)
			seen[list[i].Name] = true
		}
	}
	var errs field.ErrorList
	for i := range spec.EphemeralContainers {
		e, p := &spec.EphemeralContainers[i], path.Index(i)
		errs = append(errs, container((*corev1.Container)(&e.EphemeralContainerCommon), volumeNames, p)...)
		errs = append(errs, named(seen, e.Name, p)...)
		if t := e.TargetContainerName; t != "" && !others.Has(t) {
			errs = append(errs, field.NotFound(p.Child("targetContainerName"), t))
		}
		errs = append(errs, onlyFields(e.EphemeralContainerCommon, ephemeralFields, p)...)
		for j, m := range e.VolumeMounts {
			const message = "cannot be set for an Ephemeral Container"
			if m.SubPath != "" {
				errs = append(errs, field.Forbidden(p.Child("volumeMounts").Index(j).Child("subPath"), message))
			}
			if m.SubPathExpr != "" {
				errs = append(errs, field.Forbidden(p.Child("volumeMounts").Index(j).Child("subPathExpr"), message))
			}
		}
	}
	return errs
}

// onlyFields refuses what is set beside the allowed fields, also fields that the API
// may get in future.
func onlyFields(c corev1.EphemeralContainerCommon, allowed sets.Set[string], path *field.Path) field.ErrorList {
	var errs field.ErrorList
	v := reflect.ValueOf(c)
	for i := range v.NumField() {
		name, f := v.Type().Field(i).Name, v.Field(i)
		if allowed.Has(name) || f.IsZero() || f.Kind() == reflect.Slice && f.Len() == 0 ||
			name == "Resources" && len(c.Resources.Limits)+len(c.Resources.Requests)+len(c.Resources.Claims) == 0 {
			continue
		}
		errs = append(errs, field.Forbidden(path.Child(strings.ToLower(name[:1])+name[1:]), "cannot be set for an Ephemeral Container"))
	}
	return errs
}
