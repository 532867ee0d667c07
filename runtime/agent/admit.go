package agent

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/runtime/container"
)

// safeSysctls are the kernel parameters that a pod may set and the namespace that
// holds each ("Using sysctls in a Kubernetes Cluster", safe and unsafe sysctls).
var safeSysctls = map[string]string{
	"kernel.shm_rmid_forced":              "ipc",
	"net.ipv4.ip_local_port_range":        "net",
	"net.ipv4.tcp_syncookies":             "net",
	"net.ipv4.ping_group_range":           "net",
	"net.ipv4.ip_unprivileged_port_start": "net",
	"net.ipv4.ip_local_reserved_ports":    "net",
	"net.ipv4.tcp_keepalive_time":         "net",
	"net.ipv4.tcp_fin_timeout":            "net",
	"net.ipv4.tcp_keepalive_intvl":        "net",
	"net.ipv4.tcp_keepalive_probes":       "net",
	"net.ipv4.tcp_rmem":                   "net",
	"net.ipv4.tcp_wmem":                   "net",
}

// admit says why the node does not run a pod at all, or nil.
func admit(s *podState) *podFailure {
	pod := s.pod
	if s.shuttingDown {
		return &podFailure{Reason: "NodeShutdown", Message: "Pod was rejected: Pod was rejected as the node is shutting down.", Rejected: true}
	}
	if f := refusePressure(pod, s.pressure); f != nil {
		return f
	}
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	for _, s := range pod.Spec.SecurityContext.Sysctls {
		if why := refuseSysctl(&pod.Spec, s.Name); why != "" {
			return &podFailure{Reason: "SysctlForbidden", Message: "Pod was rejected: forbidden sysctl: " + why, Rejected: true}
		}
	}
	return nil
}

func refuseSysctl(spec *v1.PodSpec, name string) string {
	switch ns, safe := safeSysctls[dotted(name)]; {
	case !safe:
		return fmt.Sprintf("%q not allowlisted", name)
	case ns == "ipc" && spec.HostIPC:
		return fmt.Sprintf("%q not allowed with host ipc enabled", name)
	case ns == "net" && spec.HostNetwork:
		return fmt.Sprintf("%q not allowed with host net enabled", name)
	}
	return ""
}

// dotted turns the form net/ipv4/x of a sysctl's name into net.ipv4.x.
func dotted(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '.' {
		return name
	}
	return container.SwapSysctlSeparators(name)
}

func sysctls(pod *v1.Pod) map[string]string {
	sc := pod.Spec.SecurityContext
	if sc == nil || len(sc.Sysctls) == 0 {
		return nil
	}
	out := map[string]string{}
	for _, s := range sc.Sysctls {
		out[s.Name] = s.Value
	}
	return out
}
