package controller

import (
	"context"
	"errors"

	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
)

// EndpointSlices are those of one controller: it reads, writes and watches the ones that
// carry its name, and waits until it has seen its own writes.
type EndpointSlices struct {
	Client kubernetes.Interface
	Lister discoverylisters.EndpointSliceLister
	// ManagedBy is the controller's name in the label endpointslice.kubernetes.io/managed-by.
	ManagedBy string
	Expected  *Expectations
}

// Of returns the slices of a service.
func (s *EndpointSlices) Of(namespace, service string) ([]*discoveryv1.EndpointSlice, error) {
	return s.Lister.EndpointSlices(namespace).List(labels.SelectorFromSet(labels.Set{
		discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: s.ManagedBy,
	}))
}

// Handler is for the informer of all slices: it queues the services of the controller's.
func (s *EndpointSlices) Handler(loop *Loop) func(old, slice *discoveryv1.EndpointSlice) {
	return func(old, slice *discoveryv1.EndpointSlice) {
		obj := slice
		if obj == nil {
			obj = old
		}
		if obj.Labels[discoveryv1.LabelManagedBy] != s.ManagedBy {
			return
		}
		key := obj.Namespace + "/" + obj.Labels[discoveryv1.LabelServiceName]
		if old == nil {
			s.Expected.Created(key)
		}
		if slice == nil {
			s.Expected.Deleted(key, old.UID)
		}
		loop.Add(key)
	}
}

// Write makes, changes and deletes slices of the service with this key. What fails does
// not keep the rest from being written.
func (s *EndpointSlices) Write(ctx context.Context, key string, update, create, remove []*discoveryv1.EndpointSlice) error {
	namespace, _ := SplitKey(key)
	api := s.Client.DiscoveryV1().EndpointSlices(namespace)
	var errs []error
	for _, slice := range update {
		if _, err := api.Update(ctx, slice, metav1.UpdateOptions{}); err != nil {
			errs = append(errs, err)
		}
	}
	for _, slice := range create {
		s.Expected.ExpectCreate(key, 1)
		if _, err := api.Create(ctx, slice, metav1.CreateOptions{}); err != nil {
			s.Expected.Created(key)
			errs = append(errs, err)
		}
	}
	for _, slice := range remove {
		s.Expected.ExpectDelete(key, slice.UID)
		if err := api.Delete(ctx, slice.Name, metav1.DeleteOptions{}); err != nil {
			s.Expected.Deleted(key, slice.UID)
			if !apierrors.IsNotFound(err) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
