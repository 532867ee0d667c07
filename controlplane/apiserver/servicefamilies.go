package apiserver

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"
)

// setFamilies decides which families of addresses a service has, as the page "IPv4/IPv6
// dual-stack" says: by ipFamilyPolicy and ipFamilies, or by the addresses that it asks
// for, or as the cluster's first family, and says what of that cannot be. old is empty
// when the service is made; cluster are the families that there are.
func setFamilies(svc, old *corev1.Service, cluster []corev1.IPFamily) field.ErrorList {
	spec := &svc.Spec
	if spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	if old.Spec.Type == corev1.ServiceTypeExternalName {
		old = &corev1.Service{}
	}
	downgrade(spec, &old.Spec)
	errs := inferFamilies(spec, cluster)
	// Whose endpoints are made by hand may be of families that pods do not have.
	byHand := spec.ClusterIP == corev1.ClusterIPNone && len(spec.Selector) == 0
	if spec.IPFamilyPolicy == nil {
		both := len(spec.IPFamilies) > 1 || byHand && len(spec.IPFamilies) == 0 && len(cluster) > 1
		spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicySingleStack)
		if both {
			spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyRequireDualStack)
		}
	}
	path := field.NewPath("spec", "ipFamilyPolicy")
	switch policy := *spec.IPFamilyPolicy; {
	case policy == corev1.IPFamilyPolicySingleStack && len(spec.IPFamilies) > 1:
		errs = append(errs, field.Invalid(path, policy, "must be RequireDualStack or PreferDualStack when multiple IP families are specified"))
	case policy == corev1.IPFamilyPolicyRequireDualStack && len(cluster) == 1 && !byHand:
		errs = append(errs, field.Invalid(path, policy, "this cluster is not configured for dual-stack services"))
	}
	for i, f := range spec.IPFamilies {
		if !slices.Contains(cluster, f) && !byHand {
			errs = append(errs, field.Invalid(field.NewPath("spec", "ipFamilies").Index(i), f, "not configured on this cluster"))
		}
	}
	if len(errs) > 0 {
		return errs
	}
	if len(spec.IPFamilies) == 0 {
		spec.IPFamilies = []corev1.IPFamily{cluster[0]}
	}
	if *spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack && len(spec.IPFamilies) == 1 && (len(cluster) > 1 || byHand) {
		spec.IPFamilies = append(spec.IPFamilies, otherFamily(spec.IPFamilies[0]))
	}
	return sameFamilies(spec, &old.Spec)
}

func otherFamily(f corev1.IPFamily) corev1.IPFamily {
	if f == corev1.IPv4Protocol {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

// downgrade takes the second family from a service that wants only one from now on, as
// far as the client left the fields as they were.
func downgrade(spec, old *corev1.ServiceSpec) {
	if ptr.Deref(spec.IPFamilyPolicy, "") != corev1.IPFamilyPolicySingleStack || len(old.IPFamilies) < 2 {
		return
	}
	if slices.Equal(spec.IPFamilies, old.IPFamilies) {
		spec.IPFamilies = spec.IPFamilies[:1]
	}
	if slices.Equal(spec.ClusterIPs, old.ClusterIPs) && len(spec.ClusterIPs) > 1 {
		spec.ClusterIPs = spec.ClusterIPs[:1]
	}
}

// inferFamilies adds the families of the addresses that a service asks for.
func inferFamilies(spec *corev1.ServiceSpec, cluster []corev1.IPFamily) field.ErrorList {
	var errs field.ErrorList
	path := field.NewPath("spec", "clusterIPs")
	if len(spec.ClusterIPs) > 2 || len(spec.IPFamilies) > 2 {
		return nil // refused with the rest of the service
	}
	for i, text := range spec.ClusterIPs {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			break // None, or refused later
		}
		f := familyOf(ip)
		switch {
		case i < len(spec.IPFamilies):
			if spec.IPFamilies[i] != f {
				errs = append(errs, field.Invalid(path.Index(i), text, fmt.Sprintf("expected an %s value as indicated by `ipFamilies[%d]`", spec.IPFamilies[i], i)))
			}
		case slices.Contains(spec.IPFamilies, f):
			errs = append(errs, field.Invalid(path, spec.ClusterIPs, "may specify no more than one IP for each IP family"))
		case !slices.Contains(cluster, f):
			errs = append(errs, field.Invalid(path.Index(i), text, fmt.Sprintf("%s is not configured on this cluster", f)))
		default:
			spec.IPFamilies = append(spec.IPFamilies, f)
		}
	}
	return errs
}

// sameFamilies: what a service has of addresses and families stays, but for the second
// ones.
func sameFamilies(spec, old *corev1.ServiceSpec) field.ErrorList {
	var errs field.ErrorList
	if len(old.IPFamilies) > 0 && spec.IPFamilies[0] != old.IPFamilies[0] {
		errs = append(errs, field.Invalid(field.NewPath("spec", "ipFamilies").Index(0), spec.IPFamilies, "may not change once set"))
	}
	path := field.NewPath("spec", "clusterIPs")
	was := old.ClusterIPs
	if len(was) == 0 && old.ClusterIP != "" {
		was = []string{old.ClusterIP}
	}
	for i, ip := range was {
		switch {
		case i < len(spec.ClusterIPs) && spec.ClusterIPs[i] != ip:
			errs = append(errs, field.Invalid(path.Index(i), spec.ClusterIPs, "may not change once set"))
		case i >= len(spec.ClusterIPs) && i < len(spec.IPFamilies):
			errs = append(errs, field.Invalid(path.Index(i), spec.ClusterIPs, "secondary clusterIP can only be unset if the ipFamilyPolicy is set to SingleStack"))
		}
	}
	return errs
}
