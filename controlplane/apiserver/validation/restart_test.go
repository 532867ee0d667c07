package validation

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"gitk8s.dev/gitk8s/controlplane/apiserver/defaults"
)

func TestContainerRestart(t *testing.T) {
	const at = "spec.containers[0]."
	tests := map[string]struct {
		container string
		want      []string
	}{
		"policy":           {"restartPolicy: OnFailure", nil},
		"unknown policy":   {"restartPolicy: Sometimes", []string{at + `restartPolicy: Unsupported value: "Sometimes"`}},
		"rules":            {"restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]", nil},
		"rules alone":      {"restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]", []string{at + "restartPolicy: Required value: must specify restartPolicy when restart rules are used"}},
		"no exit codes":    {"restartPolicy: Never, restartPolicyRules: [{action: Restart}]", []string{at + "restartPolicyRules[0].exitCodes: Required value: must be specified"}},
		"unknown operator": {"restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: Equals}}]", []string{at + `restartPolicyRules[0].exitCodes.operator: Unsupported value: "Equals": supported values: "In", "NotIn"`}},
		"another action":   {"restartPolicy: Never, restartPolicyRules: [{action: Stop, exitCodes: {operator: In}}]", []string{at + `restartPolicyRules[0].action: Unsupported value: "Stop"`}},
		"readiness grace":  {"readinessProbe: {tcpSocket: {port: 1}, terminationGracePeriodSeconds: 1}", []string{at + "readinessProbe.terminationGracePeriodSeconds: Invalid value: 1: must not be set for readinessProbes"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			spec := read[corev1.PodSpec](t, "{containers: [{"+good+", "+tt.container+"}]}")
			defaults.PodSpec(spec)
			match(t, PodSpec(spec, field.NewPath("spec")), tt.want...)
		})
	}
}
