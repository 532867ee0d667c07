// Package endpointslicemirroring copies Endpoints that people wrote for Services
// without a selector into EndpointSlices, which is what everybody else reads. In:
// Services, Endpoints and slices by watch.
package endpointslicemirroring

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

var kind = corev1.SchemeGroupVersion.WithKind("Endpoints")

// Controller is the EndpointSlice mirroring controller.
type Controller struct {
	services  corelisters.ServiceLister
	endpoints corelisters.EndpointsLister
	slices    controller.EndpointSlices
	synced    []cache.InformerSynced
	loop      *controller.Loop
}

// New returns a controller that watches through f; f is started by the caller.
func New(client kubernetes.Interface, f informers.SharedInformerFactory) *Controller {
	svc, eps, sl := f.Core().V1().Services(), f.Core().V1().Endpoints(), f.Discovery().V1().EndpointSlices()
	c := &Controller{
		services: svc.Lister(), endpoints: eps.Lister(),
		slices: controller.EndpointSlices{Client: client, Lister: sl.Lister(), ManagedBy: managedBy},
		synced: []cache.InformerSynced{svc.Informer().HasSynced, eps.Informer().HasSynced, sl.Informer().HasSynced},
	}
	c.loop = controller.NewLoop("endpointslicemirroring", 1, c.sync)
	c.slices.Expected = controller.NewExpectations(c.loop.AddAfter)
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
	sl.Informer().AddEventHandler(controller.Handler(c.slices.Handler(c.loop)))
	return c
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.synced...) }

func (c *Controller) sync(ctx context.Context, key string) error {
	if !c.slices.Expected.Satisfied(key) {
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
		c.slices.Expected.Forget(key)
	}
	existing, err := c.slices.Of(namespace, name)
	if err != nil {
		return err
	}
	d := Decide(svc, eps, existing)
	if err := c.slices.Write(ctx, key, d.Update, d.Create, d.Delete); err != nil {
		return fmt.Errorf("mirror the endpoints of %s: %w", key, err)
	}
	return nil
}
