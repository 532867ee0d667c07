// Package serviceloadbalancer gives Services of type LoadBalancer their addresses,
// and says which node announces them: those of the nodes, shared by port, or each one
// of its own from a pool. In: Services, Nodes and EndpointSlices by watch. Those with
// another loadBalancerClass are left alone.
package serviceloadbalancer

import (
	"context"
	"errors"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// everything is the one key of the loop: what one balancer gets another cannot have.
const everything = "load balancers"

// Controller is the load balancer controller.
type Controller struct {
	cfg      Config
	client   kubernetes.Interface
	events   record.EventRecorder
	services corelisters.ServiceLister
	nodes    corelisters.NodeLister
	slices   discoverylisters.EndpointSliceLister
	synced   []cache.InformerSynced
	loop     *controller.Loop
	// problems that there is an event of. Used by the loop alone.
	problems map[types.UID]string
}

// New returns a controller that watches through f; f is started by the caller.
func New(cfg Config, client kubernetes.Interface, f informers.SharedInformerFactory, events record.EventRecorder) *Controller {
	svc, nodes, sl := f.Core().V1().Services(), f.Core().V1().Nodes(), f.Discovery().V1().EndpointSlices()
	c := &Controller{
		cfg: cfg, client: client, events: events, services: svc.Lister(), nodes: nodes.Lister(), slices: sl.Lister(),
		synced:   []cache.InformerSynced{svc.Informer().HasSynced, nodes.Informer().HasSynced, sl.Informer().HasSynced},
		problems: map[types.UID]string{},
	}
	c.loop = controller.NewLoop("serviceloadbalancer", 1, func(ctx context.Context, _ string) error { return c.sync(ctx) })
	svc.Informer().AddEventHandler(controller.Handler(func(_, _ *corev1.Service) { c.loop.Add(everything) }))
	nodes.Informer().AddEventHandler(controller.Handler(func(old, n *corev1.Node) {
		if old == nil || n == nil || !slices.EqualFunc(usable([]*corev1.Node{old}), usable([]*corev1.Node{n}), node.equal) {
			c.loop.Add(everything)
		}
	}))
	sl.Informer().AddEventHandler(controller.Handler(func(old, s *discoveryv1.EndpointSlice) {
		if old == nil || s == nil || !sameReady(old, s) {
			c.loop.Add(everything)
		}
	}))
	return c
}

func sameReady(a, b *discoveryv1.EndpointSlice) bool {
	return maps.EqualFunc(readyOn([]*discoveryv1.EndpointSlice{a}), readyOn([]*discoveryv1.EndpointSlice{b}), maps.Equal)
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.synced...) }

func (c *Controller) sync(ctx context.Context) error {
	var s Snapshot
	var errs [3]error
	s.Services, errs[0] = c.services.List(labels.Everything())
	s.Nodes, errs[1] = c.nodes.List(labels.Everything())
	s.Slices, errs[2] = c.slices.List(labels.Everything())
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	outcomes := Decide(c.cfg, s)
	var failed []error
	for _, svc := range s.Services {
		outcome, mine := outcomes[key(svc)]
		var err error
		switch {
		case mine:
			err = c.ensure(ctx, svc, outcome)
		case slices.Contains(svc.Finalizers, Finalizer) && !foreign(svc):
			err = c.takeDown(ctx, svc)
		}
		if err != nil && !apierrors.IsNotFound(err) {
			failed = append(failed, err)
		}
	}
	c.forget(s.Services)
	return errors.Join(failed...)
}

// foreign tells whether a load balancer is another controller's.
func foreign(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer && svc.Spec.LoadBalancerClass != nil && *svc.Spec.LoadBalancerClass != Class
}

// ensure writes what a load balancer should be: the finalizer before the first
// address, so that it is always taken down.
func (c *Controller) ensure(ctx context.Context, svc *corev1.Service, o Outcome) error {
	api := c.client.CoreV1().Services(svc.Namespace)
	next := svc.DeepCopy()
	if !slices.Contains(next.Finalizers, Finalizer) {
		next.Finalizers = append(next.Finalizers, Finalizer)
	}
	setNode(next, o.Node)
	var err error
	if !apiequality.Semantic.DeepEqual(svc.ObjectMeta, next.ObjectMeta) {
		if next, err = api.Update(ctx, next, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	if !apiequality.Semantic.DeepEqual(next.Status.LoadBalancer.Ingress, o.Ingress) {
		next = next.DeepCopy()
		next.Status.LoadBalancer.Ingress = o.Ingress
		if _, err := api.UpdateStatus(ctx, next, metav1.UpdateOptions{}); err != nil {
			return err
		}
		if len(o.Ingress) > 0 && !hasIngress(svc) {
			c.events.Event(svc, corev1.EventTypeNormal, "EnsuredLoadBalancer", "Ensured load balancer")
		}
	}
	if o.Problem != "" && c.problems[svc.UID] != o.Problem {
		c.events.Eventf(svc, corev1.EventTypeWarning, "SyncLoadBalancerFailed", "Error syncing load balancer: failed to ensure load balancer: %s", o.Problem)
	}
	c.problems[svc.UID] = o.Problem
	return nil
}

func setNode(svc *corev1.Service, node string) {
	if node == "" {
		delete(svc.Annotations, AnnouncedBy)
		return
	}
	metav1.SetMetaDataAnnotation(&svc.ObjectMeta, AnnouncedBy, node)
}

// takeDown leaves a service that is deleted, or of another type now.
func (c *Controller) takeDown(ctx context.Context, svc *corev1.Service) error {
	api := c.client.CoreV1().Services(svc.Namespace)
	next := svc.DeepCopy()
	if hasIngress(svc) {
		next.Status.LoadBalancer = corev1.LoadBalancerStatus{}
		var err error
		if next, err = api.UpdateStatus(ctx, next, metav1.UpdateOptions{}); err != nil {
			return err
		}
		next = next.DeepCopy()
	}
	setNode(next, "")
	next.Finalizers = slices.DeleteFunc(next.Finalizers, func(f string) bool { return f == Finalizer })
	if _, err := api.Update(ctx, next, metav1.UpdateOptions{}); err != nil {
		return err
	}
	if svc.DeletionTimestamp == nil {
		c.events.Event(svc, corev1.EventTypeNormal, "DeletedLoadBalancer", "Deleted load balancer")
	}
	return nil
}

// forget drops the problems of services that are gone.
func (c *Controller) forget(services []*corev1.Service) {
	there := map[types.UID]bool{}
	for _, svc := range services {
		there[svc.UID] = true
	}
	maps.DeleteFunc(c.problems, func(uid types.UID, problem string) bool { return !there[uid] || problem == "" })
}
