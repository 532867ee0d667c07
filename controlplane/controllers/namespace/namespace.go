// Package namespace empties namespaces that are being deleted and lets them go,
// and gives every other one its ServiceAccount "default" and the ConfigMap
// "kube-root-ca.crt".
//
// In comes a watch of namespaces, of these objects, and discovery; out go deletes of everything that a terminating namespace holds and, when it is
// empty, its finalizer ("Namespaces" in Kubernetes' documentation). Objects with
// finalizers of their own are waited for. The package uses client-go only.
package namespace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/informers"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

const (
	workers               = 2
	defaultServiceAccount = "default"
	rootCAConfigMap       = "kube-root-ca.crt"
	// A namespace whose objects take their time to go is looked at again after
	// baseDelay, and then ever more rarely.
	baseDelay = 20 * time.Millisecond
	maxDelay  = 10 * time.Second
)

// Controller keeps namespaces.
type Controller struct {
	client   kubernetes.Interface
	metadata metadata.Interface
	log      *slog.Logger
	queue    workqueue.TypedRateLimitingInterface[string]
	informer coreinformers.NamespaceInformer
	accounts cache.SharedIndexInformer
	// rootCA is the certificate, in PEM, that clients know the API by.
	rootCA      string
	authorities cache.SharedIndexInformer
	factory     informers.SharedInformerFactory
	// narrow and maps watch the objects of one name.
	narrow, maps informers.SharedInformerFactory
}

// New returns a Controller; nothing is read until Run. rootCA is the certificate
// authority of the API, in PEM.
func New(client kubernetes.Interface, meta metadata.Interface, rootCA []byte, log *slog.Logger) *Controller {
	if log == nil {
		log = slog.Default()
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	named := func(name string) informers.SharedInformerFactory {
		return informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", name).String()
		}))
	}
	narrow, maps := named(defaultServiceAccount), named(rootCAConfigMap)
	return &Controller{
		client: client, metadata: meta, log: log,
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](baseDelay, maxDelay)),
		informer: factory.Core().V1().Namespaces(),
		accounts: narrow.Core().V1().ServiceAccounts().Informer(),
		rootCA:   string(rootCA), authorities: maps.Core().V1().ConfigMaps().Informer(),
		factory: factory, narrow: narrow, maps: maps,
	}
}

// Run keeps namespaces until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	defer c.queue.ShutDown()
	defer c.factory.Shutdown()
	defer c.narrow.Shutdown()
	defer c.maps.Shutdown()
	if _, err := c.informer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    c.enqueue,
		UpdateFunc: func(_, obj any) { c.enqueue(obj) },
	}); err != nil {
		return fmt.Errorf("namespace controller: %w", err)
	}
	if _, err := c.accounts.AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: c.enqueueOwner}); err != nil {
		return fmt.Errorf("namespace controller: %w", err)
	}
	if _, err := c.authorities.AddEventHandler(cache.ResourceEventHandlerFuncs{
		UpdateFunc: func(_, obj any) { c.enqueueOwner(obj) }, DeleteFunc: c.enqueueOwner,
	}); err != nil {
		return fmt.Errorf("namespace controller: %w", err)
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	c.factory.Start(watching.Done())
	c.narrow.Start(watching.Done())
	c.maps.Start(watching.Done())
	if !cache.WaitForCacheSync(watching.Done(), c.informer.Informer().HasSynced, c.accounts.HasSynced, c.authorities.HasSynced) {
		return nil
	}
	for range workers {
		group.Go(func() { c.work(ctx) })
	}
	<-ctx.Done()
	return nil
}

func (c *Controller) enqueue(obj any) {
	if m, err := meta.Accessor(obj); err == nil {
		c.queue.Add(m.GetName())
	}
}

// enqueueOwner looks at the namespace of what was deleted or changed.
func (c *Controller) enqueueOwner(obj any) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	if m, err := meta.Accessor(obj); err == nil {
		c.queue.Add(m.GetNamespace())
	}
}

