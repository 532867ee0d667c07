package agent

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestWithExtended(t *testing.T) {
	q := resource.MustParse
	own := v1.ResourceList{v1.ResourceCPU: q("2"), v1.ResourcePods: q("110")}
	if got := withExtended(own, v1.ResourceList{v1.ResourceCPU: q("64"), "hugepages-2Mi": q("1"), "node.kubernetes.io/x": q("1")}); !equality.Semantic.DeepEqual(got, own) {
		t.Errorf("what is the node's own to say: %v", got)
	}
	want := v1.ResourceList{v1.ResourceCPU: q("2"), v1.ResourcePods: q("110"), "example.com/dongle": q("4"), "example.com/saw": q("1")}
	if got := withExtended(own, v1.ResourceList{"example.com/dongle": q("4"), "example.com/saw": q("1"), v1.ResourcePods: q("1")}); !equality.Semantic.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if len(own) != 2 {
		t.Errorf("the node's own became %v", own)
	}
}
