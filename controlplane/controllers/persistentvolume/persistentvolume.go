// Package persistentvolume binds claims and volumes to each other, makes the
// volumes of classes whose volumes are directories on a node, and does with a
// volume whose claim has gone what its reclaim policy says. In: claims, volumes,
// classes and nodes by watch. DecideClaim and DecideVolume are pure; the Controller
// carries out what they say.
//
// Two claims cannot get one volume: a volume is written first, on the condition
// that it is still as it was seen.
package persistentvolume

import (
	"context"
	"fmt"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// Controller is the persistent volume controller.
type Controller struct {
	client  kubernetes.Interface
	events  record.EventRecorder
	claims  corelisters.PersistentVolumeClaimLister
	volumes corelisters.PersistentVolumeLister
	classes storagelisters.StorageClassLister
	nodes   corelisters.NodeLister
	synced  []cache.InformerSynced
	loop    *controller.Loop

	// said is the last event of each object: a claim that waits is looked at whenever
	// a volume changes, which is no news.
	mu   sync.Mutex
	said map[types.UID]Event
}

// New returns a controller that watches through f; f is started by the caller.
func New(client kubernetes.Interface, f informers.SharedInformerFactory, events record.EventRecorder) *Controller {
	core := f.Core().V1()
	claims, volumes, nodes, classes := core.PersistentVolumeClaims(), core.PersistentVolumes(), core.Nodes(), f.Storage().V1().StorageClasses()
	c := &Controller{
		client: client, events: events, said: map[types.UID]Event{},
		claims: claims.Lister(), volumes: volumes.Lister(), classes: classes.Lister(), nodes: nodes.Lister(),
		synced: []cache.InformerSynced{
			claims.Informer().HasSynced, volumes.Informer().HasSynced, classes.Informer().HasSynced, nodes.Informer().HasSynced,
		},
	}
	c.loop = controller.NewLoop("persistentvolume", 1, c.sync)
	claims.Informer().AddEventHandler(controller.Handler(c.onClaim))
	volumes.Informer().AddEventHandler(controller.Handler(c.onVolume))
	classes.Informer().AddEventHandler(controller.Handler(func(_, _ *storagev1.StorageClass) { c.addUnbound() }))
	nodes.Informer().AddEventHandler(controller.Handler(c.onNode))
	return c
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.synced...) }

// Keys of the loop: a volume's has no namespace.
func volumeKey(name string) string           { return name }
func claimKey(namespace, name string) string { return namespace + "/" + name }

func (c *Controller) onClaim(old, claim *corev1.PersistentVolumeClaim) {
	if claim != nil {
		c.loop.Add(claimKey(claim.Namespace, claim.Name))
		if claim.Spec.VolumeName != "" {
			c.loop.Add(volumeKey(claim.Spec.VolumeName))
		}
		return
	}
	c.forget(old.UID)
	volumes, err := c.volumes.List(labels.Everything())
	if err != nil {
		return
	}
	for _, v := range volumes {
		if ref := v.Spec.ClaimRef; ref != nil && ref.Namespace == old.Namespace && ref.Name == old.Name {
			c.loop.Add(volumeKey(v.Name))
		}
	}
}

func (c *Controller) onVolume(old, v *corev1.PersistentVolume) {
	if v == nil {
		c.forget(old.UID)
		v = old
	} else {
		c.loop.Add(volumeKey(v.Name))
	}
	if ref := v.Spec.ClaimRef; ref != nil {
		c.loop.Add(claimKey(ref.Namespace, ref.Name))
		return
	}
	c.addUnbound()
}

// onNode looks at what waits for a node to appear, or is held by one that has gone.
func (c *Controller) onNode(old, n *corev1.Node) {
	if old != nil && n != nil && old.Annotations[annotationRoot] == n.Annotations[annotationRoot] {
		return
	}
	c.addUnbound()
	if n != nil {
		return
	}
	volumes, err := c.volumes.List(labels.SelectorFromSet(labels.Set{LabelNode: old.Name}))
	if err != nil {
		return
	}
	for _, v := range volumes {
		c.loop.Add(volumeKey(v.Name))
	}
}

func (c *Controller) addUnbound() {
	claims, err := c.claims.List(labels.Everything())
	if err != nil {
		return
	}
	for _, claim := range claims {
		if claim.Status.Phase != corev1.ClaimBound {
			c.loop.Add(claimKey(claim.Namespace, claim.Name))
		}
	}
}

func (c *Controller) snapshot() (s Snapshot, err error) {
	if s.Volumes, err = c.volumes.List(labels.Everything()); err != nil {
		return s, err
	}
	if s.Classes, err = c.classes.List(labels.Everything()); err != nil {
		return s, err
	}
	s.Nodes, err = c.nodes.List(labels.Everything())
	return s, err
}

