// Package apply is the reconciler's hands: it reads, watches, applies and deletes
// objects through the Kubernetes API. It decides nothing.
package apply

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/cache"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/reconciler/plan"
	"gitk8s.dev/gitk8s/reconciler/render"
)

// Cluster is a Kubernetes API with a cache of the objects that Applications own.
// Safe for concurrent use.
type Cluster struct {
	client dynamic.Interface
	mapper *restmapper.DeferredDiscoveryRESTMapper
	disco  discovery.DiscoveryInterface

	mu     sync.RWMutex
	caches map[schema.GroupVersionResource]cache.SharedIndexInformer
	// ended are Jobs that have finished and do not exist any more.
	ended map[render.ID]*unstructured.Unstructured
}

// NewCluster returns a cluster; Watch must run before Live and Owned are called.
func NewCluster(client dynamic.Interface, disco discovery.DiscoveryInterface) *Cluster {
	return &Cluster{
		client: client, disco: disco,
		mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(disco)),
		caches: map[schema.GroupVersionResource]cache.SharedIndexInformer{},
		ended:  map[render.ID]*unstructured.Unstructured{},
	}
}

// notOwned are resources that no manifest makes, or that controllers make from
// what manifests made, copying its labels.
var notOwned = []schema.GroupResource{
	{Resource: "events"}, {Group: "events.k8s.io", Resource: "events"}, {Resource: "endpoints"},
	{Group: "discovery.k8s.io", Resource: "endpointslices"}, {Group: "coordination.k8s.io", Resource: "leases"},
	{Resource: "nodes"}, {Group: "apps", Resource: "controllerrevisions"}, {Group: v1alpha1.GroupName, Resource: "revisions"},
}

// Watch fills the caches with every object that carries the application label and
// calls changed with its owner whenever one of them changes. It returns when the
// caches are filled; they are kept up to date until ctx ends.
func (c *Cluster) Watch(ctx context.Context, changed func(plan.Owner, render.ID)) error {
	lists, err := c.disco.ServerPreferredResources()
	if err != nil {
		return fmt.Errorf("discover the resources that are served: %w", err)
	}
	factory := dynamicinformer.NewFilteredDynamicSharedInformerFactory(c.client, 0, metav1.NamespaceAll, func(o *metav1.ListOptions) {
		o.LabelSelector = v1alpha1.LabelApplication
	})
	tell := func(obj any, first func(*unstructured.Unstructured)) {
		if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = t.Obj
		}
		u, ok := obj.(*unstructured.Unstructured)
		if !ok {
			return
		}
		first(u)
		if owner, ok := plan.OwnerOf(u); ok {
			changed(owner, render.IDOf(u))
		}
	}
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			continue
		}
		for _, r := range list.APIResources {
			gvr := gv.WithResource(r.Name)
			if !ownable(gvr, r.Verbs) {
				continue
			}
			informer := factory.ForResource(gvr).Informer()
			if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
				AddFunc:    func(obj any) { tell(obj, c.forget) },
				UpdateFunc: func(_, obj any) { tell(obj, c.forget) },
				DeleteFunc: func(obj any) { tell(obj, c.remember) },
			}); err != nil {
				return err
			}
			c.mu.Lock()
			c.caches[gvr] = informer
			c.mu.Unlock()
		}
	}
	factory.Start(ctx.Done())
	for gvr, ok := range factory.WaitForCacheSync(ctx.Done()) {
		if !ok {
			return fmt.Errorf("watch %s: %w", gvr.Resource, context.Cause(ctx))
		}
	}
	return nil
}

func ownable(gvr schema.GroupVersionResource, verbs metav1.Verbs) bool {
	for _, verb := range []string{"list", "watch", "patch", "delete"} {
		if !slices.Contains(verbs, verb) {
			return false
		}
	}
	return !slices.Contains(notOwned, gvr.GroupResource())
}

