package apiserver

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"
)

const (
	v4 = corev1.IPv4Protocol
	v6 = corev1.IPv6Protocol
)

func serviceSpec(t interface{ Fatal(...any) }, text string) *corev1.Service {
	s := &corev1.Service{}
	if err := yaml.UnmarshalStrict([]byte("spec: "+text), s); err != nil {
		t.Fatal(err)
	}
	if s.Spec.Type == "" {
		s.Spec.Type = corev1.ServiceTypeClusterIP
	}
	return s
}

// TestServiceFamilies follows the page "IPv4/IPv6 dual-stack", section "Services".
func TestServiceFamilies(t *testing.T) {
	both, reverse, one, six := []corev1.IPFamily{v4, v6}, []corev1.IPFamily{v6, v4}, []corev1.IPFamily{v4}, []corev1.IPFamily{v6}
	const dual = "{ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6], clusterIP: 10.43.0.5, clusterIPs: [10.43.0.5, 'fd00:43::5']}"
	const single = "{ipFamilyPolicy: SingleStack, ipFamilies: [IPv4], clusterIP: 10.43.0.5, clusterIPs: [10.43.0.5]}"
	for _, x := range []struct {
		cluster        []corev1.IPFamily
		old, now, want string
	}{
		// one family
		{one, "", "{}", "SingleStack [IPv4]"},
		{six, "", "{}", "SingleStack [IPv6]"},
		{one, "", "{ipFamilyPolicy: PreferDualStack}", "PreferDualStack [IPv4]"},
		{one, "", "{ipFamilyPolicy: RequireDualStack}", "spec.ipFamilyPolicy: this cluster is not configured for dual-stack services"},
		{one, "", "{ipFamilies: [IPv6]}", "spec.ipFamilies[0]: not configured on this cluster"},
		{one, "", "{clusterIP: None}", "SingleStack [IPv4]"},
		{one, "", "{clusterIP: None, ipFamilies: [IPv6]}", "SingleStack [IPv6]"},
		{one, "", "{clusterIP: None, ipFamilyPolicy: RequireDualStack}", "RequireDualStack [IPv4 IPv6]"},
		{one, "", "{clusterIP: None, selector: {a: b}, ipFamilies: [IPv6]}", "spec.ipFamilies[0]: not configured on this cluster"},
		{one, "", "{clusterIP: 'fd00:43::5', clusterIPs: ['fd00:43::5']}", "spec.clusterIPs[0]: IPv6 is not configured on this cluster"},
		// both
		{both, "", "{}", "SingleStack [IPv4]"},
		{reverse, "", "{}", "SingleStack [IPv6]"},
		{both, "", "{ipFamilyPolicy: PreferDualStack}", "PreferDualStack [IPv4 IPv6]"},
		{reverse, "", "{ipFamilyPolicy: RequireDualStack}", "RequireDualStack [IPv6 IPv4]"},
		{both, "", "{ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv6]}", "PreferDualStack [IPv6 IPv4]"},
		{both, "", "{ipFamilies: [IPv6]}", "SingleStack [IPv6]"},
		{both, "", "{ipFamilies: [IPv6, IPv4]}", "RequireDualStack [IPv6 IPv4]"},
		{both, "", "{ipFamilyPolicy: SingleStack, ipFamilies: [IPv4, IPv6]}", "spec.ipFamilyPolicy: must be RequireDualStack or PreferDualStack when multiple IP families are specified"},
		{both, "", "{clusterIP: None}", "RequireDualStack [IPv4 IPv6]"},
		{both, "", "{clusterIP: None, selector: {a: b}}", "SingleStack [IPv4]"},
		{both, "", "{clusterIP: None, selector: {a: b}, ipFamilyPolicy: PreferDualStack}", "PreferDualStack [IPv4 IPv6]"},
		{both, "", "{clusterIP: 'fd00:43::5', clusterIPs: ['fd00:43::5']}", "SingleStack [IPv6]"},
		{both, "", "{clusterIP: 'fd00:43::5', clusterIPs: ['fd00:43::5', 10.43.0.5]}", "RequireDualStack [IPv6 IPv4]"},
		{both, "", "{clusterIP: 10.43.0.5, clusterIPs: [10.43.0.5, 10.43.0.6]}", "spec.clusterIPs: may specify no more than one IP for each IP family"},
		{both, "", "{ipFamilies: [IPv6], clusterIP: 10.43.0.5, clusterIPs: [10.43.0.5]}", "spec.clusterIPs[0]: expected an IPv6 value as indicated by `ipFamilies[0]`"},
		{both, "", "{type: ExternalName}", " []"},
		// changes
		{both, single, "{ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv4], clusterIP: 10.43.0.5, clusterIPs: [10.43.0.5]}", "PreferDualStack [IPv4 IPv6]"},
		{both, dual, "{ipFamilyPolicy: SingleStack, ipFamilies: [IPv4, IPv6], clusterIP: 10.43.0.5, clusterIPs: [10.43.0.5, 'fd00:43::5']}", "SingleStack [IPv4] [10.43.0.5]"},
		{both, dual, "{ipFamilyPolicy: SingleStack, ipFamilies: [IPv4], clusterIP: 10.43.0.5, clusterIPs: [10.43.0.5]}", "SingleStack [IPv4] [10.43.0.5]"},
		{both, dual, dual, "RequireDualStack [IPv4 IPv6] [10.43.0.5 fd00:43::5]"},
		{both, dual, "{}", "RequireDualStack [IPv4 IPv6] [10.43.0.5 fd00:43::5]"},
		{both, dual, "{ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6], clusterIP: 10.43.0.5, clusterIPs: [10.43.0.5]}", "spec.clusterIPs[1]: secondary clusterIP can only be unset if the ipFamilyPolicy is set to SingleStack"},
		{both, dual, "{ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6], clusterIP: 10.43.0.5, clusterIPs: [10.43.0.5, 'fd00:43::6']}", "spec.clusterIPs[1]: may not change once set"},
		{both, dual, "{ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6], clusterIP: 10.43.0.6, clusterIPs: [10.43.0.5, 'fd00:43::5']}", "spec.clusterIPs[0]: may not change once set"},
		{both, dual, "{ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6, IPv4], clusterIP: 10.43.0.5, clusterIPs: [10.43.0.5, 'fd00:43::5']}", "spec.clusterIPs[0]: expected an IPv6"},
		{both, single, "{ipFamilies: [IPv6]}", "spec.clusterIPs[0]: expected an IPv6"},
		{both, "{clusterIP: None, clusterIPs: [None], selector: {a: b}, ipFamilyPolicy: SingleStack, ipFamilies: [IPv4]}",
			"{clusterIP: None, clusterIPs: [None], selector: {a: b}, ipFamilyPolicy: SingleStack, ipFamilies: [IPv6]}", "spec.ipFamilies[0]: may not change once set"},
		{both, dual, "{type: ExternalName}", " []"},
		{both, "{type: ExternalName, externalName: a.b}", "{ipFamilies: [IPv6]}", "SingleStack [IPv6]"},
	} {
		svc, old := serviceSpec(t, x.now), &corev1.Service{}
		if x.old != "" {
			old = serviceSpec(t, x.old)
			keepAllocated(svc, old)
		}
		errs := setFamilies(svc, old, x.cluster)
		got := ""
		switch {
		case len(errs) > 0:
			got = errs[0].Field + ": " + errs[0].Detail
		default:
			if p := svc.Spec.IPFamilyPolicy; p != nil {
				got = string(*p)
			}
			got += fmt.Sprint(" ", svc.Spec.IPFamilies)
			if strings.HasSuffix(x.want, "]") && strings.Count(x.want, "[") == 2 {
				got += fmt.Sprint(" ", svc.Spec.ClusterIPs)
			}
		}
		if got != x.want && !(len(errs) > 0 && strings.HasPrefix(got, x.want)) {
			t.Errorf("%v, %s to %s:\n%s, want\n%s", x.cluster, x.old, x.now, got, x.want)
		}
	}
}

