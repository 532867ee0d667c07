package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
	"sigs.k8s.io/yaml"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

// patience bounds waits that should take a second or two; a node that stays away
// is noticed after 40 s.
var patience = 90 * time.Second

var (
	applicationsGVR = v1alpha1.SchemeGroupVersion.WithResource("applications")
	revisionsGVR    = v1alpha1.SchemeGroupVersion.WithResource("revisions")
	deploymentsGVR  = appsv1.SchemeGroupVersion.WithResource("deployments")
	podsGVR         = corev1.SchemeGroupVersion.WithResource("pods")
	configMapsGVR   = corev1.SchemeGroupVersion.WithResource("configmaps")
	nodesGVR        = corev1.SchemeGroupVersion.WithResource("nodes")
)

// await waits by watch until an object satisfies a condition.
func await[T any](t *testing.T, c *cluster, gvr schema.GroupVersionResource, ns, name, what string, cond func(*T) bool) *T {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var last *unstructured.Unstructured
	var found *T
	_, err := watchtools.UntilWithSync(ctx, listWatch(c.d.Resource(gvr).Namespace(ns), name), &unstructured.Unstructured{}, nil, func(ev watch.Event) (bool, error) {
		u, ok := ev.Object.(*unstructured.Unstructured)
		if !ok || ev.Type == watch.Deleted {
			return false, nil
		}
		v := new(T)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, v); err != nil {
			return false, err
		}
		last, found = u, v
		return cond(v), nil
	})
	if err != nil {
		t.Fatalf("%s %s/%s: waiting until %s: %v\nlast seen:\n%s", gvr.Resource, ns, name, what, err, print(last))
	}
	return found
}

// awaitGone waits by watch until an object does not exist.
func awaitGone(t *testing.T, c *cluster, gvr schema.GroupVersionResource, ns, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	absent := func(s cache.Store) (bool, error) { return len(s.ListKeys()) == 0, nil }
	_, err := watchtools.UntilWithSync(ctx, listWatch(c.d.Resource(gvr).Namespace(ns), name), &unstructured.Unstructured{}, absent, func(ev watch.Event) (bool, error) {
		return ev.Type == watch.Deleted, nil
	})
	if err != nil {
		t.Fatalf("%s %s/%s: waiting until it is gone: %v", gvr.Resource, ns, name, err)
	}
}

func listWatch(api dynamic.ResourceInterface, name string) *cache.ListWatch {
	selector := fields.OneTermEqualSelector("metadata.name", name).String()
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			return api.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selector
			return api.Watch(ctx, o)
		},
	}
}

// awaitPods waits by watch until the pods of a selector, all together, satisfy a
// condition.
func (c *cluster) awaitPods(t *testing.T, ns, selector, what string, cond func([]*corev1.Pod) bool) []*corev1.Pod {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	api := c.k.CoreV1().Pods(ns)
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector = selector
			return api.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = selector
			return api.Watch(ctx, o)
		},
	}
	known := map[string]*corev1.Pod{}
	all := func() []*corev1.Pod {
		var out []*corev1.Pod
		for _, p := range known {
			out = append(out, p)
		}
		return out
	}
	synced := func(s cache.Store) (bool, error) {
		for _, o := range s.List() {
			if p, ok := o.(*corev1.Pod); ok {
				known[p.Name] = p
			}
		}
		return cond(all()), nil
	}
	_, err := watchtools.UntilWithSync(ctx, lw, &corev1.Pod{}, synced, func(ev watch.Event) (bool, error) {
		p, ok := ev.Object.(*corev1.Pod)
		if !ok {
			return false, nil
		}
		known[p.Name] = p
		if ev.Type == watch.Deleted {
			delete(known, p.Name)
		}
		return cond(all()), nil
	})
	if err != nil {
		t.Fatalf("pods %q of %s: waiting until %s: %v; see the events below", selector, ns, what, err)
	}
	return all()
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil
		}
	}
	return false
}

// awaitPod waits until one pod satisfies a condition.
func (c *cluster) awaitPod(t *testing.T, ns, name, what string, cond func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	return await(t, c, podsGVR, ns, name, what, cond)
}

func (c *cluster) awaitApp(t *testing.T, ns, name, what string, cond func(*v1alpha1.Application) bool) *v1alpha1.Application {
	t.Helper()
	return await(t, c, applicationsGVR, ns, name, what, cond)
}

// eventually tries again what cannot be watched, such as a request through a proxy
// that others are still configuring.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-limit.C:
			t.Fatalf("%s: %v", what, err)
		case <-t.Context().Done():
			t.Fatalf("%s: %v", what, errors.Join(err, t.Context().Err()))
		case <-tick.C:
		}
	}
}

// print shows an object in a failure.
func print(u *unstructured.Unstructured) string {
	if u == nil {
		return "(nothing)"
	}
	u = u.DeepCopy()
	unstructured.RemoveNestedField(u.Object, "metadata", "managedFields")
	b, err := yaml.Marshal(u.Object)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// contains fails the test unless a text has all parts.
func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is missing in:\n%s", p, text)
		}
	}
}

// lacks fails the test if a text has any of the parts.
func lacks(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if strings.Contains(text, p) {
			t.Errorf("%q should not be in:\n%s", p, text)
		}
	}
}

// get asks a Service through the API server's proxy.
func (c *cluster) get(t *testing.T, ns, service, path string) (string, error) {
	t.Helper()
	b, err := c.k.CoreV1().Services(ns).ProxyGet("http", service, "80", path, nil).DoRaw(t.Context())
	return string(b), err
}

// answers waits until a Service answers with a text.
func (c *cluster) answers(t *testing.T, ns, service, want string) {
	t.Helper()
	eventually(t, fmt.Sprintf("service %s/%s should answer %q", ns, service, want), func() error {
		body, err := c.get(t, ns, service, "/")
		if err != nil {
			return err
		}
		if !strings.Contains(body, want) {
			return fmt.Errorf("it answers %q", body)
		}
		return nil
	})
}
