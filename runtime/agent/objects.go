package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// objectWait bounds how long a container's start waits for an object to be read.
const objectWait = 10 * time.Second

// objectKey names a ConfigMap, a Secret or a claim.
type objectKey struct{ kind, namespace, name string }

const (
	kindConfigMap = "ConfigMap"
	kindSecret    = "Secret"
	kindClaim     = "PersistentVolumeClaim"
)

// objectCache watches the objects that the node's pods name, each by
// a watch of its own: a node may read no others. An object is watched while a pod
// holds it.
type objectCache struct {
	ctx    context.Context
	client kubernetes.Interface

	mu      sync.Mutex
	entries map[objectKey]*objectEntry
	holders map[string]*objectHolder
}

type objectHolder struct {
	keys   []objectKey
	notify func()
}

type objectEntry struct {
	cancel  context.CancelFunc
	holders map[string]bool
	synced  chan struct{}
	once    sync.Once
	// obj is nil while the object does not exist; err is the last failure to read.
	obj any
	err error
}

func newObjectCache(ctx context.Context, client kubernetes.Interface) *objectCache {
	return &objectCache{ctx: ctx, client: client, entries: map[objectKey]*objectEntry{}, holders: map[string]*objectHolder{}}
}

// references lists what a pod names.
func references(pod *v1.Pod) []objectKey {
	seen := map[objectKey]bool{}
	var out []objectKey
	add := func(kind, name string) {
		k := objectKey{kind, pod.Namespace, name}
		if name != "" && !seen[k] {
			seen[k] = true
			out = append(out, k)
		}
	}
	for _, s := range pod.Spec.ImagePullSecrets {
		add(kindSecret, s.Name)
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		add(kindClaim, claimName(pod, v))
		switch {
		case v.ConfigMap != nil:
			add(kindConfigMap, v.ConfigMap.Name)
		case v.Secret != nil:
			add(kindSecret, v.Secret.SecretName)
		case v.Projected != nil:
			for _, s := range v.Projected.Sources {
				if s.ConfigMap != nil {
					add(kindConfigMap, s.ConfigMap.Name)
				}
				if s.Secret != nil {
					add(kindSecret, s.Secret.Name)
				}
			}
		}
	}
	for _, c := range podContainers(pod) {
		for _, f := range c.EnvFrom {
			if f.ConfigMapRef != nil {
				add(kindConfigMap, f.ConfigMapRef.Name)
			}
			if f.SecretRef != nil {
				add(kindSecret, f.SecretRef.Name)
			}
		}
		for _, e := range c.Env {
			if e.ValueFrom == nil {
				continue
			}
			if r := e.ValueFrom.ConfigMapKeyRef; r != nil {
				add(kindConfigMap, r.Name)
			}
			if r := e.ValueFrom.SecretKeyRef; r != nil {
				add(kindSecret, r.Name)
			}
		}
	}
	return out
}

// acquire watches keys for a holder until release; notify is called when one of
// them changes. Repeated, it may add keys.
func (c *objectCache) acquire(holder string, keys []objectKey, notify func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holders[holder] = &objectHolder{keys, notify}
	for _, k := range keys {
		e := c.entries[k]
		if e == nil {
			ctx, cancel := context.WithCancel(c.ctx)
			e = &objectEntry{cancel: cancel, holders: map[string]bool{}, synced: make(chan struct{})}
			c.entries[k] = e
			go c.follow(ctx, k, e)
		}
		e.holders[holder] = true
	}
}

func (c *objectCache) release(holder string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.holders[holder]
	if h == nil {
		return
	}
	delete(c.holders, holder)
	for _, k := range h.keys {
		e := c.entries[k]
		delete(e.holders, holder)
		if len(e.holders) == 0 {
			e.cancel()
			delete(c.entries, k)
		}
	}
}

func (c *objectCache) follow(ctx context.Context, k objectKey, e *objectEntry) {
	s := sink{
		replace: func(list []any) {
			if len(list) == 0 {
				c.store(e, nil)
			} else {
				c.store(e, list[0])
			}
		},
		set:    func(obj any) { c.store(e, obj) },
		remove: func(any) { c.store(e, nil) },
	}
	onError := func(err error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		e.err = err
	}
	selector := fields.OneTermEqualSelector("metadata.name", k.name)
	core := c.client.CoreV1()
	switch k.kind {
	case kindClaim:
		follow(ctx, "persistentvolumeclaim", &v1.PersistentVolumeClaim{}, selector,
			func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return core.PersistentVolumeClaims(k.namespace).List(ctx, o)
			},
			func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				return core.PersistentVolumeClaims(k.namespace).Watch(ctx, o)
			}, s, onError)
		return
	case kindConfigMap:
		follow(ctx, "configmap", &v1.ConfigMap{}, selector,
			func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return core.ConfigMaps(k.namespace).List(ctx, o)
			},
			func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				return core.ConfigMaps(k.namespace).Watch(ctx, o)
			}, s, onError)
		return
	}
	follow(ctx, "secret", &v1.Secret{}, selector,
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return core.Secrets(k.namespace).List(ctx, o)
		},
		func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return core.Secrets(k.namespace).Watch(ctx, o)
		}, s, onError)
}

func (c *objectCache) store(e *objectEntry, obj any) {
	c.mu.Lock()
	e.obj, e.err = obj, nil
	e.once.Do(func() { close(e.synced) })
	var notify []func()
	for h := range e.holders {
		notify = append(notify, c.holders[h].notify)
	}
	c.mu.Unlock()
	for _, f := range notify {
		f()
	}
}

// get returns the object as last seen, nil if it does not exist.
func (c *objectCache) get(ctx context.Context, k objectKey) (any, error) {
	c.mu.Lock()
	e := c.entries[k]
	c.mu.Unlock()
	if e == nil {
		return nil, fmt.Errorf("%s %s/%s is not one that the pod names", k.kind, k.namespace, k.name)
	}
	t := time.NewTimer(objectWait)
	defer t.Stop()
	select {
	case <-e.synced:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-t.C:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-e.synced:
		return e.obj, nil
	default:
	}
	if e.err != nil {
		return nil, fmt.Errorf("read %s %s/%s: %w", k.kind, k.namespace, k.name, e.err)
	}
	return nil, fmt.Errorf("read %s %s/%s: no answer from the API within %s", k.kind, k.namespace, k.name, objectWait)
}

// ConfigMap returns the ConfigMap as last seen, nil if it does not exist.
func (c *objectCache) ConfigMap(ctx context.Context, namespace, name string) (*v1.ConfigMap, error) {
	obj, err := c.get(ctx, objectKey{kindConfigMap, namespace, name})
	cm, _ := obj.(*v1.ConfigMap)
	return cm, err
}

// Secret returns the Secret as last seen, nil if it does not exist.
func (c *objectCache) Secret(ctx context.Context, namespace, name string) (*v1.Secret, error) {
	obj, err := c.get(ctx, objectKey{kindSecret, namespace, name})
	s, _ := obj.(*v1.Secret)
	return s, err
}
