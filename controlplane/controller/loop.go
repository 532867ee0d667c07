// Package controller holds what every controller shares: the loop that takes
// keys off a queue, the expectations that keep a stale cache from being acted on
// twice, and the claiming of objects by selector and owner reference. Each kind's
// controller is a package of its own under controlplane/controllers.
//
// Controllers meet in the Kubernetes API and nowhere else: they import client-go
// and neither the API server nor each other. What a controller decides is a pure
// function of a snapshot and a time; its loop only feeds that function.
package controller

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// Loop runs a controller: keys are added by watch events, and one of several
// workers calls the sync function for each key. A key is never synced by two
// workers at once; a failed key is retried with back-off from 5 ms to 30 s.
type Loop struct {
	name    string
	workers int
	sync    func(ctx context.Context, key string) error
	queue   workqueue.TypedRateLimitingInterface[string]
}

// NewLoop returns a loop that calls sync from the given number of workers.
func NewLoop(name string, workers int, sync func(ctx context.Context, key string) error) *Loop {
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[string](5*time.Millisecond, 30*time.Second)
	return &Loop{
		name:    name,
		workers: workers,
		sync:    sync,
		queue:   workqueue.NewTypedRateLimitingQueueWithConfig(limiter, workqueue.TypedRateLimitingQueueConfig[string]{Name: name}),
	}
}

// Add queues a key.
func (l *Loop) Add(key string) { l.queue.Add(key) }

// AddWhere queues the keys of those objects for which f says so.
func AddWhere[T metav1.Object](l *Loop, objects []T, f func(T) bool) {
	for _, o := range objects {
		if f(o) {
			l.Add(cache.NewObjectName(o.GetNamespace(), o.GetName()).String())
		}
	}
}

// AddAfter queues a key once d has passed.
func (l *Loop) AddAfter(key string, d time.Duration) { l.queue.AddAfter(key, d) }

// Run waits for the caches and works until ctx ends.
func (l *Loop) Run(ctx context.Context, synced ...cache.InformerSynced) error {
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return ctx.Err()
	}
	var wg sync.WaitGroup
	for range l.workers {
		wg.Go(func() {
			for l.next(ctx) {
			}
		})
	}
	<-ctx.Done()
	l.queue.ShutDown()
	wg.Wait()
	return nil
}

func (l *Loop) next(ctx context.Context) bool {
	key, quit := l.queue.Get()
	if quit {
		return false
	}
	defer l.queue.Done(key)
	if err := l.guarded(ctx, key); err != nil {
		if ctx.Err() == nil {
			slog.Debug("sync failed, will retry", "controller", l.name, "key", key, "error", err)
		}
		l.queue.AddRateLimited(key)
		return true
	}
	l.queue.Forget(key)
	return true
}

// guarded turns a panic of one object's sync into an error, so that one bad
// object cannot stop the control plane.
func (l *Loop) guarded(ctx context.Context, key string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
			slog.Error("controller panicked", "controller", l.name, "key", key, "panic", p)
		}
	}()
	return l.sync(ctx, key)
}

// Key returns the queue key of an object or of a deletion tombstone.
func Key(obj any) string {
	key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj)
	if err != nil {
		return ""
	}
	return key
}

// Deleted unwraps the object that a delete handler is given.
func Deleted[T any](obj any) (T, bool) {
	if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = t.Obj
	}
	v, ok := obj.(T)
	return v, ok
}

// Handler calls f with the old (or zero) and new (or zero) object of each event.
func Handler[T any](f func(old, new *T)) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			if n, ok := obj.(*T); ok {
				f(nil, n)
			}
		},
		UpdateFunc: func(old, obj any) {
			o, _ := old.(*T)
			if n, ok := obj.(*T); ok {
				f(o, n)
			}
		},
		DeleteFunc: func(obj any) {
			if o, ok := Deleted[*T](obj); ok {
				f(o, nil)
			}
		},
	}
}
