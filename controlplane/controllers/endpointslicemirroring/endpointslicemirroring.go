// Package endpointslicemirroring copies Endpoints that people wrote for Services
// without a selector into EndpointSlices, which is what everybody else reads. In:
// Services, Endpoints and slices by watch.
package endpointslicemirroring

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

var kind = corev1.SchemeGroupVersion.WithKind("Endpoints")

// Controller is the EndpointSlice mirroring controller.
type Controller struct {
	client    kubernetes.Interface
	services  corelisters.ServiceLister
	endpoints corelisters.EndpointsLister
	slices    discoverylisters.EndpointSliceLister
	expected  *controller.Expectations
	synced    []cache.InformerSynced
	loop      *controller.Loop
}

// New returns a controller that watches through f; f is started by the caller.
func New(client kubernetes.Interface, f informers.SharedInformerFactory) *Controller {
	svc, eps, sl := f.Core().V1().Services(), f.Core().V1().Endpoints(), f.Discovery().V1().EndpointSlices()
	c := &Controller{
		client: client, services: svc.Lister(), endpoints: eps.Lister(), slices: sl.Lister(), expected: controller.NewExpectations(),
		synced: []cache.InformerSynced{svc.Informer().HasSynced, eps.Informer().HasSynced, sl.Informer().HasSynced},
	}
	c.loop = controller.NewLoop("endpointslicemirroring", 1, c.sync)
	svc.Informer().AddEventHandler(controller.Handler(func(old, svc *corev1.Service) {
		if svc == nil {
			svc = old
		}
		c.loop.Add(controller.Key(svc))
	}))
	eps.Informer().AddEventHandler(controller.Handler(func(old, e *corev1.Endpoints) { //nolint:staticcheck // what is mirrored
		if e == nil {
			e = old
		}
		c.loop.Add(controller.Key(e))
	}))
	sl.Informer().AddEventHandler(controller.Handler(c.onSlice))
	return c
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.synced...) }

func (c *Controller) onSlice(old, s *discoveryv1.EndpointSlice) {
	obj := s
	if obj == nil {
		obj = old
	}
	if obj.Labels[discoveryv1.LabelManagedBy] != managedBy {
		return
	}
	key := obj.Namespace + "/" + obj.Labels[discoveryv1.LabelServiceName]
	if old == nil {
		c.expected.Created(key)
	}
	if s == nil {
		c.expected.Deleted(key, old.UID)
	}
	c.loop.Add(key)
}

func (c *Controller) sync(ctx context.Context, key string) error {
	if !c.expected.Satisfied(key) {
		return nil // the event that is waited for queues the key again
	}
	namespace, name := controller.SplitKey(key)
	svc, err := c.services.Services(namespace).Get(name)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if err != nil {
		svc = nil
	}
	eps, err := c.endpoints.Endpoints(namespace).Get(name)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if err != nil {
		eps = nil
		c.expected.Forget(key)
	}
	existing, err := c.slices.EndpointSlices(namespace).List(labels.SelectorFromSet(labels.Set{
		discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: managedBy,
	}))
	if err != nil {
		return err
	}
	if err := c.do(ctx, key, Decide(svc, eps, existing)); err != nil {
		return fmt.Errorf("mirror the endpoints of %s: %w", key, err)
	}
	return nil
}

func (c *Controller) do(ctx context.Context, key string, d Decision) error {
	namespace, _ := controller.SplitKey(key)
	api := c.client.DiscoveryV1().EndpointSlices(namespace)
	var errs []error
	for _, s := range d.Create {
		c.expected.ExpectCreate(key, 1)
		if _, err := api.Create(ctx, s, metav1.CreateOptions{}); err != nil {
			c.expected.Created(key)
			errs = append(errs, err)
		}
	}
	for _, s := range d.Update {
		if _, err := api.Update(ctx, s, metav1.UpdateOptions{}); err != nil {
			errs = append(errs, err)
		}
	}
	for _, s := range d.Delete {
		c.expected.ExpectDelete(key, s.UID)
		if err := api.Delete(ctx, s.Name, metav1.DeleteOptions{}); err != nil {
			c.expected.Deleted(key, s.UID)
			if !apierrors.IsNotFound(err) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
