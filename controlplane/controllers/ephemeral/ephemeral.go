// Package ephemeral makes the claims of pods' generic ephemeral volumes. A claim
// belongs to its pod and goes with it ("Ephemeral Volumes", "Generic ephemeral
// volumes"). In: pods and claims by watch. Out: claims.
package ephemeral

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	ephemeralvolume "k8s.io/component-helpers/storage/ephemeral"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// Controller is the ephemeral volume controller.
type Controller struct {
	client kubernetes.Interface
	events record.EventRecorder
	pods   corelisters.PodLister
	claims corelisters.PersistentVolumeClaimLister
	synced []cache.InformerSynced
	loop   *controller.Loop
}

// New returns a controller that watches through f; f is started by the caller.
func New(client kubernetes.Interface, f informers.SharedInformerFactory, events record.EventRecorder) *Controller {
	pods, claims := f.Core().V1().Pods(), f.Core().V1().PersistentVolumeClaims()
	c := &Controller{
		client: client, events: events, pods: pods.Lister(), claims: claims.Lister(),
		synced: []cache.InformerSynced{pods.Informer().HasSynced, claims.Informer().HasSynced},
	}
	c.loop = controller.NewLoop("ephemeral", 2, c.sync)
	pods.Informer().AddEventHandler(controller.Handler(func(_, p *corev1.Pod) {
		if p != nil && len(missing(p, nil)) > 0 {
			c.loop.Add(controller.Key(p))
		}
	}))
	claims.Informer().AddEventHandler(controller.Handler(func(old, claim *corev1.PersistentVolumeClaim) {
		if claim != nil {
			return
		}
		if owner := metav1.GetControllerOf(old); owner != nil && owner.Kind == podKind.Kind {
			c.loop.Add(old.Namespace + "/" + owner.Name)
		}
	}))
	return c
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.synced...) }

var podKind = corev1.SchemeGroupVersion.WithKind("Pod")

// missing are the claims that a pod needs and that are not among those there are.
func missing(p *corev1.Pod, have map[string]bool) []*corev1.PersistentVolumeClaim {
	if p.DeletionTimestamp != nil {
		return nil
	}
	var out []*corev1.PersistentVolumeClaim
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if v.Ephemeral == nil || v.Ephemeral.VolumeClaimTemplate == nil {
			continue
		}
		name, t := ephemeralvolume.VolumeClaimName(p, v), v.Ephemeral.VolumeClaimTemplate
		if have[name] {
			continue
		}
		out = append(out, &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: p.Namespace, Name: name, Labels: t.Labels, Annotations: t.Annotations,
				OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(p, podKind)},
			},
			Spec: *t.Spec.DeepCopy(),
		})
	}
	return out
}

func (c *Controller) sync(ctx context.Context, key string) error {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return err
	}
	pod, err := c.pods.Pods(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	have := map[string]bool{}
	for _, want := range missing(pod, nil) {
		claim, err := c.claims.PersistentVolumeClaims(namespace).Get(want.Name)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err == nil {
			// Somebody else's data is not to be used by accident.
			err = ephemeralvolume.VolumeIsForPod(pod, claim)
		}
		have[want.Name] = true
		errs = append(errs, err)
	}
	for _, claim := range missing(pod, have) {
		_, err := c.client.CoreV1().PersistentVolumeClaims(namespace).Create(ctx, claim, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			continue // the watch brings it here again if it is another's
		}
		if err != nil {
			c.events.Eventf(pod, corev1.EventTypeWarning, "EphemeralVolumeFailed", "ephemeral volume controller failed to create PVC %s: %v", claim.Name, err)
			errs = append(errs, fmt.Errorf("create claim %s: %w", claim.Name, err))
		}
	}
	return errors.Join(errs...)
}
