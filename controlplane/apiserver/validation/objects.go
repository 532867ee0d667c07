package validation

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// maxData bounds the data of a ConfigMap or Secret.
const maxData = 1 << 20

// Node checks a Node: its taints, and what may be set once only.
func Node(n, old *corev1.Node) field.ErrorList {
	path := field.NewPath("spec")
	var errs field.ErrorList
	seen := unique{}
	for i, t := range n.Spec.Taints {
		p := path.Child("taints").Index(i)
		errs = append(errs, metavalidation.ValidateLabelName(t.Key, p.Child("key"))...)
		errs = append(errs, check(p.Child("value"), t.Value, utilvalidation.IsValidLabelValue)...)
		errs = append(errs, oneOf(p.Child("effect"), t.Effect, corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)...)
		errs = append(errs, seen.check(p, t.Key+":"+string(t.Effect))...)
	}
	if n.Spec.PodCIDR != "" {
		if _, err := netip.ParsePrefix(n.Spec.PodCIDR); err != nil {
			errs = append(errs, field.Invalid(path.Child("podCIDR"), n.Spec.PodCIDR, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"))
		}
	}
	errs = append(errs, podCIDRs(n.Spec.PodCIDRs, path.Child("podCIDRs"))...)
	if old == nil {
		return errs
	}
	if old.Spec.PodCIDR != "" && (n.Spec.PodCIDR != old.Spec.PodCIDR || len(old.Spec.PodCIDRs) > 1 && !slices.Equal(n.Spec.PodCIDRs, old.Spec.PodCIDRs)) {
		errs = append(errs, field.Forbidden(path.Child("podCIDRs"), "node updates may not change podCIDR except from \"\" to valid"))
	}
	if old.Spec.ProviderID != "" && n.Spec.ProviderID != old.Spec.ProviderID {
		errs = append(errs, field.Forbidden(path.Child("providerID"), "node updates may not change providerID except from \"\" to valid"))
	}
	return errs
}

// podCIDRs: at most one of each family.
func podCIDRs(list []string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := map[bool]bool{}
	for i, text := range list {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			errs = append(errs, field.Invalid(path.Index(i), text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"))
			continue
		}
		if seen[p.Addr().Is6()] {
			errs = append(errs, field.Invalid(path, list, "may specify no more than one CIDR for each IP family"))
		}
		seen[p.Addr().Is6()] = true
	}
	return errs
}

// ConfigMap checks keys, sizes and immutability.
func ConfigMap(c, old *corev1.ConfigMap) field.ErrorList {
	var errs field.ErrorList
	size := 0
	for _, k := range slices.Sorted(maps.Keys(c.Data)) {
		errs = append(errs, check(field.NewPath("data").Key(k), k, utilvalidation.IsConfigMapKey)...)
		if _, ok := c.BinaryData[k]; ok {
			errs = append(errs, field.Invalid(field.NewPath("data").Key(k), k, "duplicate of key present in binaryData"))
		}
		size += len(c.Data[k])
	}
	for _, k := range slices.Sorted(maps.Keys(c.BinaryData)) {
		errs = append(errs, check(field.NewPath("binaryData").Key(k), k, utilvalidation.IsConfigMapKey)...)
		size += len(c.BinaryData[k])
	}
	if size > maxData {
		errs = append(errs, field.TooLong(field.NewPath(""), "", maxData))
	}
	if old == nil || old.Immutable == nil || !*old.Immutable {
		return errs
	}
	errs = append(errs, unsealed(c.Immutable)...)
	if !same(c.Data, old.Data) {
		errs = append(errs, field.Forbidden(field.NewPath("data"), "field is immutable when `immutable` is set"))
	}
	if !same(c.BinaryData, old.BinaryData) {
		errs = append(errs, field.Forbidden(field.NewPath("binaryData"), "field is immutable when `immutable` is set"))
	}
	return errs
}

func unsealed(v *bool) field.ErrorList {
	if v == nil || !*v {
		return field.ErrorList{field.Forbidden(field.NewPath("immutable"), "field is immutable when `immutable` is set")}
	}
	return nil
}

// secretKeys are the keys that the well-known types of Secret must have ("Types of
// Secret" in Kubernetes' Secrets page).
var secretKeys = map[corev1.SecretType][]string{
	corev1.SecretTypeDockercfg:        {corev1.DockerConfigKey},
	corev1.SecretTypeDockerConfigJson: {corev1.DockerConfigJsonKey},
	corev1.SecretTypeSSHAuth:          {corev1.SSHAuthPrivateKey},
	corev1.SecretTypeTLS:              {corev1.TLSCertKey, corev1.TLSPrivateKeyKey},
}

// Secret checks keys, sizes, the keys its type needs, and immutability.
func Secret(s, old *corev1.Secret) field.ErrorList {
	var errs field.ErrorList
	size := 0
	data := field.NewPath("data")
	for _, k := range slices.Sorted(maps.Keys(s.Data)) {
		errs = append(errs, check(data.Key(k), k, utilvalidation.IsConfigMapKey)...)
		size += len(s.Data[k])
	}
	if size > maxData {
		errs = append(errs, field.TooLong(data, "", maxData))
	}
	for _, k := range secretKeys[s.Type] {
		if _, ok := s.Data[k]; !ok {
			errs = append(errs, field.Required(data.Key(k), ""))
		}
	}
	if s.Type == corev1.SecretTypeBasicAuth && s.Data[corev1.BasicAuthUsernameKey] == nil && s.Data[corev1.BasicAuthPasswordKey] == nil {
		errs = append(errs, field.Required(data.Key(corev1.BasicAuthUsernameKey), ""), field.Required(data.Key(corev1.BasicAuthPasswordKey), ""))
	}
	if old == nil {
		return errs
	}
	errs = append(errs, apivalidation.ValidateImmutableField(s.Type, old.Type, field.NewPath("type"))...)
	if old.Immutable != nil && *old.Immutable {
		errs = append(errs, unsealed(s.Immutable)...)
		if !same(s.Data, old.Data) {
			errs = append(errs, field.Forbidden(data, "field is immutable when `immutable` is set"))
		}
	}
	return errs
}

// Endpoints checks addresses and ports.
func Endpoints(e, _ *corev1.Endpoints) field.ErrorList {
	var errs field.ErrorList
	for i := range e.Subsets {
		s, p := &e.Subsets[i], field.NewPath("subsets").Index(i)
		if len(s.Addresses)+len(s.NotReadyAddresses) == 0 {
			errs = append(errs, field.Required(p, "must specify `addresses` or `notReadyAddresses`"))
		}
		for j, a := range s.Addresses {
			errs = append(errs, endpointIP(p.Child("addresses").Index(j).Child("ip"), e, a.IP)...)
		}
		for j, a := range s.NotReadyAddresses {
			errs = append(errs, endpointIP(p.Child("notReadyAddresses").Index(j).Child("ip"), e, a.IP)...)
		}
		for j, port := range s.Ports {
			q := p.Child("ports").Index(j)
			if len(s.Ports) > 1 && port.Name == "" {
				errs = append(errs, field.Required(q.Child("name"), ""))
			}
			errs = append(errs, portNumber(q.Child("port"), port.Port)...)
		}
	}
	return errs
}

// endpointIP refuses addresses that would lead back to the node that asks. The API
// server alone may be on its machine's loopback.
func endpointIP(p *field.Path, of metav1.Object, ip string) field.ErrorList {
	errs := utilvalidation.IsValidIP(p, ip)
	if of.GetNamespace() == metav1.NamespaceDefault && of.GetName() == "kubernetes" {
		return errs
	}
	return append(errs, nonSpecialIP(p, ip)...)
}

// EndpointSlice checks addresses, ports and that the address type stays.
func EndpointSlice(s, old *discoveryv1.EndpointSlice) field.ErrorList {
	errs := oneOf(field.NewPath("addressType"), s.AddressType, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN)
	if len(s.Endpoints) > 1000 {
		errs = append(errs, field.TooMany(field.NewPath("endpoints"), len(s.Endpoints), 1000))
	}
	for i := range s.Endpoints {
		p := field.NewPath("endpoints").Index(i).Child("addresses")
		if len(s.Endpoints[i].Addresses) == 0 {
			errs = append(errs, field.Required(p, "must contain at least 1 address"))
		}
		for j, a := range s.Endpoints[i].Addresses {
			errs = append(errs, sliceAddress(s, a, p.Index(j))...)
		}
	}
	names := unique{}
	for i, port := range s.Ports {
		p := field.NewPath("ports").Index(i)
		if port.Name != nil {
			if *port.Name != "" {
				errs = append(errs, check(p.Child("name"), *port.Name, utilvalidation.IsDNS1123Label)...)
			}
			errs = append(errs, names.check(p.Child("name"), *port.Name)...)
		}
		if port.Protocol == nil {
			errs = append(errs, field.Required(p.Child("protocol"), ""))
		} else {
			errs = append(errs, oneOf(p.Child("protocol"), *port.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
		}
	}
	if old != nil {
		errs = append(errs, apivalidation.ValidateImmutableField(s.AddressType, old.AddressType, field.NewPath("addressType"))...)
	}
	return errs
}

func sliceAddress(s *discoveryv1.EndpointSlice, a string, p *field.Path) field.ErrorList {
	t := s.AddressType
	if t == discoveryv1.AddressTypeFQDN {
		return check(p, a, utilvalidation.IsDNS1123Subdomain)
	}
	ip, err := netip.ParseAddr(a)
	if err != nil || (t == discoveryv1.AddressTypeIPv4) != ip.Is4() {
		return field.ErrorList{field.Invalid(p, a, fmt.Sprintf("must be an %s address", t))}
	}
	return endpointIP(p, s, a)
}

// Lease checks the numbers of a Lease.
func Lease(l, _ *coordinationv1.Lease) field.ErrorList {
	var errs field.ErrorList
	path := field.NewPath("spec")
	if d := l.Spec.LeaseDurationSeconds; d != nil && *d <= 0 {
		errs = append(errs, field.Invalid(path.Child("leaseDurationSeconds"), *d, "must be greater than 0"))
	}
	if n := l.Spec.LeaseTransitions; n != nil {
		errs = append(errs, nonNegative(path.Child("leaseTransitions"), *n)...)
	}
	return errs
}

// Event checks that an Event is in the namespace of what it is about.
func Event(e, _ *corev1.Event) field.ErrorList {
	about := e.InvolvedObject.Namespace
	if e.Namespace == about || (about == "" && (e.Namespace == metav1.NamespaceDefault || e.Namespace == metav1.NamespaceSystem)) {
		return nil
	}
	return field.ErrorList{field.Invalid(field.NewPath("involvedObject", "namespace"), about, "does not match event.namespace")}
}
