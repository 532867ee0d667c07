package validation

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	sysctlLongest = 253
	sysctlForm    = `^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$`
)

var sysctlName = regexp.MustCompile(sysctlForm)

const withoutHostUsers = "when `hostUsers` is false"

// hostNamespaces checks which namespaces of the machine a pod asks for, and what
// goes with them.
func hostNamespaces(spec *corev1.PodSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	share := spec.ShareProcessNamespace
	if spec.HostPID && share != nil && *share {
		errs = append(errs, field.Invalid(path.Child("securityContext", "shareProcessNamespace"), *share, "ShareProcessNamespace and HostPID cannot both be enabled"))
	}
	hostUsers := spec.HostUsers == nil || *spec.HostUsers
	for name, list := range map[string][]corev1.Container{"initContainers": spec.InitContainers, "containers": spec.Containers} {
		for i := range list {
			sc := list[i].SecurityContext
			if sc != nil && sc.ProcMount != nil && *sc.ProcMount == corev1.UnmaskedProcMount && hostUsers {
				errs = append(errs, field.Invalid(path.Child(name).Index(i).Child("securityContext", "procMount"), *sc.ProcMount, "`hostUsers` must be false to use `Unmasked`"))
			}
			if !hostUsers && len(list[i].VolumeDevices) > 0 {
				errs = append(errs, field.Forbidden(path.Child(name).Index(i).Child("volumeDevices"), withoutHostUsers))
			}
		}
	}
	for name, set := range map[string]bool{"hostNetwork": spec.HostNetwork, "hostPID": spec.HostPID, "hostIPC": spec.HostIPC} {
		if set && !hostUsers {
			errs = append(errs, field.Forbidden(path.Child(name), withoutHostUsers))
		}
	}
	slices.SortFunc(errs, func(a, b *field.Error) int { return compareStrings(a.Field, b.Field) })
	return errs
}

// sysctls checks names ("Using sysctls in a Kubernetes Cluster"); which of them a
// node allows is for the node to say.
func sysctls(spec *corev1.PodSpec, list []corev1.Sysctl, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := unique{}
	for i, s := range list {
		p := path.Index(i).Child("name")
		dots := strings.ReplaceAll(s.Name, "/", ".")
		switch {
		case s.Name == "":
			errs = append(errs, field.Required(p, ""))
			continue
		case len(s.Name) > sysctlLongest || !sysctlName.MatchString(s.Name):
			errs = append(errs, field.Invalid(p, s.Name, fmt.Sprintf("must have at most %d characters and match regex %s", sysctlLongest, sysctlForm)))
		default:
			errs = append(errs, seen.check(p, s.Name)...)
		}
		switch {
		case spec.HostNetwork && strings.HasPrefix(dots, "net."):
			errs = append(errs, field.Invalid(p, s.Name, "may not be specified when 'hostNetwork' is true"))
		case spec.HostIPC && isIPCSysctl(dots):
			errs = append(errs, field.Invalid(p, s.Name, "may not be specified when 'hostIPC' is true"))
		}
	}
	return errs
}

func isIPCSysctl(name string) bool {
	return name == "kernel.sem" || strings.HasPrefix(name, "kernel.shm") || strings.HasPrefix(name, "kernel.msg") || strings.HasPrefix(name, "fs.mqueue.")
}

// seccomp checks a profile ("Restrict a Container's Syscalls with seccomp").
func seccomp(s *corev1.SeccompProfile, path *field.Path) field.ErrorList {
	if s == nil {
		return nil
	}
	p := path.Child("localhostProfile")
	switch s.Type {
	case "":
		return field.ErrorList{field.Required(path.Child("type"), "type is required when seccompProfile is set")}
	case corev1.SeccompProfileTypeLocalhost:
		if s.LocalhostProfile == nil || *s.LocalhostProfile == "" {
			return field.ErrorList{field.Required(p, "must be set when seccomp type is Localhost")}
		}
		return relativePath(p, *s.LocalhostProfile)
	}
	errs := oneOf(path.Child("type"), s.Type, corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined)
	if s.LocalhostProfile != nil {
		errs = append(errs, field.Invalid(p, *s.LocalhostProfile, "can only be set when seccomp type is Localhost"))
	}
	return errs
}

// groupPolicies checks how groups and volumes come together.
func groupPolicies(s *corev1.PodSecurityContext, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if s.FSGroupChangePolicy != nil {
		errs = append(errs, oneOf(path.Child("fsGroupChangePolicy"), *s.FSGroupChangePolicy, corev1.FSGroupChangeOnRootMismatch, corev1.FSGroupChangeAlways)...)
	}
	if s.SupplementalGroupsPolicy != nil {
		errs = append(errs, oneOf(path.Child("supplementalGroupsPolicy"), *s.SupplementalGroupsPolicy, corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict)...)
	}
	return errs
}
