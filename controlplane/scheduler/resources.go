package scheduler

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Resources are amounts in milli-CPUs for cpu and in the resource's own unit for
// everything else.
type Resources struct {
	MilliCPU, Memory, Storage, Pods int64
	// Other are extended resources and huge pages; nil if there are none.
	Other map[corev1.ResourceName]int64
}

func resourcesOf(list corev1.ResourceList) Resources {
	var r Resources
	for name, q := range list {
		switch name {
		case corev1.ResourceCPU:
			r.MilliCPU = q.MilliValue()
		case corev1.ResourceMemory:
			r.Memory = q.Value()
		case corev1.ResourceEphemeralStorage:
			r.Storage = q.Value()
		case corev1.ResourcePods:
			r.Pods = q.Value()
		default:
			if r.Other == nil {
				r.Other = map[corev1.ResourceName]int64{}
			}
			r.Other[name] = q.Value()
		}
	}
	return r
}

// Requests that a container without any is rated with, so that many such pods still
// spread over the nodes (Kubernetes rates them so, too).
var unrequested = corev1.ResourceList{
	corev1.ResourceCPU:    *resource.NewMilliQuantity(100, resource.DecimalSI),
	corev1.ResourceMemory: *resource.NewQuantity(200<<20, resource.BinarySI),
}

// requestsOf returns what a pod asks for, init containers and overhead considered,
// and what it is rated with.
func requestsOf(p *corev1.Pod) (requests, rated Resources) {
	requests = resourcesOf(resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{}))
	requests.Pods = 1
	rated = resourcesOf(resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{NonMissingContainerRequests: unrequested}))
	return requests, rated
}

// add adds o, or with sign -1 takes it away.
func (r *Resources) add(o *Resources, sign int64) {
	r.MilliCPU += sign * o.MilliCPU
	r.Memory += sign * o.Memory
	r.Storage += sign * o.Storage
	r.Pods += sign * o.Pods
	for name, v := range o.Other {
		if r.Other == nil {
			r.Other = map[corev1.ResourceName]int64{}
		}
		if r.Other[name] += sign * v; r.Other[name] == 0 {
			delete(r.Other, name)
		}
	}
}

func (r *Resources) equal(o *Resources) bool {
	return r.MilliCPU == o.MilliCPU && r.Memory == o.Memory && r.Storage == o.Storage && r.Pods == o.Pods && maps.Equal(r.Other, o.Other)
}

// within says whether r is no more than all less used.
func (r *Resources) within(all, used *Resources) bool {
	// What is not asked for may be overused.
	if r.MilliCPU > 0 && r.MilliCPU > all.MilliCPU-used.MilliCPU || r.Memory > 0 && r.Memory > all.Memory-used.Memory ||
		r.Storage > 0 && r.Storage > all.Storage-used.Storage || r.Pods > 0 && r.Pods > all.Pods-used.Pods {
		return false
	}
	if len(r.Other) == 0 {
		return true
	}
	for name, want := range r.Other {
		if want > 0 && want > all.Other[name]-used.Other[name] {
			return false
		}
	}
	return true
}

// each calls f with every resource by name, in a fixed order.
func (r *Resources) each(f func(name corev1.ResourceName, v int64)) {
	f(corev1.ResourceCPU, r.MilliCPU)
	f(corev1.ResourceEphemeralStorage, r.Storage)
	f(corev1.ResourceMemory, r.Memory)
	for _, name := range slices.Sorted(maps.Keys(r.Other)) {
		f(name, r.Other[name])
	}
	f(corev1.ResourcePods, r.Pods)
}

// of returns the amount of one resource.
func (r *Resources) of(name corev1.ResourceName) int64 {
	switch name {
	case corev1.ResourceCPU:
		return r.MilliCPU
	case corev1.ResourceMemory:
		return r.Memory
	case corev1.ResourceEphemeralStorage:
		return r.Storage
	case corev1.ResourcePods:
		return r.Pods
	}
	return r.Other[name]
}

func amount(name corev1.ResourceName, v int64) string {
	if name == corev1.ResourceCPU {
		return resource.NewMilliQuantity(v, resource.DecimalSI).String()
	}
	if name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage {
		return resource.NewQuantity(v, resource.BinarySI).String()
	}
	return resource.NewQuantity(v, resource.DecimalSI).String()
}
