package controller

import (
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// Newest lets a controller read its own writes: its cache may be older than what it
// last wrote, and a status counted from an old one would be counted wrong. Safe for
// concurrent use.
type Newest[T metav1.Object] struct {
	mu    sync.Mutex
	wrote map[string]T
}

// Wrote remembers the answer to a write.
func (n *Newest[T]) Wrote(key string, o T) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.wrote == nil {
		n.wrote = map[string]T{}
	}
	n.wrote[key] = o
}

// Of returns what was written last, or what the cache has, whichever is newer.
func (n *Newest[T]) Of(key string, cached T) T {
	n.mu.Lock()
	defer n.mu.Unlock()
	own, ok := n.wrote[key]
	if !ok {
		return cached
	}
	order, err := resourceversion.CompareResourceVersion(own.GetResourceVersion(), cached.GetResourceVersion())
	if err == nil && order > 0 && own.GetUID() == cached.GetUID() {
		return own
	}
	delete(n.wrote, key)
	return cached
}

// Forget drops the key, when its object is gone.
func (n *Newest[T]) Forget(key string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.wrote, key)
}
