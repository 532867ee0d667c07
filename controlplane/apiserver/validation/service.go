package validation

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Service checks a Service. What follows from the cluster's families of addresses has
// been checked when it was given its own.
func Service(s, old *corev1.Service) field.ErrorList {
	path := field.NewPath("spec")
	spec := &s.Spec
	headless := spec.ClusterIP == corev1.ClusterIPNone
	errs := oneOf(path.Child("type"), spec.Type, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort,
		corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName)
	if len(spec.Ports) == 0 && !headless && spec.Type != corev1.ServiceTypeExternalName {
		errs = append(errs, field.Required(path.Child("ports"), ""))
	}
	switch spec.Type {
	case corev1.ServiceTypeExternalName:
		if spec.ClusterIP != "" {
			errs = append(errs, field.Forbidden(path.Child("clusterIPs"), "may not be set for ExternalName services"))
		}
		if len(spec.IPFamilies) > 0 {
			errs = append(errs, field.Forbidden(path.Child("ipFamilies"), "may not be set for ExternalName services"))
		}
		if spec.IPFamilyPolicy != nil {
			errs = append(errs, field.Forbidden(path.Child("ipFamilyPolicy"), "may not be set for ExternalName services"))
		}
		if spec.ExternalName == "" {
			errs = append(errs, field.Required(path.Child("externalName"), ""))
		} else {
			errs = append(errs, check(path.Child("externalName"), spec.ExternalName, utilvalidation.IsDNS1123Subdomain)...)
		}
	case corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
		if headless {
			errs = append(errs, field.Invalid(path.Child("clusterIPs").Index(0), spec.ClusterIP, fmt.Sprintf("may not be set to 'None' for %s services", spec.Type)))
		}
	}
	if len(spec.ClusterIPs) > 0 && spec.ClusterIPs[0] != spec.ClusterIP {
		errs = append(errs, field.Invalid(path.Child("clusterIPs"), spec.ClusterIPs, "first value must match `clusterIP`"))
	}
	if len(spec.ClusterIPs) > 2 {
		errs = append(errs, field.Invalid(path.Child("clusterIPs"), spec.ClusterIPs, "may only hold up to 2 values"))
	}
	if headless && len(spec.ClusterIPs) > 1 {
		errs = append(errs, field.Invalid(path.Child("clusterIPs"), spec.ClusterIPs, "'None' must be the first and only value"))
	}
	if !headless {
		for i, ip := range spec.ClusterIPs {
			errs = append(errs, utilvalidation.IsValidIP(path.Child("clusterIPs").Index(i), ip)...)
		}
	}
	errs = append(errs, metavalidation.ValidateLabels(spec.Selector, path.Child("selector"))...)
	errs = append(errs, servicePorts(spec.Ports, path.Child("ports"))...)
	errs = append(errs, sessionAffinity(spec, path)...)
	errs = append(errs, families(spec, path)...)
	errs = append(errs, policies(spec, path)...)
	errs = append(errs, external(spec, path)...)
	if old != nil {
		errs = append(errs, sameClass(spec, &old.Spec, path)...)
	}
	return errs
}

func servicePorts(list []corev1.ServicePort, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	names, numbers, nodePorts := unique{}, unique{}, unique{}
	for i, port := range list {
		p := path.Index(i)
		switch {
		case port.Name == "" && len(list) > 1:
			errs = append(errs, field.Required(p.Child("name"), ""))
		case port.Name != "":
			errs = append(errs, check(p.Child("name"), port.Name, utilvalidation.IsDNS1123Label)...)
			errs = append(errs, names.check(p.Child("name"), port.Name)...)
		}
		errs = append(errs, portNumber(p.Child("port"), port.Port)...)
		errs = append(errs, oneOf(p.Child("protocol"), port.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
		if port.TargetPort.Type == intstr.String || port.TargetPort.IntVal != 0 {
			errs = append(errs, portNumberOrName(p.Child("targetPort"), port.TargetPort)...)
		}
		if port.NodePort != 0 {
			errs = append(errs, portNumber(p.Child("nodePort"), port.NodePort)...)
			errs = append(errs, nodePorts.check(p.Child("nodePort"), fmt.Sprintf("%s/%d", port.Protocol, port.NodePort))...)
		}
		errs = append(errs, numbers.check(p, fmt.Sprintf("%s/%d", port.Protocol, port.Port))...)
	}
	return errs
}

func sessionAffinity(spec *corev1.ServiceSpec, path *field.Path) field.ErrorList {
	errs := oneOf(path.Child("sessionAffinity"), spec.SessionAffinity, corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)
	if spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return errs
	}
	p := path.Child("sessionAffinityConfig", "clientIP", "timeoutSeconds")
	c := spec.SessionAffinityConfig
	if c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
		return append(errs, field.Required(p, fmt.Sprintf("when session affinity type is %s", corev1.ServiceAffinityClientIP)))
	}
	if n := *c.ClientIP.TimeoutSeconds; n <= 0 || n > 86400 {
		errs = append(errs, field.Invalid(p, n, "must be greater than 0 and less than 86400"))
	}
	return errs
}

func families(spec *corev1.ServiceSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := unique{}
	for i, f := range spec.IPFamilies {
		p := path.Child("ipFamilies").Index(i)
		errs = append(errs, oneOf(p, f, corev1.IPv4Protocol, corev1.IPv6Protocol)...)
		errs = append(errs, seen.check(p, string(f))...)
	}
	if p := spec.IPFamilyPolicy; p != nil {
		errs = append(errs, oneOf(path.Child("ipFamilyPolicy"), *p, corev1.IPFamilyPolicySingleStack, corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack)...)
	}
	return errs
}

func policies(spec *corev1.ServiceSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if p := spec.ExternalTrafficPolicy; p != "" {
		errs = append(errs, oneOf(path.Child("externalTrafficPolicy"), p, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)...)
		if spec.Type == corev1.ServiceTypeExternalName || (spec.Type == corev1.ServiceTypeClusterIP && len(spec.ExternalIPs) == 0) {
			errs = append(errs, field.Invalid(path.Child("externalTrafficPolicy"), p, "may only be set for externally-accessible services"))
		}
	}
	if p := spec.InternalTrafficPolicy; p != nil {
		errs = append(errs, oneOf(path.Child("internalTrafficPolicy"), *p, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)...)
	}
	return errs
}
