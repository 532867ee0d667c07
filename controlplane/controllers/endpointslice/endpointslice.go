// Package endpointslice keeps, for each Service with a selector, the addresses of
// the pods behind it: as EndpointSlices, and as an Endpoints object for clients
// that still read those. In: Services, pods and slices by watch.
package endpointslice

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

var kind = corev1.SchemeGroupVersion.WithKind("Service")

// Controller is the EndpointSlice controller.
type Controller struct {
	client    kubernetes.Interface
	services  corelisters.ServiceLister
	pods      corelisters.PodLister
	nodes     corelisters.NodeLister
	slices    controller.EndpointSlices
	endpoints corelisters.EndpointsLister
	synced    []cache.InformerSynced
	loop      *controller.Loop
	events    record.EventRecorder

	mu sync.Mutex
	// said is what the last event of a family of a Service says. Guarded by mu.
	said map[family]string
}

// family of a Service.
type family struct {
	service types.UID
	family  corev1.IPFamily
}

// New returns a controller that watches through f; f is started by the caller.
func New(client kubernetes.Interface, f informers.SharedInformerFactory, events record.EventRecorder) *Controller {
	core := f.Core().V1()
	svc, pods, nodes, eps, sl := core.Services(), core.Pods(), core.Nodes(), core.Endpoints(), f.Discovery().V1().EndpointSlices()
	c := &Controller{
		client: client, events: events, said: map[family]string{}, services: svc.Lister(), pods: pods.Lister(), nodes: nodes.Lister(), endpoints: eps.Lister(),
		slices: controller.EndpointSlices{Client: client, Lister: sl.Lister(), ManagedBy: managedBy},
		synced: []cache.InformerSynced{svc.Informer().HasSynced, pods.Informer().HasSynced, nodes.Informer().HasSynced, sl.Informer().HasSynced, eps.Informer().HasSynced},
	}
	c.loop = controller.NewLoop("endpointslice", 3, c.sync)
	c.slices.Expected = controller.NewExpectations(c.loop.AddAfter)
	svc.Informer().AddEventHandler(controller.Handler(func(old, svc *corev1.Service) {
		if svc == nil {
			svc = old
			c.forget(svc.UID)
		}
		c.loop.Add(controller.Key(svc))
	}))
	pods.Informer().AddEventHandler(controller.Handler(c.onPod))
	nodes.Informer().AddEventHandler(controller.Handler(c.onNode))
	sl.Informer().AddEventHandler(controller.Handler(c.slices.Handler(c.loop)))
	return c
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.synced...) }

// onPod queues the Services that select the pod, if what they publish of it changed.
func (c *Controller) onPod(old, pod *corev1.Pod) {
	if old != nil && pod != nil && !published(old, pod) {
		return
	}
	for i, p := range []*corev1.Pod{old, pod} {
		if p == nil || (i == 1 && old != nil && maps.Equal(old.Labels, pod.Labels)) {
			continue
		}
		services, err := c.services.Services(p.Namespace).List(labels.Everything())
		if err != nil {
			continue
		}
		for _, svc := range services {
			if len(svc.Spec.Selector) > 0 && labels.SelectorFromSet(svc.Spec.Selector).Matches(labels.Set(p.Labels)) {
				c.loop.Add(controller.Key(svc))
			}
		}
	}
}

// onNode queues every Service when a node's zone becomes known or changes: it stands in
// the endpoints. What else makes zones larger or smaller concerns those that are allotted.
func (c *Controller) onNode(old, n *corev1.Node) {
	zone := func(n *corev1.Node) string {
		if n == nil {
			return ""
		}
		return n.Labels[corev1.LabelTopologyZone]
	}
	moved := n != nil && zone(old) != zone(n) // the endpoints of a node that is gone go with their pods
	if !moved && shareOf(old) == shareOf(n) {
		return
	}
	services, err := c.services.List(labels.Everything())
	if err != nil {
		return
	}
	controller.AddWhere(c.loop, services, func(svc *corev1.Service) bool { return moved || Auto(svc) })
}