func (c *Controller) work(ctx context.Context) {
	for {
		name, shutdown := c.queue.Get()
		if shutdown {
			return
		}
		again, err := c.sync(ctx, name)
		c.queue.Done(name)
		switch {
		case err != nil && ctx.Err() == nil:
			c.log.Warn("namespace is tried again", "namespace", name, "error", err)
			c.queue.AddRateLimited(name)
		case again:
			c.queue.AddRateLimited(name)
		default:
			c.queue.Forget(name)
		}
	}
}

// sync does one step for a namespace and says whether to look again.
func (c *Controller) sync(ctx context.Context, name string) (again bool, err error) {
	ns, err := c.informer.Lister().Get(name)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if ns.DeletionTimestamp.IsZero() {
		return false, errors.Join(c.ensureAccount(ctx, name), c.ensureRootCA(ctx, name))
	}
	if !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
		return false, nil
	}
	left, err := c.empty(ctx, ns)
	if err != nil || left.count > 0 {
		if serr := c.report(ctx, ns, left, err); serr != nil {
			err = errors.Join(err, serr)
		}
		return true, err
	}
	return false, c.finalize(ctx, ns)
}

// ensureAccount makes the ServiceAccount that pods run under by default.
func (c *Controller) ensureAccount(ctx context.Context, namespace string) error {
	if _, ok, err := c.accounts.GetStore().GetByKey(namespace + "/" + defaultServiceAccount); err != nil || ok {
		return err
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: defaultServiceAccount}}
	_, err := c.client.CoreV1().ServiceAccounts(namespace).Create(ctx, account, metav1.CreateOptions{})
	if err == nil || apierrors.IsAlreadyExists(err) || isGone(err) {
		return nil
	}
	return fmt.Errorf("create the default service account: %w", err)
}

// ensureRootCA publishes the authority by which pods know the API (KEP-1205).
func (c *Controller) ensureRootCA(ctx context.Context, namespace string) error {
	want := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: rootCAConfigMap, Annotations: map[string]string{
			"kubernetes.io/description": "Contains a CA bundle that can be used to verify the API server of this cluster, " +
				"also under its names inside of the cluster. No other usage is guaranteed.",
		}},
		Data: map[string]string{"ca.crt": c.rootCA},
	}
	obj, ok, err := c.authorities.GetStore().GetByKey(namespace + "/" + rootCAConfigMap)
	if err != nil {
		return err
	}
	maps := c.client.CoreV1().ConfigMaps(namespace)
	switch {
	case !ok:
		_, err = maps.Create(ctx, want, metav1.CreateOptions{})
	case !equality.Semantic.DeepEqual(obj.(*corev1.ConfigMap).Data, want.Data):
		changed := obj.(*corev1.ConfigMap).DeepCopy()
		changed.Data, changed.BinaryData = want.Data, nil
		_, err = maps.Update(ctx, changed, metav1.UpdateOptions{})
	}
	if err == nil || apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) || isGone(err) {
		return nil
	}
	return fmt.Errorf("publish the authority of the API: %w", err)
}

// isGone says that the namespace is gone or on its way.
func isGone(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}

// remaining is what a namespace still holds.
type remaining struct {
	count int
	// kinds are the resources that objects are left of, in order.
	kinds []string
	// finalizers tells whether objects are waiting for finalizers of their own.
	finalizers bool
}

// empty deletes everything in a namespace and counts what is left of it.
func (c *Controller) empty(ctx context.Context, ns *corev1.Namespace) (remaining, error) {
	var left remaining
	resources, err := c.resources()
	if err != nil {
		return left, err
	}
	var errs []error
	for _, gvr := range resources {
		if ctx.Err() != nil {
			return left, ctx.Err()
		}
		if err := c.emptyOf(ctx, gvr, ns.Name, &left); err != nil {
			errs = append(errs, err)
		}
	}
	return left, errors.Join(errs...)
}

