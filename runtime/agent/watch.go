package agent

import (
	"context"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// sink takes what a watch delivers. Calls come one at a time.
type sink struct {
	replace func([]any)
	set     func(any)
	remove  func(any)
}

func (s sink) Add(obj any) error    { s.set(obj); return nil }
func (s sink) Update(obj any) error { s.set(obj); return nil }
func (s sink) Delete(obj any) error { s.remove(obj); return nil }
func (s sink) Resync() error        { return nil }
func (s sink) Replace(list []any, _ string) error {
	s.replace(list)
	return nil
}

type (
	listFunc  func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error)
	watchFunc func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error)
)

// follow lists and watches until ctx ends. onError hears of failed lists; they are
// retried from 30 ms up to 30 s apart: an object may be named by a pod a moment
// before the node may read it.
func follow(ctx context.Context, name string, example runtime.Object, selector fields.Selector, l listFunc, w watchFunc, s sink, onError func(error)) {
	restrict := func(o metav1.ListOptions) metav1.ListOptions {
		if selector != nil {
			o.FieldSelector = selector.String()
		}
		return o
	}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			obj, err := l(ctx, restrict(o))
			if err != nil && onError != nil {
				onError(err)
			}
			return obj, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			obj, err := w(ctx, restrict(o))
			if err != nil && onError != nil {
				onError(err)
			}
			return obj, err
		},
	}
	backoff := wait.Backoff{Duration: 30 * time.Millisecond, Factor: 2, Jitter: 0.3, Steps: 12, Cap: 30 * time.Second}
	cache.NewReflectorWithOptions(lw, example, s, cache.ReflectorOptions{Name: name, Backoff: &backoff}).RunWithContext(ctx)
}

// serviceCache is the cluster's services, for environment variables.
type serviceCache struct {
	mu     sync.Mutex
	synced chan struct{}
	once   sync.Once
	byKey  map[string]*v1.Service
}

func newServiceCache() *serviceCache {
	return &serviceCache{synced: make(chan struct{}), byKey: map[string]*v1.Service{}}
}

func (c *serviceCache) sink() sink {
	key := func(s *v1.Service) string { return s.Namespace + "/" + s.Name }
	return sink{
		replace: func(list []any) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.byKey = map[string]*v1.Service{}
			for _, obj := range list {
				s := obj.(*v1.Service)
				c.byKey[key(s)] = s
			}
			c.once.Do(func() { close(c.synced) })
		},
		set: func(obj any) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.byKey[key(obj.(*v1.Service))] = obj.(*v1.Service)
		},
		remove: func(obj any) {
			if s, ok := obj.(*v1.Service); ok {
				c.mu.Lock()
				defer c.mu.Unlock()
				delete(c.byKey, key(s))
			}
		},
	}
}

// wait returns all services once they are known.
func (c *serviceCache) wait(ctx context.Context) ([]*v1.Service, error) {
	select {
	case <-c.synced:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return c.known(), nil
}

// known returns the services that are known now.
func (c *serviceCache) known() []*v1.Service {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*v1.Service, 0, len(c.byKey))
	for _, s := range c.byKey {
		out = append(out, s)
	}
	return out
}