func published(a, b *corev1.Pod) bool {
	return a.Status.PodIP != b.Status.PodIP || !slices.Equal(a.Status.PodIPs, b.Status.PodIPs) || controller.PodReady(a) != controller.PodReady(b) ||
		(a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil) || a.Spec.NodeName != b.Spec.NodeName ||
		belongs(a) != belongs(b) || !maps.Equal(a.Labels, b.Labels)
}

func (c *Controller) sync(ctx context.Context, key string) error {
	if !c.slices.Expected.Satisfied(key) {
		return nil // the event that is waited for queues the key again
	}
	namespace, name := controller.SplitKey(key)
	svc, err := c.services.Services(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		c.slices.Expected.Forget(key)
		return nil // the garbage collector removes what the Service owned
	}
	if err != nil {
		return err
	}
	if len(svc.Spec.Selector) == 0 || svc.Spec.Type == corev1.ServiceTypeExternalName || svc.DeletionTimestamp != nil {
		return nil // such endpoints are made by hand
	}
	pods, err := c.pods.Pods(namespace).List(labels.SelectorFromSet(svc.Spec.Selector))
	if err != nil {
		return err
	}
	existing, err := c.slices.Of(namespace, name)
	if err != nil {
		return err
	}
	places, err := c.places(svc, pods)
	if err != nil {
		return err
	}
	d := Decide(svc, pods, places, existing)
	if err := c.slices.Write(ctx, key, d.Update, d.Create, d.Delete); err != nil {
		return fmt.Errorf("endpoint slices of %s: %w", key, err)
	}
	c.tell(svc, d.Allotted)
	return c.syncEndpoints(ctx, d.Endpoints)
}

func (c *Controller) places(svc *corev1.Service, pods []*corev1.Pod) (Places, error) {
	out := Places{Zones: map[string]string{}}
	for _, p := range pods {
		if n, err := c.nodes.Get(p.Spec.NodeName); err == nil {
			out.Zones[n.Name] = n.Labels[corev1.LabelTopologyZone]
		}
	}
	if !Auto(svc) {
		return out, nil
	}
	nodes, err := c.nodes.List(labels.Everything())
	out.Capacity = CapacityOf(nodes)
	return out, err
}

// tell says in events whether endpoints are allotted to zones, when that changes or its
// reason does (KEP-2433, section "Events").
func (c *Controller) tell(svc *corev1.Service, allotted []Allotment) {
	now := map[corev1.IPFamily]string{}
	for _, a := range allotted {
		now[a.Family] = "Endpoints are allotted to zones"
		if a.Problem != "" {
			now[a.Family] = "Endpoints are not allotted to zones: " + a.Problem
		}
		now[a.Family] += ", addressType: " + string(a.Family)
	}
	for _, f := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
		of, text := family{svc.UID, f}, now[f]
		c.mu.Lock()
		before := c.said[of]
		if text == "" {
			delete(c.said, of)
		} else {
			c.said[of] = text
		}
		c.mu.Unlock()
		on := slices.Contains(allotted, Allotment{Family: f})
		switch {
		case text == before:
		case text == "":
			c.events.Event(svc, corev1.EventTypeNormal, "TopologyAwareHintsDisabled", "Endpoints are no longer to be allotted to zones, addressType: "+string(f))
		case on:
			c.events.Event(svc, corev1.EventTypeNormal, "TopologyAwareHintsEnabled", text)
		default:
			c.events.Event(svc, corev1.EventTypeWarning, "TopologyAwareHintsDisabled", text)
		}
	}
}

func (c *Controller) forget(service types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.said, func(f family, _ string) bool { return f.service == service })
}

func (c *Controller) syncEndpoints(ctx context.Context, want *corev1.Endpoints) error { //nolint:staticcheck // served for old clients
	have, err := c.endpoints.Endpoints(want.Namespace).Get(want.Name)
	api := c.client.CoreV1().Endpoints(want.Namespace)
	if apierrors.IsNotFound(err) {
		_, err = api.Create(ctx, want, metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	if apiequality.Semantic.DeepEqual(have.Subsets, want.Subsets) && maps.Equal(have.Labels, want.Labels) {
		return nil
	}
	next := have.DeepCopy()
	next.Subsets, next.Labels = want.Subsets, want.Labels
	_, err = api.Update(ctx, next, metav1.UpdateOptions{})
	return err
}