// resources are those that can be deleted in a namespace, in discovery's order. A
// group that cannot be read is an error: it may hold objects.
func (c *Controller) resources() ([]schema.GroupVersionResource, error) {
	lists, err := discovery.ServerPreferredNamespacedResources(c.client.Discovery())
	if err != nil {
		return nil, fmt.Errorf("read the API's kinds: %w", err)
	}
	var out []schema.GroupVersionResource
	for _, list := range discovery.FilteredBy(discovery.SupportsAllVerbs{Verbs: []string{"list", "deletecollection"}}, lists) {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, fmt.Errorf("parse %q: %w", list.GroupVersion, err)
		}
		for _, r := range list.APIResources {
			out = append(out, gv.WithResource(r.Name))
		}
	}
	return out, nil
}

func (c *Controller) emptyOf(ctx context.Context, gvr schema.GroupVersionResource, namespace string, left *remaining) error {
	client := c.metadata.Resource(gvr).Namespace(namespace)
	background := metav1.DeletePropagationBackground
	err := client.DeleteCollection(ctx, metav1.DeleteOptions{PropagationPolicy: &background}, metav1.ListOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete the %s: %w", gvr.GroupResource(), err)
	}
	list, err := client.List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list the %s: %w", gvr.GroupResource(), err)
	}
	if len(list.Items) == 0 {
		return nil
	}
	left.count += len(list.Items)
	left.kinds = append(left.kinds, gvr.GroupResource().String())
	for i := range list.Items {
		if len(list.Items[i].Finalizers) > 0 {
			left.finalizers = true
		}
	}
	return nil
}

// report writes what holds a namespace up into its status.
func (c *Controller) report(ctx context.Context, ns *corev1.Namespace, left remaining, failure error) error {
	conditions := conditionsOf(ns.Status.Conditions, left, failure, metav1.Now())
	if slices.EqualFunc(conditions, ns.Status.Conditions, func(a, b corev1.NamespaceCondition) bool {
		return a.Type == b.Type && a.Status == b.Status && a.Message == b.Message
	}) {
		return nil
	}
	ns = ns.DeepCopy()
	ns.Status.Conditions = conditions
	_, err := c.client.CoreV1().Namespaces().UpdateStatus(ctx, ns, metav1.UpdateOptions{})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// conditionsOf says what holds a namespace up, in the conditions that Kubernetes
// has for it.
func conditionsOf(old []corev1.NamespaceCondition, left remaining, failure error, now metav1.Time) []corev1.NamespaceCondition {
	condition := func(t corev1.NamespaceConditionType, bad bool, badReason, badMessage, goodReason, goodMessage string) corev1.NamespaceCondition {
		out := corev1.NamespaceCondition{Type: t, Status: corev1.ConditionFalse, Reason: goodReason, Message: goodMessage, LastTransitionTime: now}
		if bad {
			out.Status, out.Reason, out.Message = corev1.ConditionTrue, badReason, badMessage
		}
		for _, o := range old {
			if o.Type == t && o.Status == out.Status {
				out.LastTransitionTime = o.LastTransitionTime
			}
		}
		return out
	}
	message := ""
	if failure != nil {
		message = failure.Error()
	}
	return []corev1.NamespaceCondition{
		condition(corev1.NamespaceDeletionContentFailure, failure != nil, "ContentDeletionFailed", message,
			"ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
		condition(corev1.NamespaceContentRemaining, left.count > 0, "SomeResourcesRemain",
			fmt.Sprintf("Some resources are remaining: %v", left.kinds), "ContentRemoved", "All content successfully removed"),
		condition(corev1.NamespaceFinalizersRemaining, left.finalizers, "SomeFinalizersRemain",
			"Some content in the namespace has finalizers remaining", "ContentHasNoFinalizers", "All content-preserving finalizers finished"),
	}
}

// finalize lets a namespace go.
func (c *Controller) finalize(ctx context.Context, ns *corev1.Namespace) error {
	ns = ns.DeepCopy()
	ns.Spec.Finalizers = slices.DeleteFunc(ns.Spec.Finalizers, func(f corev1.FinalizerName) bool { return f == corev1.FinalizerKubernetes })
	_, err := c.client.CoreV1().Namespaces().Finalize(ctx, ns, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		// It is gone, or the change that was not seen yet brings it here again.
		return nil
	}
	if err != nil {
		return fmt.Errorf("finalize: %w", err)
	}
	c.log.Info("namespace is empty and gone", "namespace", ns.Name)
	return nil
}
