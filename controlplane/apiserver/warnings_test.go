package apiserver

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
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
			[]string{"spec.affinity.podAffinity: not acted on yet"},
		},
		"pod anti-affinity": {
			corev1.PodSpec{Affinity: &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{}}},
			[]string{"spec.affinity.podAntiAffinity: not acted on yet"},
		},
		"spreading": {
			corev1.PodSpec{TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{MaxSkew: 1}}},
			[]string{"spec.topologySpreadConstraints: not acted on yet"},
		},
	} {
		if got := podSpecWarnings(&c.spec, field.NewPath("spec")); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
