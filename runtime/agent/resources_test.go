package agent

import (
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/registry"
	"gitk8s.dev/gitk8s/runtime/container"
)

func list2(cpu, memory string) v1.ResourceList {
	l := v1.ResourceList{}
	if cpu != "" {
		l[v1.ResourceCPU] = resource.MustParse(cpu)
	}
	if memory != "" {
		l[v1.ResourceMemory] = resource.MustParse(memory)
	}
	return l
}

func TestResources(t *testing.T) {
	const node = 10 << 30
	tests := []struct {
		name     string
		requests v1.ResourceList
		limits   v1.ResourceList
		qos      v1.PodQOSClass
		want     container.Resources
	}{
		{"nothing", nil, nil, v1.PodQOSBestEffort, container.Resources{CPUShares: 2, OOMScoreAdj: 1000}},
		{"requests", list2("250m", "1Gi"), nil, v1.PodQOSBurstable, container.Resources{CPUShares: 256, OOMScoreAdj: 900}},
		{"limits that differ", list2("100m", "64Mi"), list2("1500m", "128Mi"), v1.PodQOSBurstable,
			container.Resources{CPUShares: 102, CPUQuota: 150000, CPUPeriod: 100000, MemoryLimit: 128 << 20, OOMScoreAdj: 994}},
		{"guaranteed", list2("1", "1Gi"), list2("1", "1Gi"), v1.PodQOSGuaranteed,
			container.Resources{CPUShares: 1024, CPUQuota: 100000, CPUPeriod: 100000, MemoryLimit: 1 << 30, OOMScoreAdj: -997}},
		{"tiny", list2("1m", ""), list2("1m", ""), v1.PodQOSBurstable, container.Resources{CPUShares: 2, CPUQuota: 1000, CPUPeriod: 100000, OOMScoreAdj: 999}},
		{"more than the node", list2("", "20Gi"), nil, v1.PodQOSBurstable, container.Resources{CPUShares: 2, OOMScoreAdj: 3}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pod := &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{Resources: v1.ResourceRequirements{Requests: tt.requests, Limits: tt.limits}}}}}
			if got := qosClass(pod); got != tt.qos {
				t.Errorf("QoS %s, want %s", got, tt.qos)
			}
			tt.want.PidsLimit = defaultPids
			if got := containerResources(pod, &pod.Spec.Containers[0], node); got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
	two := &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{
		{Resources: v1.ResourceRequirements{Limits: list2("1", "1Gi")}}, {Resources: v1.ResourceRequirements{Limits: list2("1", "")}},
	}}}
	if got := podResources(two); got.CPUQuota != 200000 || got.MemoryLimit != 0 {
		t.Errorf("a pod with one container without memory limit: %+v", got)
	}
}

