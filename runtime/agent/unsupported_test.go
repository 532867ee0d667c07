package agent

import (
	"slices"
	"testing"

	v1 "k8s.io/api/core/v1"
)

func TestUnsupported(t *testing.T) {
	no := false
	port := v1.Container{Name: "c", Ports: []v1.ContainerPort{{ContainerPort: 80, HostPort: 80}}}
	tests := []struct {
		name string
		spec v1.PodSpec
		want []string
	}{
		{"nothing", v1.PodSpec{Containers: []v1.Container{{Name: "c"}}}, nil},
		{"host port", v1.PodSpec{Containers: []v1.Container{port}}, nil},
		{"host port in the node's network", v1.PodSpec{HostNetwork: true, Containers: []v1.Container{port}}, nil},
		{"users of its own", v1.PodSpec{HostUsers: &no}, nil},
		{"shared namespaces", v1.PodSpec{HostPID: true, HostIPC: true}, nil},
	}
	for _, tt := range tests {
		if got := unsupported(&v1.Pod{Spec: tt.spec}); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
