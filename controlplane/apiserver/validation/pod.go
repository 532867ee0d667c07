package validation

import (
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Pod checks a Pod, and on update that only what may change has.
func Pod(pod, old *corev1.Pod) field.ErrorList {
	path := field.NewPath("spec")
	if old == nil {
		errs := PodSpec(&pod.Spec, path)
		if len(pod.Spec.EphemeralContainers) > 0 {
			errs = append(errs, field.Forbidden(path.Child("ephemeralContainers"), "cannot be set on create"))
		}
		if pod.Spec.NodeName != "" {
			errs = append(errs, check(path.Child("nodeName"), pod.Spec.NodeName, utilvalidation.IsDNS1123Subdomain)...)
			if len(pod.Spec.SchedulingGates) > 0 {
				errs = append(errs, field.Forbidden(path.Child("nodeName"), "cannot be set until all schedulingGates have been cleared"))
			}
		}
		return append(errs, mirrorCreate(pod)...)
	}
	return append(mirrorUpdate(pod, old), podUpdate(pod, old, path)...)
}

// podUpdate follows "Pod update and replacement" of Kubernetes' Pods page.
func podUpdate(pod, old *corev1.Pod, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(pod.Spec.Containers) != len(old.Spec.Containers) {
		return append(errs, field.Forbidden(path.Child("containers"), "pod updates may not add or remove containers"))
	}
	if len(pod.Spec.InitContainers) != len(old.Spec.InitContainers) {
		return append(errs, field.Forbidden(path.Child("initContainers"), "pod updates may not add or remove containers"))
	}
	merged := pod.Spec.DeepCopy()
	for i := range merged.Containers {
		errs = append(errs, image(path.Child("containers").Index(i).Child("image"), merged.Containers[i].Image)...)
		merged.Containers[i].Image = old.Spec.Containers[i].Image
	}
	for i := range merged.InitContainers {
		errs = append(errs, image(path.Child("initContainers").Index(i).Child("image"), merged.InitContainers[i].Image)...)
		merged.InitContainers[i].Image = old.Spec.InitContainers[i].Image
	}
	errs = append(errs, deadlineUpdate(pod.Spec.ActiveDeadlineSeconds, old.Spec.ActiveDeadlineSeconds, path.Child("activeDeadlineSeconds"))...)
	merged.ActiveDeadlineSeconds = old.Spec.ActiveDeadlineSeconds
	for _, t := range old.Spec.Tolerations {
		if !slices.ContainsFunc(merged.Tolerations, func(n corev1.Toleration) bool { return sameToleration(n, t) }) {
			errs = append(errs, field.Forbidden(path.Child("tolerations"), "existing toleration can not be modified except its tolerationSeconds"))
			break
		}
	}
	errs = append(errs, tolerations(pod.Spec.Tolerations, path.Child("tolerations"))...)
	merged.Tolerations = old.Spec.Tolerations
	if g, o := merged.TerminationGracePeriodSeconds, old.Spec.TerminationGracePeriodSeconds; g != nil && o != nil && *g == 1 && *o < 0 {
		merged.TerminationGracePeriodSeconds = o
	}
	errs = append(errs, gatesUpdate(merged.SchedulingGates, old.Spec.SchedulingGates, path.Child("schedulingGates"))...)
	errs = append(errs, gatedUpdate(merged, &old.Spec, path)...)
	merged.SchedulingGates = old.Spec.SchedulingGates
	if len(errs) == 0 && !equality.Semantic.DeepEqual(*merged, old.Spec) {
		errs = append(errs, field.Forbidden(path, "pod updates may not change fields other than `spec.containers[*].image`,"+
			"`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"+
			"`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"))
	}
	return errs
}

func sameToleration(a, b corev1.Toleration) bool {
	a.TolerationSeconds, b.TolerationSeconds = nil, nil
	return a == b
}

func gatesUpdate(gates, old []corev1.PodSchedulingGate, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, g := range gates {
		if !slices.Contains(old, g) {
			errs = append(errs, field.Forbidden(path.Index(i).Child("name"), "only deletion is allowed, but found new scheduling gate '"+g.Name+"'"))
		}
	}
	return errs
}

func deadlineUpdate(now, old *int64, path *field.Path) field.ErrorList {
	switch {
	case now == nil && old != nil:
		return field.ErrorList{field.Invalid(path, now, "must not update from a positive integer to nil value")}
	case now == nil:
		return nil
	case *now < 1:
		return field.ErrorList{field.Invalid(path, *now, "must be greater than 0")}
	case old != nil && *old < *now:
		return field.ErrorList{field.Invalid(path, *now, "must be less than or equal to previous value")}
	}
	return nil
}

// PodSpec checks a Pod's spec, in a template or not.
func PodSpec(spec *corev1.PodSpec, path *field.Path) field.ErrorList {
	volumeNames, errs := volumes(spec.Volumes, path.Child("volumes"))
	errs = append(errs, containers(spec, volumeNames, path)...)
	errs = append(errs, oneOf(path.Child("restartPolicy"), spec.RestartPolicy,
		corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)...)
	errs = append(errs, dns(spec, path)...)
	if g := spec.TerminationGracePeriodSeconds; g != nil {
		errs = append(errs, nonNegative(path.Child("terminationGracePeriodSeconds"), *g)...)
	}
	if d := spec.ActiveDeadlineSeconds; d != nil && *d < 1 {
		errs = append(errs, field.Invalid(path.Child("activeDeadlineSeconds"), *d, "must be between 1 and 2147483647, inclusive"))
	}
	errs = append(errs, metavalidation.ValidateLabels(spec.NodeSelector, path.Child("nodeSelector"))...)
	errs = append(errs, tolerations(spec.Tolerations, path.Child("tolerations"))...)
	errs = append(errs, affinity(spec.Affinity, path.Child("affinity"))...)
	errs = append(errs, spread(spec.TopologySpreadConstraints, path.Child("topologySpreadConstraints"))...)
	if spec.ServiceAccountName != "" {
		errs = append(errs, check(path.Child("serviceAccountName"), spec.ServiceAccountName, utilvalidation.IsDNS1123Subdomain)...)
	}
	if spec.Hostname != "" {
		errs = append(errs, check(path.Child("hostname"), spec.Hostname, utilvalidation.IsDNS1123Label)...)
	}
	if spec.Subdomain != "" {
		errs = append(errs, check(path.Child("subdomain"), spec.Subdomain, utilvalidation.IsDNS1123Label)...)
	}
	if spec.PriorityClassName != "" {
		errs = append(errs, check(path.Child("priorityClassName"), spec.PriorityClassName, utilvalidation.IsDNS1123Subdomain)...)
	}
	for i, a := range spec.HostAliases {
		p := path.Child("hostAliases").Index(i)
		for _, e := range utilvalidation.IsValidIP(p.Child("ip"), a.IP) {
			errs = append(errs, e)
		}
		for j, h := range a.Hostnames {
			errs = append(errs, check(p.Child("hostnames").Index(j), h, utilvalidation.IsDNS1123Subdomain)...)
		}
	}
	gates := unique{}
	for i, g := range spec.SchedulingGates {
		p := path.Child("schedulingGates").Index(i)
		errs = append(errs, check(p, g.Name, utilvalidation.IsQualifiedName)...)
		errs = append(errs, gates.check(p, g.Name)...)
	}
	errs = append(errs, hostNamespaces(spec, path)...)
	return append(errs, podSecurity(spec, path.Child("securityContext"))...)
}

func podSecurity(spec *corev1.PodSpec, path *field.Path) field.ErrorList {
	s := spec.SecurityContext
	if s == nil {
		return nil
	}
	var errs field.ErrorList
	for name, id := range map[string]*int64{"runAsUser": s.RunAsUser, "runAsGroup": s.RunAsGroup, "fsGroup": s.FSGroup} {
		errs = append(errs, userID(path.Child(name), id)...)
	}
	for i := range s.SupplementalGroups {
		errs = append(errs, userID(path.Child("supplementalGroups").Index(i), &s.SupplementalGroups[i])...)
	}
	errs = append(errs, sysctls(spec, s.Sysctls, path.Child("sysctls"))...)
	errs = append(errs, seccomp(s.SeccompProfile, path.Child("seccompProfile"))...)
	errs = append(errs, groupPolicies(s, path)...)
	slices.SortFunc(errs, func(a, b *field.Error) int { return compareStrings(a.Field, b.Field) })
	return errs
}

func compareStrings(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func userID(p *field.Path, id *int64) field.ErrorList {
	if id == nil || (*id >= 0 && *id <= 1<<31-1) {
		return nil
	}
	return field.ErrorList{field.Invalid(p, *id, "must be between 0 and "+strconv.Itoa(1<<31-1)+", inclusive")}
}

func dns(spec *corev1.PodSpec, path *field.Path) field.ErrorList {
	errs := oneOf(path.Child("dnsPolicy"), spec.DNSPolicy, corev1.DNSClusterFirst, corev1.DNSClusterFirstWithHostNet, corev1.DNSDefault, corev1.DNSNone)
	p := path.Child("dnsConfig")
	if spec.DNSPolicy == corev1.DNSNone {
		if spec.DNSConfig == nil {
			return append(errs, field.Required(p, "must provide `dnsConfig` when `dnsPolicy` is None"))
		}
		if len(spec.DNSConfig.Nameservers) == 0 {
			return append(errs, field.Required(p.Child("nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None"))
		}
	}
	if spec.DNSConfig == nil {
		return errs
	}
	for i, ns := range spec.DNSConfig.Nameservers {
		errs = append(errs, utilvalidation.IsValidIP(p.Child("nameservers").Index(i), ns)...)
	}
	if n := len(spec.DNSConfig.Searches); n > 32 {
		errs = append(errs, field.Invalid(p.Child("searches"), spec.DNSConfig.Searches, "must not have more than 32 search paths"))
	}
	for i, o := range spec.DNSConfig.Options {
		if o.Name == "" {
			errs = append(errs, field.Required(p.Child("options").Index(i), "must not be empty"))
		}
	}
	return errs
}

func tolerations(list []corev1.Toleration, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, t := range list {
		p := path.Index(i)
		if t.Key != "" {
			errs = append(errs, metavalidation.ValidateLabelName(t.Key, p.Child("key"))...)
		} else if t.Operator != corev1.TolerationOpExists {
			errs = append(errs, field.Invalid(p.Child("operator"), t.Operator,
				"operator must be Exists when `key` is empty, which means \"match all values and all keys\""))
		}
		if t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute {
			errs = append(errs, field.Invalid(p.Child("effect"), t.Effect, "effect must be 'NoExecute' when `tolerationSeconds` is set"))
		}
		switch t.Operator {
		case corev1.TolerationOpEqual, "":
			errs = append(errs, check(p.Child("operator"), t.Value, utilvalidation.IsValidLabelValue)...)
		case corev1.TolerationOpExists:
			if t.Value != "" {
				errs = append(errs, field.Invalid(p.Child("operator"), t.Value, "value must be empty when `operator` is 'Exists'"))
			}
		default:
			errs = append(errs, field.NotSupported(p.Child("operator"), t.Operator, []corev1.TolerationOperator{corev1.TolerationOpEqual, corev1.TolerationOpExists}))
		}
		if t.Effect != "" {
			errs = append(errs, oneOf(p.Child("effect"), t.Effect, corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)...)
		}
	}
	return errs
}
