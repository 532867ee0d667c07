// Package defaults fills in what a manifest leaves out, with the values of
// Kubernetes' v1 APIs. A wrong default shows up as an endless difference between
// manifest and cluster, so the rules are kept to the letter, including where
// Kubernetes defaults a Pod and not the template of a Pod.
//
// All functions change their argument in place, are idempotent and touch nothing
// that is set.
package defaults

import (
	"k8s.io/apimachinery/pkg/runtime"
)

// Register makes a scheme apply the defaults whenever it decodes an object.
func Register(s *runtime.Scheme) {
	add(s, Pod)
	add(s, Namespace)
	add(s, Node)
	add(s, Secret)
	add(s, Service)
	add(s, Endpoints)
	add(s, EndpointSlice)
	add(s, Deployment)
	add(s, ReplicaSet)
	add(s, ReplicationController)
	add(s, StatefulSet)
	add(s, DaemonSet)
	add(s, Job)
	add(s, CronJob)
	add(s, PersistentVolumeClaim)
	add(s, PersistentVolume)
	add(s, StorageClass)
	add(s, HorizontalPodAutoscaler)
	add(s, PriorityClass)
	add(s, IngressClass)
	add(s, NetworkPolicy)
	add(s, Application)
}

func add[T any, P interface {
	*T
	runtime.Object
}](s *runtime.Scheme, f func(P),
) {
	s.AddTypeDefaultingFunc(P(new(T)), func(obj any) { f(obj.(P)) })
}

// unset sets a field that is empty.
func unset[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// missing sets a pointer that is nil.
func missing[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}
