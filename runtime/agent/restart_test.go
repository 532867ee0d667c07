package agent

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

// TestRestarts goes through pod policy, container policy, rules and exit codes.
func TestRestarts(t *testing.T) {
	rule := func(op v1.ContainerRestartRuleOnExitCodesOperator, codes ...int32) []v1.ContainerRestartRule {
		return []v1.ContainerRestartRule{{Action: v1.ContainerRestartRuleActionRestart, ExitCodes: &v1.ContainerRestartRuleOnExitCodes{Operator: op, Values: codes}}}
	}
	tests := map[string]struct {
		name  string
		pod   v1.RestartPolicy
		own   v1.ContainerRestartPolicy
		rules []v1.ContainerRestartRule
		code  int
		want  bool
	}{
		"Always, success":               {"a", v1.RestartPolicyAlways, "", nil, 0, true},
		"OnFailure, success":            {"a", v1.RestartPolicyOnFailure, "", nil, 0, false},
		"OnFailure, failure":            {"a", v1.RestartPolicyOnFailure, "", nil, 1, true},
		"Never, failure":                {"a", v1.RestartPolicyNever, "", nil, 1, false},
		"own Always over Never":         {"a", v1.RestartPolicyNever, v1.ContainerRestartPolicyAlways, nil, 0, true},
		"own Never over Always":         {"a", v1.RestartPolicyAlways, v1.ContainerRestartPolicyNever, nil, 1, false},
		"own OnFailure over Never":      {"a", v1.RestartPolicyNever, v1.ContainerRestartPolicyOnFailure, nil, 1, true},
		"rule In matches":               {"a", v1.RestartPolicyNever, v1.ContainerRestartPolicyNever, rule("In", 41, 42), 42, true},
		"rule In does not match":        {"a", v1.RestartPolicyNever, v1.ContainerRestartPolicyNever, rule("In", 41, 42), 1, false},
		"rule NotIn matches":            {"a", v1.RestartPolicyNever, v1.ContainerRestartPolicyNever, rule("NotIn", 0), 1, true},
		"no match falls to own policy":  {"a", v1.RestartPolicyNever, v1.ContainerRestartPolicyOnFailure, rule("In", 42), 1, true},
		"init, own Never":               {"init:a", v1.RestartPolicyAlways, v1.ContainerRestartPolicyNever, nil, 1, false},
		"init, rule":                    {"init:a", v1.RestartPolicyNever, v1.ContainerRestartPolicyNever, rule("In", 42), 42, true},
		"init, success":                 {"init:a", v1.RestartPolicyAlways, "", nil, 0, false},
		"sidecar, rules change nothing": {"side:a", v1.RestartPolicyNever, "", rule("In", 42), 1, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := stateOf(tt.name).ctr("a")
			c.spec.RestartPolicyRules = tt.rules
			if tt.own != "" {
				c.spec.RestartPolicy = ptr.To(tt.own)
			}
			if got := c.restarts(tt.pod, tt.code); got != tt.want {
				t.Errorf("restarts: %v", got)
			}
		})
	}
}
