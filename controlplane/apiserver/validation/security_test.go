package validation

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"gitk8s.dev/gitk8s/controlplane/apiserver/defaults"
)

func TestPodSecurity(t *testing.T) {
	tests := map[string]struct {
		spec, container string
		want            []string
	}{
		"host and shared processes": {"hostPID: true, shareProcessNamespace: true", "", []string{"spec.securityContext.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be enabled"}},
		"procMount":                 {"", "procMount: Unmasked", []string{"spec.containers[0].securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false"}},
		"own users with what is the machine's": {"hostUsers: false, hostNetwork: true, hostPID: true, hostIPC: true", "",
			[]string{"spec.hostIPC: Forbidden: when `hostUsers` is false", "spec.hostNetwork: Forbidden: when `hostUsers` is false", "spec.hostPID: Forbidden: when `hostUsers` is false"}},
		"own users":                    {"hostUsers: false, shareProcessNamespace: true", "", nil},
		"procMount without host users": {"hostUsers: false", "procMount: Unmasked", nil},
		"sysctls":                      {"securityContext: {sysctls: [{name: net.core.somaxconn, value: '1'}, {name: net/ipv4/tcp_rmem, value: '1'}]}", "", nil},
		"sysctl twice":                 {"securityContext: {sysctls: [{name: a.b, value: '1'}, {name: a.b, value: '2'}]}", "", []string{`spec.securityContext.sysctls[1].name: Duplicate value: "a.b"`}},
		"sysctl's form":                {"securityContext: {sysctls: [{name: ../x, value: '1'}]}", "", []string{`spec.securityContext.sysctls[0].name: Invalid value: "../x": must have at most 253 characters and match regex`}},
		"sysctl of the machine":        {"hostNetwork: true, securityContext: {sysctls: [{name: net.core.somaxconn, value: '1'}]}", "", []string{`spec.securityContext.sysctls[0].name: Invalid value: "net.core.somaxconn": may not be specified when 'hostNetwork' is true`}},
		"sysctl of its IPC":            {"hostIPC: true, securityContext: {sysctls: [{name: kernel.shmmax, value: '1'}]}", "", []string{`spec.securityContext.sysctls[0].name: Invalid value: "kernel.shmmax": may not be specified when 'hostIPC' is true`}},
		"local profile":                {"securityContext: {seccompProfile: {type: Localhost, localhostProfile: a/b.json}}", "", nil},
		"local profile without one":    {"", "seccompProfile: {type: Localhost}", []string{"spec.containers[0].securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost"}},
		"profile outside":              {"securityContext: {seccompProfile: {type: Localhost, localhostProfile: ../a}}", "", []string{`spec.securityContext.seccompProfile.localhostProfile: Invalid value: "../a": must not contain '..'`}},
		"profile of another type":      {"securityContext: {seccompProfile: {type: RuntimeDefault, localhostProfile: a}}", "", []string{`spec.securityContext.seccompProfile.localhostProfile: Invalid value: "a": can only be set when seccomp type is Localhost`}},
		"policies":                     {"securityContext: {fsGroupChangePolicy: Always, supplementalGroupsPolicy: Strict}", "", nil},
		"unknown policies": {"securityContext: {fsGroupChangePolicy: Never, supplementalGroupsPolicy: Loose}", "",
			[]string{`spec.securityContext.fsGroupChangePolicy: Unsupported value: "Never"`, `spec.securityContext.supplementalGroupsPolicy: Unsupported value: "Loose"`}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			text := "{containers: [{" + good + ", securityContext: {" + tt.container + "}}]"
			if tt.spec != "" {
				text += ", " + tt.spec
			}
			spec := read[corev1.PodSpec](t, text+"}")
			defaults.PodSpec(spec)
			match(t, PodSpec(spec, field.NewPath("spec")), tt.want...)
		})
	}
}
