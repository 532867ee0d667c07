package validation

import "testing"

// TestGatedPods: where a pod with gates can run may be narrowed.
func TestGatedPods(t *testing.T) {
	gated := func(fields string) string {
		return "{metadata: {name: p}, spec: {schedulingGates: [{name: g}], containers: [{name: c, image: i}], " + fields + "}}"
	}
	required := func(terms string) string {
		return "affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [" + terms + "]}}}"
	}
	const (
		ssd   = "{key: disk, operator: In, values: [ssd]}"
		zone  = "{key: zone, operator: Exists}"
		terms = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
	)
	for _, c := range []struct {
		name, old, now string
		want           []string
	}{
		{"more of the selector", "nodeSelector: {a: b}", "nodeSelector: {a: b, c: d}", nil},
		{"another selector", "nodeSelector: {a: b}", "nodeSelector: {a: x, c: d}", []string{"spec.nodeSelector: Invalid value"}},
		{"an invalid selector", "", "nodeSelector: {'-': b}", []string{"spec.nodeSelector: Invalid value"}},
		{"affinity where there was none", "", required("{matchExpressions: [" + ssd + "]}"), nil},
		{"invalid affinity", "", required(""), []string{terms + ": Required value"}},
		{"more of a term", required("{matchExpressions: [" + ssd + "]}"), required("{matchExpressions: [" + zone + ", " + ssd + "]}"), nil},
		{"less of a term", required("{matchExpressions: [" + ssd + ", " + zone + "]}"), required("{matchExpressions: [" + zone + "]}"), []string{terms + "[0]: Invalid value"}},
		{"one more term", required("{matchExpressions: [" + ssd + "]}"), required("{matchExpressions: [" + ssd + "]}, {matchExpressions: [" + zone + "]}"), []string{terms + ": Invalid value"}},
		{"no affinity any more", required("{matchExpressions: [" + ssd + "]}"), "", []string{terms + ": Invalid value"}},
		{"pod affinity", "", "affinity: {podAffinity: {}}", []string{"spec: Forbidden: pod updates may not change fields"}},
		{"something else", "", "hostNetwork: true", []string{"spec: Forbidden: pod updates may not change fields"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			match(t, Pod(defaultedPod(t, gated(c.now)), defaultedPod(t, gated(c.old))), c.want...)
		})
	}
	free := func(fields string) string {
		return "{metadata: {name: p}, spec: {containers: [{name: c, image: i}], " + fields + "}}"
	}
	match(t, Pod(defaultedPod(t, free("nodeSelector: {a: b}")), defaultedPod(t, free(""))), "spec: Forbidden: pod updates may not change fields")
}