// TestServiceFamiliesHold: whatever is asked for and changed, a service that is taken has
// as many families as its policy says, those of the cluster, and keeps its first one.
func TestServiceFamiliesHold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cluster := rapid.SampledFrom([][]corev1.IPFamily{{v4}, {v6}, {v4, v6}, {v6, v4}}).Draw(t, "cluster")
		old := &corev1.Service{}
		for range rapid.IntRange(1, 5).Draw(t, "writes") {
			svc := old.DeepCopy()
			svc.Spec.Type, svc.Spec.Selector = corev1.ServiceTypeClusterIP, map[string]string{"a": "b"}
			if rapid.Bool().Draw(t, "policy") {
				p := rapid.SampledFrom([]corev1.IPFamilyPolicy{corev1.IPFamilyPolicySingleStack, corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack}).Draw(t, "which")
				svc.Spec.IPFamilyPolicy = &p
			}
			if rapid.Bool().Draw(t, "families") {
				svc.Spec.IPFamilies = rapid.SampledFrom([][]corev1.IPFamily{nil, {v4}, {v6}, {v4, v6}, {v6, v4}}).Draw(t, "which")
			}
			keepAllocated(svc, old)
			if len(setFamilies(svc, old, cluster)) > 0 {
				continue
			}
			n, policy := len(svc.Spec.IPFamilies), *svc.Spec.IPFamilyPolicy
			want := map[corev1.IPFamilyPolicy]int{corev1.IPFamilyPolicySingleStack: 1, corev1.IPFamilyPolicyPreferDualStack: len(cluster), corev1.IPFamilyPolicyRequireDualStack: 2}[policy]
			if n != want || n == 2 && svc.Spec.IPFamilies[0] == svc.Spec.IPFamilies[1] {
				t.Fatalf("%s: %v of %v", policy, svc.Spec.IPFamilies, cluster)
			}
			for _, f := range svc.Spec.IPFamilies {
				if !slices.Contains(cluster, f) {
					t.Fatalf("%s is none of %v", f, cluster)
				}
			}
			if len(old.Spec.IPFamilies) > 0 && old.Spec.IPFamilies[0] != svc.Spec.IPFamilies[0] {
				t.Fatalf("%v became %v", old.Spec.IPFamilies, svc.Spec.IPFamilies)
			}
			old = svc
		}
	})
}
