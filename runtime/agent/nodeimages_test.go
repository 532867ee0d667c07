package agent

import (
	"fmt"
	"testing"

	"gitk8s.dev/gitk8s/registry"
)

func TestNodeImages(t *testing.T) {
	list := []registry.ImageInfo{{Digest: "sha256:f00", Size: 1 << 40}}
	for i := range 60 {
		list = append(list, registry.ImageInfo{Digest: fmt.Sprint(i), Size: int64(i), References: []string{fmt.Sprintf("web:%d", i), "b", "c", "d", "e", "f"}})
	}
	got := nodeImages(list)
	if len(got) != maxImages || got[0].Names[0] != "<none>@sha256:f00" || got[1].Names[1] != "web:59" || got[1].SizeBytes != 59 || len(got[1].Names) != maxImageNames {
		t.Errorf("%d images, the first %+v, %+v", len(got), got[0], got[1])
	}
}
