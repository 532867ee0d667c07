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

// TestServiceWarnings: what the annotations of topology aware routing say that is not done.
func TestServiceWarnings(t *testing.T) {
	zone := corev1.ServiceTrafficDistributionPreferSameZone
	for _, c := range []struct {
		annotations  map[string]string
		distribution *string
		want         []string
	}{
		{nil, &zone, nil},
		{map[string]string{corev1.AnnotationTopologyMode: "Auto"}, nil, nil},
		{map[string]string{corev1.AnnotationTopologyMode: "Disabled"}, &zone, nil},
		{map[string]string{corev1.AnnotationTopologyMode: "Auto"}, &zone, []string{"spec.trafficDistribution: not acted on, because of the annotation service.kubernetes.io/topology-mode"}},
		{map[string]string{corev1.DeprecatedAnnotationTopologyAwareHints: "example.com/other"}, nil, []string{`metadata.annotations[service.kubernetes.io/topology-aware-hints]: "example.com/other" is not acted on yet`}},
	} {
		svc := &corev1.Service{Spec: corev1.ServiceSpec{TrafficDistribution: c.distribution}}
		svc.Annotations = c.annotations
		if got := serviceWarnings(svc); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%v: %q, want %q", c.annotations, got, c.want)
		}
	}
}
