package apiserver

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// TestSchedulingWarnings: what the scheduler does not look at is named, what it
// does is not.
func TestSchedulingWarnings(t *testing.T) {
	for name, c := range map[string]struct {
		spec corev1.PodSpec
		want []string
	}{
		"nothing":       {corev1.PodSpec{}, nil},
		"node affinity": {corev1.PodSpec{Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{}}}, nil},
		"pod affinity": {
			corev1.PodSpec{Affinity: &corev1.Affinity{PodAffinity: &corev1.PodAffinity{}}},
			nil,
		},
		"pod anti-affinity": {
			corev1.PodSpec{Affinity: &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{}}},
			nil,
		},
		"priority class": {corev1.PodSpec{PriorityClassName: "high"}, nil},
		"overhead":       {corev1.PodSpec{Overhead: corev1.ResourceList{corev1.ResourceCPU: quantity.MustParse("1")}}, nil},
		"claims of devices": {
			corev1.PodSpec{ResourceClaims: []corev1.PodResourceClaim{{}}},
			[]string{"spec.resourceClaims: not acted on yet"},
		},
		"spreading": {
			corev1.PodSpec{TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{MaxSkew: 1}}},
			nil,
		},
	} {
		if got := podSpecWarnings(&c.spec, field.NewPath("spec")); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