func TestRunAs(t *testing.T) {
	n := func(i int64) *int64 { return &i }
	yes := true
	tests := []struct {
		name  string
		pod   *v1.PodSecurityContext
		ctr   *v1.SecurityContext
		image string
		want  string
		bad   bool
	}{
		{name: "image", image: "web:web", want: "web:web"},
		{name: "nothing", want: ""},
		{name: "pod over image", pod: &v1.PodSecurityContext{RunAsUser: n(5)}, image: "web:web", want: "5"},
		{name: "container over pod", pod: &v1.PodSecurityContext{RunAsUser: n(5), RunAsGroup: n(6)}, ctr: &v1.SecurityContext{RunAsUser: n(7)}, want: "7:6"},
		{name: "group alone", pod: &v1.PodSecurityContext{RunAsGroup: n(6)}, want: "0:6"},
		{name: "nonroot and root image", pod: &v1.PodSecurityContext{RunAsNonRoot: &yes}, bad: true},
		{name: "nonroot and named user", pod: &v1.PodSecurityContext{RunAsNonRoot: &yes}, image: "web", bad: true},
		{name: "nonroot and number", pod: &v1.PodSecurityContext{RunAsNonRoot: &yes}, image: "1001", want: "1001"},
		{name: "nonroot and uid 0", ctr: &v1.SecurityContext{RunAsNonRoot: &yes, RunAsUser: n(0)}, bad: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := runAs(&v1.Pod{Spec: v1.PodSpec{SecurityContext: tt.pod}}, &v1.Container{SecurityContext: tt.ctr}, tt.image)
			if got != tt.want || (err != nil) != tt.bad {
				t.Errorf("%q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func TestSecurity(t *testing.T) {
	yes, no := true, false
	pod := &v1.Pod{Spec: v1.PodSpec{SecurityContext: &v1.PodSecurityContext{SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeUnconfined}}}}
	got := security(pod, &v1.Container{SecurityContext: &v1.SecurityContext{
		ReadOnlyRootFilesystem: &yes, AllowPrivilegeEscalation: &no,
		Capabilities: &v1.Capabilities{Add: []v1.Capability{"NET_ADMIN"}, Drop: []v1.Capability{"CAP_chown", "ALL"}},
	}})
	if !got.ReadOnlyRootFilesystem || !got.NoNewPrivileges || !got.SeccompUnconfined || got.Privileged ||
		!slices.Equal(got.AddCapabilities, []string{"NET_ADMIN"}) || !slices.Equal(got.DropCapabilities, []string{"CHOWN", "ALL"}) {
		t.Errorf("%+v", got)
	}
	got = security(&v1.Pod{}, &v1.Container{})
	if got.SeccompUnconfined || got.NoNewPrivileges || got.Privileged {
		t.Errorf("defaults: %+v", got)
	}
}

func TestPullPolicy(t *testing.T) {
	tests := []struct {
		image  string
		policy v1.PullPolicy
		want   registry.PullPolicy
	}{
		{"a", "", registry.Always}, {"a:latest", "", registry.Always}, {"a:v1", "", registry.IfNotPresent},
		{"a@sha256:1111111111111111111111111111111111111111111111111111111111111111", "", registry.IfNotPresent},
		{"a", v1.PullNever, registry.Never}, {"a:v1", v1.PullAlways, registry.Always}, {"a", v1.PullIfNotPresent, registry.IfNotPresent},
	}
	for _, tt := range tests {
		if got := pullPolicy(&v1.Container{Image: tt.image, ImagePullPolicy: tt.policy}); got != tt.want {
			t.Errorf("%s %q: %s, want %s", tt.image, tt.policy, got, tt.want)
		}
	}
}

func TestSecretAuths(t *testing.T) {
	json := &v1.Secret{Type: v1.SecretTypeDockerConfigJson, Data: map[string][]byte{v1.DockerConfigJsonKey: []byte(
		`{"auths":{"https://reg.test:5000/v2/":{"auth":"dTpw"},"reg.test:5000/team":{"username":"t","password":"q"},"docker.io":{"auth":"aDpo"}}}`)}}
	auths, err := secretAuths(json)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ image, user string }{
		{"reg.test:5000/app:v1", "u"}, {"reg.test:5000/team/app", "t"}, {"reg.test:5000/teams/app", "u"}, {"nginx", "h"}, {"other.test/app", ""},
	}
	for _, tt := range tests {
		ref, err := name.ParseReference(tt.image, name.WeakValidation)
		if err != nil {
			t.Fatal(err)
		}
		a, err := auths.Resolve(ref.Context())
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := a.Authorization()
		if err != nil || cfg.Username != tt.user {
			t.Errorf("%s: user %q, %v; want %q", tt.image, cfg.Username, err, tt.user)
		}
	}
	old := &v1.Secret{Type: v1.SecretTypeDockercfg, Data: map[string][]byte{v1.DockerConfigKey: []byte(`{"reg.test":{"username":"x","password":"y"}}`)}}
	if auths, err := secretAuths(old); err != nil || len(auths) != 1 {
		t.Errorf("dockercfg: %v, %v", auths, err)
	}
	for _, bad := range []*v1.Secret{
		{Type: v1.SecretTypeOpaque},
		{Type: v1.SecretTypeDockerConfigJson, Data: map[string][]byte{v1.DockerConfigJsonKey: []byte(`{"auths":{"a":{"password":"hush`)}},
		{Type: v1.SecretTypeDockerConfigJson, Data: map[string][]byte{v1.DockerConfigJsonKey: []byte(`{"auths":{"a":{"auth":"%%hush"}}}`)}},
	} {
		if _, err := secretAuths(bad); err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("bad secret: %v", err)
		}
	}
}

func TestParseSignal(t *testing.T) {
	tests := []struct {
		in   string
		want syscall.Signal
	}{
		{"", syscall.SIGTERM}, {"SIGQUIT", syscall.SIGQUIT}, {"quit", syscall.SIGQUIT}, {"9", syscall.SIGKILL},
		{"SIGRTMIN+3", 37}, {"nonsense", syscall.SIGTERM}, {"999", syscall.SIGTERM},
	}
	for _, tt := range tests {
		if got := parseSignal(tt.in); got != tt.want {
			t.Errorf("%q: %v, want %v", tt.in, got, tt.want)
		}
	}
}

func TestResolvConf(t *testing.T) {
	node := parseResolvConf([]byte("# comment\nnameserver 10.0.0.53\nsearch corp.test\noptions timeout:1 attempts:2\n"))
	two := "2"
	tests := []struct {
		name string
		spec v1.PodSpec
		dns  []string
		want string
	}{
		{"node's, as there is no cluster DNS", v1.PodSpec{}, nil, "search corp.test\nnameserver 10.0.0.53\noptions timeout:1 attempts:2\n"},
		{"cluster first", v1.PodSpec{DNSPolicy: v1.DNSClusterFirst}, []string{"10.43.0.10"},
			"search ns.svc.cluster.local svc.cluster.local cluster.local corp.test\nnameserver 10.43.0.10\noptions ndots:5\n"},
		{"host network", v1.PodSpec{DNSPolicy: v1.DNSClusterFirst, HostNetwork: true}, []string{"10.43.0.10"},
			"search corp.test\nnameserver 10.0.0.53\noptions timeout:1 attempts:2\n"},
		{"none", v1.PodSpec{DNSPolicy: v1.DNSNone, DNSConfig: &v1.PodDNSConfig{Nameservers: []string{"1.1.1.1", "1.1.1.1"}, Searches: []string{"a"}, Options: []v1.PodDNSConfigOption{{Name: "ndots", Value: &two}, {Name: "edns0"}}}},
			nil, "search a\nnameserver 1.1.1.1\noptions ndots:2 edns0\n"},
		{"config overrides options", v1.PodSpec{DNSPolicy: v1.DNSDefault, DNSConfig: &v1.PodDNSConfig{Options: []v1.PodDNSConfigOption{{Name: "timeout", Value: &two}}}},
			nil, "search corp.test\nnameserver 10.0.0.53\noptions timeout:2 attempts:2\n"},
	}
	for _, tt := range tests {
		pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}, Spec: tt.spec}
		if got := string(resolvConf(pod, node, tt.dns, "cluster.local").bytes()); got != tt.want {
			t.Errorf("%s:\n%s\nwant:\n%s", tt.name, got, tt.want)
		}
	}
}

