package validation

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// AnnotationIngressClass is how an Ingress named its class before it had a field.
const AnnotationIngressClass = "kubernetes.io/ingress.class"

// IngressClass checks an IngressClass.
func IngressClass(c, old *networkingv1.IngressClass) field.ErrorList {
	path := field.NewPath("spec")
	var errs field.ErrorList
	switch name := c.Spec.Controller; {
	case old != nil && old.Spec.Controller != name:
		errs = append(errs, field.Invalid(path.Child("controller"), name, immutable))
	case len(name) > 250:
		errs = append(errs, field.TooLong(path.Child("controller"), "", 250))
	default:
		errs = append(errs, utilvalidation.IsDomainPrefixedPath(path.Child("controller"), name)...)
	}
	if p := c.Spec.Parameters; p != nil {
		errs = append(errs, classParameters(p, path.Child("parameters"))...)
	}
	return errs
}

func classParameters(p *networkingv1.IngressClassParametersReference, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if p.APIGroup != nil {
		errs = append(errs, check(path.Child("apiGroup"), *p.APIGroup, utilvalidation.IsDNS1123Subdomain)...)
	}
	for name, value := range map[string]string{"kind": p.Kind, "name": p.Name} {
		if value == "" {
			errs = append(errs, field.Required(path.Child(name), name+" is required"))
		}
	}
	if p.Scope == nil {
		return append(errs, field.Required(path.Child("scope"), ""))
	}
	errs = append(errs, oneOf(path.Child("scope"), *p.Scope, networkingv1.IngressClassParametersReferenceScopeCluster, networkingv1.IngressClassParametersReferenceScopeNamespace)...)
	switch inNamespace := *p.Scope == networkingv1.IngressClassParametersReferenceScopeNamespace; {
	case inNamespace && p.Namespace == nil:
		errs = append(errs, field.Required(path.Child("namespace"), "`parameters.scope` is set to 'Namespace'"))
	case inNamespace:
		errs = append(errs, check(path.Child("namespace"), *p.Namespace, utilvalidation.IsDNS1123Label)...)
	case p.Namespace != nil:
		errs = append(errs, field.Forbidden(path.Child("namespace"), "`parameters.scope` is set to 'Cluster'"))
	}
	return errs
}

// Ingress checks an Ingress.
func Ingress(ing, old *networkingv1.Ingress) field.ErrorList {
	spec, path := &ing.Spec, field.NewPath("spec")
	var errs field.ErrorList
	if class, ok := ing.Annotations[AnnotationIngressClass]; ok && old == nil && spec.IngressClassName != nil && *spec.IngressClassName != class {
		errs = append(errs, field.Invalid(field.NewPath("annotations").Child(AnnotationIngressClass), class, "must match `ingressClassName` when both are specified"))
	}
	if len(spec.Rules) == 0 && spec.DefaultBackend == nil {
		errs = append(errs, field.Invalid(path, spec.Rules, "either `defaultBackend` or `rules` must be specified"))
	}
	if spec.DefaultBackend != nil {
		errs = append(errs, ingressBackend(spec.DefaultBackend, path.Child("defaultBackend"))...)
	}
	for i := range spec.Rules {
		errs = append(errs, ingressRule(&spec.Rules[i], path.Child("rules").Index(i))...)
	}
	for i, tls := range spec.TLS {
		p := path.Child("tls").Index(i)
		for n, host := range tls.Hosts {
			errs = append(errs, ingressHost(host, p.Child("hosts").Index(n))...)
		}
		if tls.SecretName != "" {
			errs = append(errs, check(p.Child("secretName"), tls.SecretName, utilvalidation.IsDNS1123Subdomain)...)
		}
	}
	if spec.IngressClassName != nil {
		errs = append(errs, check(path.Child("ingressClassName"), *spec.IngressClassName, utilvalidation.IsDNS1123Subdomain)...)
	}
	return errs
}

func ingressHost(host string, path *field.Path) field.ErrorList {
	if strings.Contains(host, "*") {
		return check(path, host, utilvalidation.IsWildcardDNS1123Subdomain)
	}
	return check(path, host, utilvalidation.IsDNS1123Subdomain)
}