// Namespaced says whether a kind lives in namespaces, and whether it is served.
func (c *Cluster) Namespaced(gvk schema.GroupVersionKind) (namespaced, known bool) {
	m, err := c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return false, false
	}
	return m.Scope.Name() == meta.RESTScopeNameNamespace, true
}

func (c *Cluster) resource(u *unstructured.Unstructured) (dynamic.ResourceInterface, schema.GroupVersionResource, error) {
	gvk := u.GroupVersionKind()
	m, err := c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return nil, schema.GroupVersionResource{}, fmt.Errorf("kind %s is not served: %w", gvk, err)
	}
	if m.Scope.Name() == meta.RESTScopeNameNamespace {
		return c.client.Resource(m.Resource).Namespace(u.GetNamespace()), m.Resource, nil
	}
	return c.client.Resource(m.Resource), m.Resource, nil
}

// Cached returns an owned object as it was last seen; nil if there is none.
func (c *Cluster) Cached(u *unstructured.Unstructured) *unstructured.Unstructured {
	_, gvr, err := c.resource(u)
	if err != nil {
		return nil
	}
	c.mu.RLock()
	informer := c.caches[gvr]
	c.mu.RUnlock()
	if informer == nil {
		return nil
	}
	obj, ok, err := informer.GetStore().GetByKey(cache.NewObjectName(u.GetNamespace(), u.GetName()).String())
	if err != nil || !ok {
		return nil
	}
	live, _ := obj.(*unstructured.Unstructured)
	return live
}

// Live returns an object as the cluster has it; nil if it does not exist. Owned
// objects come from the cache, others are asked for.
func (c *Cluster) Live(ctx context.Context, u *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	if live := c.Cached(u); live != nil {
		return live, nil
	}
	api, _, err := c.resource(u)
	if err != nil {
		return nil, err
	}
	live, err := api.Get(ctx, u.GetName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return live, err
}

// Owned returns all objects of an Application from the cache.
func (c *Cluster) Owned(owner plan.Owner) []*unstructured.Unstructured {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var out []*unstructured.Unstructured
	for _, informer := range c.caches {
		for _, obj := range informer.GetStore().List() {
			u, ok := obj.(*unstructured.Unstructured)
			if !ok {
				continue
			}
			if by, ok := plan.OwnerOf(u); ok && by == owner {
				out = append(out, u)
			}
		}
	}
	return out
}

// Apply makes the object so by server-side apply. With dryRun the server answers
// what it would become and changes nothing.
func (c *Cluster) Apply(ctx context.Context, u *unstructured.Unstructured, dryRun bool) (*unstructured.Unstructured, error) {
	api, _, err := c.resource(u)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(u.Object)
	if err != nil {
		return nil, err
	}
	force := true // what Git says wins; who owned the field before is told by the diff
	o := metav1.PatchOptions{FieldManager: v1alpha1.FieldManager, Force: &force, FieldValidation: metav1.FieldValidationStrict}
	if dryRun {
		o.DryRun = []string{metav1.DryRunAll}
	} else {
		c.forget(u) // what ended before is not what comes now
	}
	return api.Patch(ctx, u.GetName(), applyPatchType, body, o)
}

// Delete removes an object and, in the background, what it owns. An object that
// was replaced meanwhile stays.
func (c *Cluster) Delete(ctx context.Context, u *unstructured.Unstructured) error {
	api, _, err := c.resource(u)
	if err != nil {
		return err
	}
	background := metav1.DeletePropagationBackground
	err = api.Delete(ctx, u.GetName(), metav1.DeleteOptions{
		PropagationPolicy: &background, Preconditions: metav1.NewUIDPreconditions(string(u.GetUID())),
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// Digest identifies the content of a manifest.
func Digest(u *unstructured.Unstructured) string {
	b, err := json.Marshal(u.Object) // map keys are sorted
	if err != nil {
		slog.Error("cannot encode a manifest", "object", render.IDOf(u), "error", err)
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:10])
}
