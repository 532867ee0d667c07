package validation

import (
	"gitk8s.dev/gitk8s/api/v1alpha1"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func Node(o, old *corev1.Node) field.ErrorList                             { return nil }
func Pod(o, old *corev1.Pod) field.ErrorList                               { return nil }
func ConfigMap(o, old *corev1.ConfigMap) field.ErrorList                   { return nil }
func Secret(o, old *corev1.Secret) field.ErrorList                         { return nil }
func Service(o, old *corev1.Service) field.ErrorList                       { return nil }
func Endpoints(o, old *corev1.Endpoints) field.ErrorList                   { return nil }
func Event(o, old *corev1.Event) field.ErrorList                           { return nil }
func Deployment(o, old *appsv1.Deployment) field.ErrorList                 { return nil }
func ReplicaSet(o, old *appsv1.ReplicaSet) field.ErrorList                 { return nil }
func ControllerRevision(o, old *appsv1.ControllerRevision) field.ErrorList { return nil }
func EndpointSlice(o, old *discoveryv1.EndpointSlice) field.ErrorList      { return nil }
func Lease(o, old *coordinationv1.Lease) field.ErrorList                   { return nil }
func Application(o, old *v1alpha1.Application) field.ErrorList             { return nil }
func Revision(o, old *v1alpha1.Revision) field.ErrorList                   { return nil }
