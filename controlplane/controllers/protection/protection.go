// Package protection keeps claims that pods use, and volumes that are bound, from
// going away: a deleted one stays, Terminating, until nobody uses it ("Persistent
// Volumes", "Storage Object in Use Protection"). In: claims, volumes and pods by
// watch. Out: their finalizers.
package protection

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// Controller is the protection controller of claims and volumes.
type Controller struct {
	client  kubernetes.Interface
	claims  corelisters.PersistentVolumeClaimLister
	volumes corelisters.PersistentVolumeLister
	pods    corelisters.PodLister
	synced  []cache.InformerSynced
	loop    *controller.Loop
}

// New returns a controller that watches through f; f is started by the caller.
func New(client kubernetes.Interface, f informers.SharedInformerFactory) *Controller {
	claims, volumes, pods := f.Core().V1().PersistentVolumeClaims(), f.Core().V1().PersistentVolumes(), f.Core().V1().Pods()
	c := &Controller{
		client: client, claims: claims.Lister(), volumes: volumes.Lister(), pods: pods.Lister(),
		synced: []cache.InformerSynced{claims.Informer().HasSynced, volumes.Informer().HasSynced, pods.Informer().HasSynced},
	}
	c.loop = controller.NewLoop("protection", 2, c.sync)
	claims.Informer().AddEventHandler(controller.Handler(func(_, claim *corev1.PersistentVolumeClaim) {
		if claim != nil {
			c.loop.Add(controller.Key(claim))
		}
	}))
	volumes.Informer().AddEventHandler(controller.Handler(func(_, v *corev1.PersistentVolume) {
		if v != nil {
			c.loop.Add(v.Name)
		}
	}))
	pods.Informer().AddEventHandler(controller.Handler(func(old, p *corev1.Pod) {
		if p != nil && holds(p) {
			return
		}
		if p == nil {
			p = old
		}
		for _, name := range claimsOf(p) {
			c.loop.Add(p.Namespace + "/" + name)
		}
	}))
	return c
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.synced...) }

func (c *Controller) sync(ctx context.Context, key string) error {
	if namespace, name, ok := strings.Cut(key, "/"); ok {
		return c.syncClaim(ctx, namespace, name)
	}
	v, err := c.volumes.Get(key)
	if err != nil {
		return ignoreGone(err)
	}
	what := decide(v, VolumeFinalizer, func() bool { return volumeInUse(v) })
	return c.change(v, VolumeFinalizer, what, func(patch []byte) error {
		_, err := c.client.CoreV1().PersistentVolumes().Patch(ctx, v.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	})
}

func (c *Controller) syncClaim(ctx context.Context, namespace, name string) error {
	claim, err := c.claims.PersistentVolumeClaims(namespace).Get(name)
	if err != nil {
		return ignoreGone(err)
	}
	pods, err := c.pods.Pods(namespace).List(labels.Everything())
	if err != nil {
		return err
	}
	what := decide(claim, ClaimFinalizer, func() bool { return claimInUse(name, pods) })
	if what == remove {
		// A pod may have been bound that the cache does not show yet.
		live, err := c.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("list pods: %w", err)
		}
		all := make([]*corev1.Pod, len(live.Items))
		for i := range live.Items {
			all[i] = &live.Items[i]
		}
		if claimInUse(name, all) {
			return nil
		}
	}
	return c.change(claim, ClaimFinalizer, what, func(patch []byte) error {
		_, err := c.client.CoreV1().PersistentVolumeClaims(namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	})
}

// change writes the finalizers of an object, if it is still as it was seen.
func (c *Controller) change(obj metav1.Object, finalizer string, what change, patch func([]byte) error) error {
	finalizers := slices.Clone(obj.GetFinalizers())
	switch what {
	case nothing:
		return nil
	case add:
		finalizers = append(finalizers, finalizer)
	case remove:
		finalizers = slices.DeleteFunc(finalizers, func(f string) bool { return f == finalizer })
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": obj.GetUID(), "resourceVersion": obj.GetResourceVersion(), "finalizers": finalizers,
	}})
	if err != nil {
		return err
	}
	if err := patch(body); ignoreGone(err) != nil {
		return fmt.Errorf("change finalizers of %s: %w", obj.GetName(), err)
	}
	return nil
}

func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
