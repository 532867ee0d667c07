package garbagecollector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

const (
	workers = 4
	// baseDelay and maxDelay are the back-off of an object that could not be
	// handled.
	baseDelay, maxDelay = 5 * time.Millisecond, 30 * time.Second
)

// kind is a kind that is watched.
type kind struct {
	gvr        schema.GroupVersionResource
	namespaced bool
}

// ignored are kinds that own nothing and come in numbers.
var ignored = map[schema.GroupKind]bool{
	{Kind: "Event"}:                         true,
	{Group: "events.k8s.io", Kind: "Event"}: true,
}

// Controller collects garbage.
type Controller struct {
	discovery discovery.DiscoveryInterface
	metadata  metadata.Interface
	log       *slog.Logger

	mu    sync.Mutex
	kinds map[schema.GroupKind]kind
	graph *graph

	check  workqueue.TypedRateLimitingInterface[types.UID]
	orphan workqueue.TypedRateLimitingInterface[types.UID]
	synced chan struct{}
}

// New returns a Controller; nothing is read until Run.
func New(disc discovery.DiscoveryInterface, client metadata.Interface, log *slog.Logger) *Controller {
	if log == nil {
		log = slog.Default()
	}
	c := &Controller{
		discovery: disc, metadata: client, log: log,
		kinds: map[schema.GroupKind]kind{}, synced: make(chan struct{}),
		check: newQueue(), orphan: newQueue(),
	}
	c.graph = newGraph(func(gk schema.GroupKind) bool { return c.kinds[gk].namespaced })
	return c
}

func newQueue() workqueue.TypedRateLimitingInterface[types.UID] {
	return workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[types.UID](baseDelay, maxDelay))
}

// Synced is closed once every kind has been listed. Collection begins then.
func (c *Controller) Synced() <-chan struct{} { return c.synced }

// Run collects until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	defer c.check.ShutDown()
	defer c.orphan.ShutDown()
	if err := c.discover(ctx); err != nil {
		return err
	}
	factory := metadatainformer.NewSharedInformerFactory(c.metadata, 0)
	defer factory.Shutdown()
	var ready []cache.InformerSynced
	for gk, k := range c.kinds {
		informer := factory.ForResource(k.gvr).Informer()
		if err := informer.SetTransform(slim); err != nil {
			return fmt.Errorf("garbage collector: %w", err)
		}
		registration, err := informer.AddEventHandler(c.handler(gk))
		if err != nil {
			return fmt.Errorf("garbage collector: watch %s: %w", gk, err)
		}
		ready = append(ready, registration.HasSynced)
	}
	// The informers end with this context, before Shutdown waits for them.
	watching, stop := context.WithCancel(ctx)
	defer stop()
	factory.Start(watching.Done())
	if !cache.WaitForCacheSync(watching.Done(), ready...) {
		return nil
	}
	close(c.synced)
	for range workers {
		group.Go(func() { c.work(ctx, c.check, c.attemptDelete) })
	}
	group.Go(func() { c.work(ctx, c.orphan, c.attemptOrphan) })
	<-ctx.Done()
	return nil
}

// discover learns the kinds. It retries while the API does not answer.
func (c *Controller) discover(ctx context.Context) error {
	backoff := wait.Backoff{Duration: 50 * time.Millisecond, Factor: 2, Steps: 1 << 20, Cap: 10 * time.Second}
	err := wait.ExponentialBackoffWithContext(ctx, backoff, func(context.Context) (bool, error) {
		lists, err := discovery.ServerPreferredResources(c.discovery)
		var partial *discovery.ErrGroupDiscoveryFailed
		if err != nil && (!errors.As(err, &partial) || len(lists) == 0) {
			c.log.Warn("garbage collector cannot read the API's kinds, trying again", "error", err)
			return false, nil
		}
		usable := discovery.FilteredBy(discovery.SupportsAllVerbs{Verbs: []string{"delete", "list", "watch"}}, lists)
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, list := range usable {
			gv, err := schema.ParseGroupVersion(list.GroupVersion)
			if err != nil {
				return false, fmt.Errorf("parse %q: %w", list.GroupVersion, err)
			}
			for _, r := range list.APIResources {
				gk := schema.GroupKind{Group: gv.Group, Kind: r.Kind}
				if !ignored[gk] {
					c.kinds[gk] = kind{gvr: gv.WithResource(r.Name), namespaced: r.Namespaced}
				}
			}
		}
		return len(c.kinds) > 0, nil
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("garbage collector: discover: %w", err)
	}
	return nil
}

// slim drops what the graph does not need.
func slim(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil {
		m.SetManagedFields(nil)
		m.SetAnnotations(nil)
		m.SetLabels(nil)
	}
	return obj, nil
}

func (c *Controller) handler(gk schema.GroupKind) cache.ResourceEventHandler {
	observe := func(obj any) {
		if m, err := meta.Accessor(obj); err == nil {
			c.apply(func() work { return c.graph.observe(gk, m) })
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    observe,
		UpdateFunc: func(_, obj any) { observe(obj) },
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			if m, err := meta.Accessor(obj); err == nil {
				c.apply(func() work { return c.graph.forget(m.GetUID()) })
			}
		},
	}
}

// apply changes the graph and queues what follows.
func (c *Controller) apply(change func() work) {
	c.mu.Lock()
	w := change()
	c.mu.Unlock()
	for _, id := range w.check {
		c.check.Add(id)
	}
	for _, id := range w.orphan {
		c.orphan.Add(id)
	}
}

func (c *Controller) work(ctx context.Context, queue workqueue.TypedRateLimitingInterface[types.UID], do func(context.Context, types.UID) error) {
	for {
		id, shutdown := queue.Get()
		if shutdown {
			return
		}
		err := do(ctx, id)
		queue.Done(id)
		if err == nil || ctx.Err() != nil {
			queue.Forget(id)
			continue
		}
		c.log.Debug("garbage collector tries an object again", "uid", id, "error", err)
		queue.AddRateLimited(id)
	}
}

// snapshot is a node copied out of the graph.
type snapshot struct {
	node
	kind     kind
	known    bool
	blocking []types.UID
}

func (c *Controller) snapshot(id types.UID) (snapshot, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, ok := c.graph.nodes[id]
	if !ok {
		return snapshot{}, false
	}
	s := snapshot{node: *n, blocking: blocking(n)}
	s.kind, s.known = c.kinds[n.gk]
	s.dependents = make(map[types.UID]*node, len(n.dependents))
	for k, d := range n.dependents {
		one := *d
		s.dependents[k] = &one
	}
	return s, true
}

func (c *Controller) resource(k kind, namespace string) metadata.ResourceInterface {
	if k.namespaced {
		return c.metadata.Resource(k.gvr).Namespace(namespace)
	}
	return c.metadata.Resource(k.gvr)
}

// live reads an object; it is nil when there is none, or another one of its name.
func (c *Controller) live(ctx context.Context, k kind, id identity) (*metav1.PartialObjectMetadata, error) {
	if k.namespaced && id.namespace == "" {
		return nil, nil
	}
	obj, err := c.resource(k, id.namespace).Get(ctx, id.name, metav1.GetOptions{})
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get %s %s/%s: %w", id.gk, id.namespace, id.name, err)
	}
	if obj.GetUID() != id.uid {
		return nil, nil
	}
	return obj, nil
}