func ingressRule(r *networkingv1.IngressRule, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if r.Host != "" {
		if _, err := netip.ParseAddr(r.Host); err == nil {
			errs = append(errs, field.Invalid(path.Child("host"), r.Host, "must be a DNS name, not an IP address"))
		}
		errs = append(errs, ingressHost(r.Host, path.Child("host"))...)
	}
	if r.HTTP == nil {
		return errs
	}
	paths := path.Child("http", "paths")
	if len(r.HTTP.Paths) == 0 {
		return append(errs, field.Required(paths, ""))
	}
	for i := range r.HTTP.Paths {
		p := &r.HTTP.Paths[i]
		errs = append(errs, ingressPath(p, paths.Index(i))...)
		errs = append(errs, ingressBackend(&p.Backend, paths.Index(i).Child("backend"))...)
	}
	return errs
}

func ingressPath(p *networkingv1.HTTPIngressPath, path *field.Path) field.ErrorList {
	if p.PathType == nil {
		return field.ErrorList{field.Required(path.Child("pathType"), "pathType must be specified")}
	}
	var errs field.ErrorList
	absolute := strings.HasPrefix(p.Path, "/")
	switch *p.PathType {
	case networkingv1.PathTypeExact, networkingv1.PathTypePrefix:
		if !absolute {
			errs = append(errs, field.Invalid(path.Child("path"), p.Path, "must be an absolute path"))
		}
		for _, bad := range []string{"//", "/./", "/../", "%2f", "%2F"} {
			if strings.Contains(p.Path, bad) {
				errs = append(errs, field.Invalid(path.Child("path"), p.Path, fmt.Sprintf("must not contain '%s'", bad)))
			}
		}
		for _, bad := range []string{"/..", "/."} {
			if strings.HasSuffix(p.Path, bad) {
				errs = append(errs, field.Invalid(path.Child("path"), p.Path, fmt.Sprintf("cannot end with '%s'", bad)))
			}
		}
	case networkingv1.PathTypeImplementationSpecific:
		if p.Path != "" && !absolute {
			errs = append(errs, field.Invalid(path.Child("path"), p.Path, "must be an absolute path"))
		}
	default:
		errs = append(errs, field.NotSupported(path.Child("pathType"), *p.PathType,
			[]networkingv1.PathType{networkingv1.PathTypeExact, networkingv1.PathTypeImplementationSpecific, networkingv1.PathTypePrefix}))
	}
	return errs
}

func ingressBackend(b *networkingv1.IngressBackend, path *field.Path) field.ErrorList {
	switch {
	case b.Resource != nil && b.Service != nil:
		return field.ErrorList{field.Invalid(path, "", "cannot set both resource and service backends")}
	case b.Resource != nil:
		var errs field.ErrorList
		for name, value := range map[string]string{"kind": b.Resource.Kind, "name": b.Resource.Name} {
			if value == "" {
				errs = append(errs, field.Required(path.Child("resource", name), name+" is required"))
			}
		}
		return errs
	case b.Service == nil:
		return field.ErrorList{field.Required(path, "service or resource backend is required")}
	}
	var errs field.ErrorList
	if b.Service.Name == "" {
		errs = append(errs, field.Required(path.Child("service", "name"), ""))
	} else {
		errs = append(errs, check(path.Child("service", "name"), b.Service.Name, func(s string) []string { return apivalidation.NameIsDNS1035Label(s, false) })...)
	}
	port := path.Child("service", "port")
	switch name, number := b.Service.Port.Name, b.Service.Port.Number; {
	case name != "" && number != 0:
		errs = append(errs, field.Invalid(path, "", "cannot set both port name & port number"))
	case name != "":
		errs = append(errs, check(port.Child("name"), name, utilvalidation.IsValidPortName)...)
	case number != 0:
		errs = append(errs, portNumber(port.Child("number"), number)...)
	default:
		errs = append(errs, field.Required(path, "port name or number is required"))
	}
	return errs
}

