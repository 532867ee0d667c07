package validation

import (
	"testing"

	policyv1 "k8s.io/api/policy/v1"
)

func TestPodDisruptionBudget(t *testing.T) {
	for spec, want := range map[string][]string{
		"{minAvailable: 2, selector: {}}":                                            nil,
		"{maxUnavailable: 30%}":                                                      nil,
		"{maxUnavailable: 0, unhealthyPodEvictionPolicy: AlwaysAllow}":               nil,
		"{minAvailable: 1, maxUnavailable: 1}":                                       {`spec: Invalid value: {"minAvailable":1,"maxUnavailable":1}: minAvailable and maxUnavailable cannot be both set`},
		"{minAvailable: -1}":                                                         {"spec.minAvailable: Invalid value: -1: must be greater than or equal to 0"},
		"{maxUnavailable: 101%}":                                                     {`spec.maxUnavailable: Invalid value: "101%": must not be greater than 100%`},
		"{minAvailable: some}":                                                       {`spec.minAvailable: Invalid value: "some": a valid percent string`},
		"{minAvailable: 1, unhealthyPodEvictionPolicy: Never}":                       {`spec.unhealthyPodEvictionPolicy: Unsupported value: "Never"`},
		"{minAvailable: 1, selector: {matchExpressions: [{key: a, operator: Has}]}}": {`spec.selector.matchExpressions[0].operator: Invalid value: "Has"`},
	} {
		t.Run(spec, func(t *testing.T) {
			match(t, PodDisruptionBudget(read[policyv1.PodDisruptionBudget](t, "{spec: "+spec+"}"), nil), want...)
		})
	}
}