func (c *Controller) sync(ctx context.Context, key string) error {
	s, err := c.snapshot()
	if err != nil {
		return err
	}
	namespace, name, isClaim := strings.Cut(key, "/")
	if isClaim {
		claim, err := c.claims.PersistentVolumeClaims(namespace).Get(name)
		if err != nil {
			return ignoreGone(err)
		}
		return c.do(ctx, claim, DecideClaim(claim, s))
	}
	v, err := c.volumes.Get(key)
	if err != nil {
		return ignoreGone(err)
	}
	claim, err := c.claimOf(ctx, v)
	if err != nil {
		return err
	}
	return c.do(ctx, v, DecideVolume(v, claim, s))
}

// claimOf finds the claim that a volume names. One that the cache does not have is
// looked up in the API: data hangs on it.
func (c *Controller) claimOf(ctx context.Context, v *corev1.PersistentVolume) (*corev1.PersistentVolumeClaim, error) {
	ref := v.Spec.ClaimRef
	if ref == nil || ref.UID == "" {
		return nil, nil
	}
	claim, err := c.claims.PersistentVolumeClaims(ref.Namespace).Get(ref.Name)
	if err == nil && claim.UID == ref.UID {
		return claim, nil
	}
	claim, err = c.client.CoreV1().PersistentVolumeClaims(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return claim, err
}

// do carries a step out and tells its event.
func (c *Controller) do(ctx context.Context, about runtime.Object, step Step) error {
	if step.Create != nil {
		if _, err := c.client.CoreV1().PersistentVolumes().Create(ctx, step.Create, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create volume %s: %w", step.Create.Name, err)
		}
	}
	if step.Volume != nil {
		if err := c.writeVolume(ctx, step.Volume); err != nil {
			return err
		}
	}
	if step.Claim != nil {
		if err := c.writeClaim(ctx, step.Claim); err != nil {
			return err
		}
	}
	if v := step.Delete; v != nil {
		err := c.client.CoreV1().PersistentVolumes().Delete(ctx, v.Name, metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &v.UID, ResourceVersion: &v.ResourceVersion},
		})
		if ignoreGone(err) != nil {
			return fmt.Errorf("delete volume %s: %w", v.Name, err)
		}
	}
	if e := step.Event; e != nil && c.news(about, *e) {
		c.events.Event(about, e.Type, e.Reason, e.Message)
	}
	return nil
}

// writeVolume writes what differs from what is known. Both writes are refused if
// somebody else has written meanwhile; the watch brings that, and the next try. So
// is one of a volume that has gone: no claim must be bound to it.
func (c *Controller) writeVolume(ctx context.Context, v *corev1.PersistentVolume) error {
	old, err := c.volumes.Get(v.Name)
	if err != nil {
		return fmt.Errorf("update volume: %w", err)
	}
	api := c.client.CoreV1().PersistentVolumes()
	if status := v.Status; !apiequality.Semantic.DeepEqual(old.Spec, v.Spec) || !apiequality.Semantic.DeepEqual(old.ObjectMeta, v.ObjectMeta) {
		if v, err = api.Update(ctx, v, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("update volume: %w", err)
		}
		v.Status = status
	}
	if apiequality.Semantic.DeepEqual(old.Status, v.Status) {
		return nil
	}
	if _, err = api.UpdateStatus(ctx, v, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update status of volume: %w", err)
	}
	return nil
}

func (c *Controller) writeClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	old, err := c.claims.PersistentVolumeClaims(claim.Namespace).Get(claim.Name)
	if err != nil {
		return ignoreGone(err)
	}
	api := c.client.CoreV1().PersistentVolumeClaims(claim.Namespace)
	if status := claim.Status; !apiequality.Semantic.DeepEqual(old.Spec, claim.Spec) || !apiequality.Semantic.DeepEqual(old.ObjectMeta, claim.ObjectMeta) {
		if claim, err = api.Update(ctx, claim, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("update claim: %w", err)
		}
		claim.Status = status
	}
	if apiequality.Semantic.DeepEqual(old.Status, claim.Status) {
		return nil
	}
	if _, err = api.UpdateStatus(ctx, claim, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update status of claim: %w", err)
	}
	return nil
}

// news says whether an object's event differs from its last one.
func (c *Controller) news(about runtime.Object, e Event) bool {
	o, ok := about.(metav1.Object)
	if !ok {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.said[o.GetUID()] == e {
		return false
	}
	c.said[o.GetUID()] = e
	return true
}

func (c *Controller) forget(uid types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.said, uid)
}

func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
