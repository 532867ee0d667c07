package agent

import (
	"os"
	"path/filepath"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"
)

func TestExceeded(t *testing.T) {
	quantity := func(s string) *resource.Quantity { return ptr.To(resource.MustParse(s)) }
	limited := func(name, limit string) v1.Container {
		c := v1.Container{Name: name}
		if limit != "" {
			c.Resources.Limits = v1.ResourceList{v1.ResourceEphemeralStorage: resource.MustParse(limit)}
		}
		return c
	}
	volume := func(name, limit string, medium v1.StorageMedium) v1.Volume {
		v := v1.Volume{Name: name, VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: medium}}}
		if limit != "" {
			v.EmptyDir.SizeLimit = quantity(limit)
		}
		return v
	}
	type sizes = map[string]int64
	tests := map[string]struct {
		spec    v1.PodSpec
		use     storageUse
		bounded bool
		want    string
	}{
		"nothing bounded":                 {v1.PodSpec{Containers: []v1.Container{limited("a", "")}, Volumes: []v1.Volume{volume("v", "", "")}}, storageUse{volumes: sizes{"v": 1 << 40}, containers: sizes{"a": 1 << 40}}, false, ""},
		"volume within":                   {v1.PodSpec{Volumes: []v1.Volume{volume("v", "1Mi", "")}}, storageUse{volumes: sizes{"v": 1 << 20}}, true, ""},
		"volume over":                     {v1.PodSpec{Volumes: []v1.Volume{volume("v", "1Mi", "")}}, storageUse{volumes: sizes{"v": 1<<20 + 1}}, true, `Usage of EmptyDir volume "v" exceeds the limit "1Mi". `},
		"memory is the kernel's to bound": {v1.PodSpec{Volumes: []v1.Volume{volume("v", "1Mi", v1.StorageMediumMemory)}}, storageUse{volumes: sizes{"v": 1 << 30}}, false, ""},
		"container over":                  {v1.PodSpec{Containers: []v1.Container{limited("a", "1Mi"), limited("b", "10Mi")}}, storageUse{containers: sizes{"a": 2 << 20}}, true, `Container a exceeded its local ephemeral storage limit "1Mi". `},
		"pod over":                        {v1.PodSpec{Containers: []v1.Container{limited("a", "1Mi"), limited("b", "1Mi")}, Volumes: []v1.Volume{volume("v", "", "")}}, storageUse{volumes: sizes{"v": 3 << 20}}, true, "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. "},
		"init container's":                {v1.PodSpec{InitContainers: []v1.Container{limited("i", "5Mi")}, Containers: []v1.Container{limited("a", "1Mi")}}, storageUse{containers: sizes{"i": 3 << 20}}, true, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			pod := &v1.Pod{Spec: tt.spec}
			if got := exceeded(pod, tt.use); got != tt.want || limitsStorage(pod) != tt.bounded {
				t.Errorf("%q, bounded %v", got, limitsStorage(pod))
			}
		})
	}
}

func TestDiskUse(t *testing.T) {
	dir := t.TempDir()
	empty, _ := diskUse(dir)
	if err := os.MkdirAll(filepath.Join(dir, "a"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "a", "f")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(file, filepath.Join(dir, "twin")); err != nil {
		t.Fatal(err)
	}
	if got, inodes := diskUse(dir); got-empty < 1<<20 || got-empty > 1<<20+64<<10 || inodes != 3 {
		t.Errorf("a file of 1 MiB with two names takes %d bytes, with its directories %d inodes", got-empty, inodes)
	}
	if got, inodes := diskUse(filepath.Join(dir, "absent")); got != 0 || inodes != 0 {
		t.Errorf("what is not there takes %d bytes", got)
	}
}