func TestAllocatable(t *testing.T) {
	got := allocatable(list2("2", "1Gi"), list2("500m", "2Gi"))
	if got.Cpu().MilliValue() != 1500 || got.Memory().Value() != 0 {
		t.Errorf("%v", got)
	}
	capacity := list2("2", "1Gi")
	capacity[v1.ResourceEphemeralStorage] = resource.MustParse("1000")
	system, err := ParseReserved("cpu=500m, memory=256Mi")
	if err != nil {
		t.Fatal(err)
	}
	got = allocatable(capacity, reserved(capacity, system, thresholds(t, "memory.available<256Mi,nodefs.available<10%,imagefs.available<15%,nodefs.inodesFree<5%")))
	if got.Cpu().MilliValue() != 1500 || got.Memory().Value() != 512<<20 || got.StorageEphemeral().Value() != 900 {
		t.Errorf("%v", got)
	}
	if m := system[v1.ResourceMemory]; m.Value() != 256<<20 {
		t.Errorf("the configuration was changed: %v", system)
	}
}

func TestParseReserved(t *testing.T) {
	if got, err := ParseReserved(""); err != nil || len(got) > 0 {
		t.Errorf("%v %v", got, err)
	}
	for text, want := range map[string]string{
		"memory":            "not a resource and a quantity",
		"gpu=1":             `cannot reserve "gpu" resource`,
		"cpu=much":          `failed to parse quantity "much" for "cpu" resource`,
		"memory=-1Gi":       `resource quantity for "memory" cannot be negative`,
		"cpu=1,,memory=1Gi": "not a resource and a quantity",
	} {
		if _, err := ParseReserved(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
