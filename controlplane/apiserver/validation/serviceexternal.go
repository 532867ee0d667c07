package validation

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const onlyLoadBalancer = "may only be used when `type` is 'LoadBalancer'"

// external checks what leads to a service from outside of the cluster.
func external(spec *corev1.ServiceSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if spec.Type == corev1.ServiceTypeClusterIP {
		for i, port := range spec.Ports {
			if port.NodePort != 0 {
				errs = append(errs, field.Forbidden(path.Child("ports").Index(i).Child("nodePort"), "may not be used when `type` is 'ClusterIP'"))
			}
		}
	}
	for i, ip := range spec.ExternalIPs {
		p := path.Child("externalIPs").Index(i)
		errs = append(errs, utilvalidation.IsValidIP(p, ip)...)
		errs = append(errs, nonSpecialIP(p, ip)...)
	}
	if spec.HealthCheckNodePort != 0 {
		p := path.Child("healthCheckNodePort")
		errs = append(errs, portNumber(p, spec.HealthCheckNodePort)...)
		if spec.Type != corev1.ServiceTypeLoadBalancer || spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
			errs = append(errs, field.Invalid(p, spec.HealthCheckNodePort, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"))
		}
	}
	if d := spec.TrafficDistribution; d != nil {
		errs = append(errs, oneOf(path.Child("trafficDistribution"), *d, corev1.ServiceTrafficDistributionPreferClose,
			corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)...)
	}
	return append(errs, loadBalancer(spec, path)...)
}

func loadBalancer(spec *corev1.ServiceSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	is := spec.Type == corev1.ServiceTypeLoadBalancer
	if len(spec.LoadBalancerSourceRanges) > 0 {
		p := path.Child("loadBalancerSourceRanges")
		if !is {
			errs = append(errs, field.Forbidden(p, onlyLoadBalancer))
		}
		for i, r := range spec.LoadBalancerSourceRanges {
			if _, err := netip.ParsePrefix(strings.TrimSpace(r)); err != nil {
				errs = append(errs, field.Invalid(p.Index(i), r, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"))
			}
		}
	}
	switch p := path.Child("allocateLoadBalancerNodePorts"); {
	case is && spec.AllocateLoadBalancerNodePorts == nil:
		errs = append(errs, field.Required(p, ""))
	case !is && spec.AllocateLoadBalancerNodePorts != nil:
		errs = append(errs, field.Forbidden(p, onlyLoadBalancer))
	}
	if spec.LoadBalancerClass != nil {
		p := path.Child("loadBalancerClass")
		if !is {
			errs = append(errs, field.Forbidden(p, onlyLoadBalancer))
		}
		errs = append(errs, check(p, *spec.LoadBalancerClass, utilvalidation.IsQualifiedName)...)
	}
	return errs
}

// sameClass: who implements a load balancer does not change.
func sameClass(spec, old *corev1.ServiceSpec, path *field.Path) field.ErrorList {
	if spec.Type != corev1.ServiceTypeLoadBalancer || old.Type != corev1.ServiceTypeLoadBalancer {
		return nil
	}
	errs := apivalidation.ValidateImmutableField(spec.LoadBalancerClass, old.LoadBalancerClass, path.Child("loadBalancerClass"))
	for _, e := range errs {
		e.Detail = "may not change once set"
	}
	return errs
}

// nonSpecialIP refuses addresses that mean something else on every machine.
func nonSpecialIP(path *field.Path, text string) field.ErrorList {
	ip, err := netip.ParseAddr(text)
	if err != nil {
		return nil // said already
	}
	ip = ip.Unmap()
	for _, c := range []struct {
		is     bool
		detail string
	}{
		{ip.IsUnspecified(), "may not be unspecified (0.0.0.0 or ::)"},
		{ip.IsLoopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)"},
		{ip.IsLinkLocalUnicast(), "may not be in the link-local range (169.254.0.0/16, fe80::/10)"},
		{ip.IsLinkLocalMulticast(), "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"},
	} {
		if c.is {
			return field.ErrorList{field.Invalid(path, text, c.detail)}
		}
	}
	return nil
}

// ServiceStatus checks what says where a load balancer is.
func ServiceStatus(s, old *corev1.Service) field.ErrorList {
	path := field.NewPath("status", "loadBalancer", "ingress")
	ingress := s.Status.LoadBalancer.Ingress
	var errs field.ErrorList
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer && len(ingress) > 0 && !slices.EqualFunc(ingress, old.Status.LoadBalancer.Ingress, sameIngress) {
		errs = append(errs, field.Forbidden(path, "may only be used when `spec.type` is \"LoadBalancer\""))
	}
	for i, in := range ingress {
		p := path.Index(i)
		if in.IP != "" {
			errs = append(errs, utilvalidation.IsValidIP(p.Child("ip"), in.IP)...)
			if in.IPMode == nil {
				errs = append(errs, field.Required(p.Child("ipMode"), "must be specified when `ip` is set"))
			}
		}
		if in.IPMode != nil {
			if in.IP == "" {
				errs = append(errs, field.Forbidden(p.Child("ipMode"), "may not be specified when `ip` is not set"))
			}
			errs = append(errs, oneOf(p.Child("ipMode"), *in.IPMode, corev1.LoadBalancerIPModeVIP, corev1.LoadBalancerIPModeProxy)...)
		}
		if in.Hostname != "" {
			errs = append(errs, check(p.Child("hostname"), in.Hostname, utilvalidation.IsDNS1123Subdomain)...)
			if _, err := netip.ParseAddr(in.Hostname); err == nil {
				errs = append(errs, field.Invalid(p.Child("hostname"), in.Hostname, "must be a DNS name, not an IP address"))
			}
		}
	}
	return errs
}

func sameIngress(a, b corev1.LoadBalancerIngress) bool {
	return a.IP == b.IP && a.Hostname == b.Hostname
}