// NetworkPolicy checks a NetworkPolicy.
func NetworkPolicy(p, _ *networkingv1.NetworkPolicy) field.ErrorList {
	spec, path := &p.Spec, field.NewPath("spec")
	errs := metavalidation.ValidateLabelSelector(&spec.PodSelector, metavalidation.LabelSelectorValidationOptions{}, path.Child("podSelector"))
	for i, r := range spec.Ingress {
		errs = append(errs, policyRule(r.Ports, r.From, path.Child("ingress").Index(i), "from")...)
	}
	for i, r := range spec.Egress {
		errs = append(errs, policyRule(r.Ports, r.To, path.Child("egress").Index(i), "to")...)
	}
	if len(spec.PolicyTypes) > 2 {
		return append(errs, field.Invalid(path.Child("policyTypes"), spec.PolicyTypes, "may not specify more than two policyTypes"))
	}
	for i, t := range spec.PolicyTypes {
		errs = append(errs, oneOf(path.Child("policyTypes").Index(i), t, networkingv1.PolicyTypeEgress, networkingv1.PolicyTypeIngress)...)
	}
	return errs
}

func policyRule(ports []networkingv1.NetworkPolicyPort, peers []networkingv1.NetworkPolicyPeer, path *field.Path, side string) field.ErrorList {
	var errs field.ErrorList
	for i := range ports {
		errs = append(errs, policyPort(&ports[i], path.Child("ports").Index(i))...)
	}
	for i := range peers {
		errs = append(errs, policyPeer(&peers[i], path.Child(side).Index(i))...)
	}
	return errs
}

func policyPort(p *networkingv1.NetworkPolicyPort, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if p.Protocol != nil {
		errs = append(errs, oneOf(path.Child("protocol"), *p.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
	}
	if p.Port != nil {
		errs = append(errs, portNumberOrName(path.Child("port"), *p.Port)...)
	}
	if p.EndPort == nil {
		return errs
	}
	end := path.Child("endPort")
	switch {
	case p.Port == nil:
		errs = append(errs, field.Invalid(end, *p.EndPort, "must not be specified when `port` is not specified"))
	case p.Port.Type != intstr.Int:
		errs = append(errs, field.Invalid(end, *p.EndPort, "must not be specified when `port` is non-numeric"))
	case *p.EndPort < p.Port.IntVal:
		errs = append(errs, field.Invalid(end, *p.EndPort, "must be greater than or equal to `port`"))
	}
	return append(errs, portNumber(end, *p.EndPort)...)
}

func policyPeer(p *networkingv1.NetworkPolicyPeer, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	options := metavalidation.LabelSelectorValidationOptions{}
	if p.PodSelector != nil {
		errs = append(errs, metavalidation.ValidateLabelSelector(p.PodSelector, options, path.Child("podSelector"))...)
	}
	if p.NamespaceSelector != nil {
		errs = append(errs, metavalidation.ValidateLabelSelector(p.NamespaceSelector, options, path.Child("namespaceSelector"))...)
	}
	if p.IPBlock != nil {
		errs = append(errs, ipBlock(p.IPBlock, path.Child("ipBlock"))...)
	}
	selectors := p.PodSelector != nil || p.NamespaceSelector != nil
	switch {
	case !selectors && p.IPBlock == nil:
		errs = append(errs, field.Required(path, "must specify a peer"))
	case selectors && p.IPBlock != nil:
		errs = append(errs, field.Forbidden(path, "may not specify both ipBlock and another peer"))
	}
	return errs
}

func ipBlock(b *networkingv1.IPBlock, path *field.Path) field.ErrorList {
	if b.CIDR == "" {
		return field.ErrorList{field.Required(path.Child("cidr"), "")}
	}
	cidr, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return field.ErrorList{field.Invalid(path.Child("cidr"), b.CIDR, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")}
	}
	var errs field.ErrorList
	for i, text := range b.Except {
		p := path.Child("except").Index(i)
		except, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			errs = append(errs, field.Invalid(p, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"))
		case !cidr.Masked().Contains(except.Masked().Addr()) || except.Bits() <= cidr.Bits():
			errs = append(errs, field.Invalid(p, text, "must be a strict subset of `cidr`"))
		}
	}
	return errs
}
