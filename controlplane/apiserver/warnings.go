package apiserver

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// A field that is accepted and not acted on is named in an HTTP Warning header,
// which kubectl prints: nobody should believe that it works.

const notActedOn = "not acted on yet"

func warn(p *field.Path, set bool) []string {
	if !set {
		return nil
	}
	return []string{p.String() + ": " + notActedOn}
}

func podWarnings(obj runtime.Object) []string {
	return podSpecWarnings(&obj.(*corev1.Pod).Spec, field.NewPath("spec"))
}

func deploymentWarnings(obj runtime.Object) []string {
	return podSpecWarnings(&obj.(*appsv1.Deployment).Spec.Template.Spec, field.NewPath("spec", "template", "spec"))
}

func replicaSetWarnings(obj runtime.Object) []string {
	return podSpecWarnings(&obj.(*appsv1.ReplicaSet).Spec.Template.Spec, field.NewPath("spec", "template", "spec"))
}

func replicationControllerWarnings(obj runtime.Object) []string {
	return podSpecWarnings(&obj.(*corev1.ReplicationController).Spec.Template.Spec, field.NewPath("spec", "template", "spec"))
}

func podSpecWarnings(s *corev1.PodSpec, p *field.Path) []string {
	var out []string
	out = append(out, warn(p.Child("runtimeClassName"), s.RuntimeClassName != nil)...)
	out = append(out, warn(p.Child("resourceClaims"), len(s.ResourceClaims) > 0)...)
	for i := range s.Volumes {
		v := &s.Volumes[i]
		if !supportedVolume(v) {
			out = append(out, fmt.Sprintf("%s: a volume of this type is %s", p.Child("volumes").Index(i), notActedOn))
		}
	}
	return out
}

func supportedVolume(v *corev1.Volume) bool {
	return v.EmptyDir != nil || v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil || v.HostPath != nil ||
		v.PersistentVolumeClaim != nil || v.Ephemeral != nil
}

// serviceWarnings names what the annotation that allots endpoints to zones makes of no
// use, and values of it that nobody here knows.
func serviceWarnings(obj runtime.Object) []string {
	svc := obj.(*corev1.Service)
	var out []string
	for _, name := range []string{corev1.AnnotationTopologyMode, corev1.DeprecatedAnnotationTopologyAwareHints} {
		mode, ok := svc.Annotations[name]
		switch {
		case !ok || mode == "Disabled" || mode == "disabled":
		case mode != "Auto" && mode != "auto":
			out = append(out, fmt.Sprintf("metadata.annotations[%s]: %q is %s", name, mode, notActedOn))
		case svc.Spec.TrafficDistribution != nil:
			out = append(out, "spec.trafficDistribution: not acted on, because of the annotation "+name)
		}
	}
	return out
}
