package apiserver

import (
	appsv1 "k8s.io/api/apps/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"

	"gitk8s.dev/gitk8s/controlplane/apiserver/printers"
	"gitk8s.dev/gitk8s/controlplane/apiserver/validation"
)

// setResources are the workloads that write pods themselves and keep their
// revisions in ControllerRevisions.
func setResources() []*resource {
	apps := appsv1.SchemeGroupVersion
	return []*resource{
		{
			gv: apps, kind: "StatefulSet", plural: "statefulsets", singular: "statefulset", shortNames: []string{"sts"},
			categories: []string{"all"}, namespaced: true,
			newObject: object[appsv1.StatefulSet], newList: object[appsv1.StatefulSetList],
			// Its pods are named after it and their names are host names.
			table: printers.StatefulSets, name: apivalidation.NameIsDNSLabel, status: true, generation: true,
			check: checked(validation.StatefulSet), validateStatus: checked(validation.StatefulSetStatus),
			warnings: statefulSetWarnings, subresources: statefulSetSubresources,
		},
		{
			gv: apps, kind: "DaemonSet", plural: "daemonsets", singular: "daemonset", shortNames: []string{"ds"},
			categories: []string{"all"}, namespaced: true,
			newObject: object[appsv1.DaemonSet], newList: object[appsv1.DaemonSetList],
			table: printers.DaemonSets, name: apivalidation.NameIsDNSSubdomain, status: true, generation: true,
			check: checked(validation.DaemonSet), validateStatus: checked(validation.DaemonSetStatus),
			warnings: daemonSetWarnings,
		},
	}
}

func statefulSetSubresources(_ *Server, st *store) map[string]rest.Storage {
	return map[string]rest.Storage{"scale": &scaleREST{store: st, of: scalable{
		replicas: func(obj runtime.Object) **int32 { return &obj.(*appsv1.StatefulSet).Spec.Replicas },
		status:   func(obj runtime.Object) int32 { return obj.(*appsv1.StatefulSet).Status.Replicas },
		selector: func(obj runtime.Object) *metav1.LabelSelector { return obj.(*appsv1.StatefulSet).Spec.Selector },
	}}}
}

func statefulSetWarnings(obj runtime.Object) []string {
	return podSpecWarnings(&obj.(*appsv1.StatefulSet).Spec.Template.Spec, field.NewPath("spec", "template", "spec"))
}

func daemonSetWarnings(obj runtime.Object) []string {
	return podSpecWarnings(&obj.(*appsv1.DaemonSet).Spec.Template.Spec, field.NewPath("spec", "template", "spec"))
}
