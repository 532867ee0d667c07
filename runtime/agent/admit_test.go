package agent

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

func TestAdmit(t *testing.T) {
	tests := map[string]struct {
		sysctl           string
		hostNet, hostIPC bool
		want             string
	}{
		"safe":                 {sysctl: "net.ipv4.tcp_syncookies"},
		"safe, by slashes":     {sysctl: "net/ipv4/tcp_syncookies"},
		"unsafe":               {sysctl: "net.core.somaxconn", want: `"net.core.somaxconn" not allowlisted`},
		"of the machine":       {sysctl: "net.ipv4.tcp_rmem", hostNet: true, want: `"net.ipv4.tcp_rmem" not allowed with host net enabled`},
		"of the machine's IPC": {sysctl: "kernel.shm_rmid_forced", hostIPC: true, want: `"kernel.shm_rmid_forced" not allowed with host ipc enabled`},
		"IPC beside host net":  {sysctl: "kernel.shm_rmid_forced", hostNet: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := stateOf("a")
			s.sandbox = sandboxNone
			s.pod.Spec.HostNetwork, s.pod.Spec.HostIPC = tt.hostNet, tt.hostIPC
			s.pod.Spec.SecurityContext = &v1.PodSecurityContext{Sysctls: []v1.Sysctl{{Name: tt.sysctl, Value: "1"}}}
			p := decide(s, t0)
			switch {
			case tt.want == "" && (p.failure != nil || len(p.actions) != 1):
				t.Errorf("refused: %+v", p.failure)
			case tt.want != "" && decide(s.runs("a"), t0).failure != nil:
				t.Error("a pod that an earlier agent has run is refused")
			case tt.want != "" && (p.failure == nil || p.failure.Reason != "SysctlForbidden" || p.failure.Message != "Pod was rejected: forbidden sysctl: "+tt.want):
				t.Errorf("got %+v, want %q", p.failure, tt.want)
			}
		})
	}
}

func TestKernelHostname(t *testing.T) {
	pod := &v1.Pod{Spec: v1.PodSpec{Hostname: "h", Subdomain: "s"}}
	pod.Namespace = "n"
	check := func(want, problem string) {
		t.Helper()
		got, err := kernelHostname(pod, "cluster.local")
		if got != want || problem == "" && err != nil || problem != "" && (err == nil || !strings.Contains(err.Error(), problem)) {
			t.Errorf("%q, %v; want %q, %q", got, err, want, problem)
		}
	}
	check("h", "")
	pod.Spec.SetHostnameAsFQDN = ptr.To(true)
	check("h.s.n.svc.cluster.local", "")
	pod.Spec.Subdomain = ""
	check("h", "")
	pod.Spec.Subdomain = strings.Repeat("s", 50)
	check("", "is too long (64 characters is the max, 72 characters requested)")
}
