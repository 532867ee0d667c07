// Package deployment rolls Deployments out: one ReplicaSet a pod template, scaled
// up and down in steps that keep within maxSurge and maxUnavailable. In:
// Deployments, ReplicaSets and pods by watch. Out: ReplicaSets, their sizes and
// revisions, and the status of the Deployment. Decide holds the whole logic; the
// planner runs it too, to simulate a rollout.
package deployment

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

var kind = appsv1.SchemeGroupVersion.WithKind("Deployment")

// Controller is the Deployment controller.
type Controller struct {
	client      kubernetes.Interface
	events      record.EventRecorder
	deployments appslisters.DeploymentLister
	sets        appslisters.ReplicaSetLister
	pods        corelisters.PodLister
	synced      []cache.InformerSynced
	loop        *controller.Loop
}

// New returns a controller that watches through f; f is started by the caller.
func New(client kubernetes.Interface, f informers.SharedInformerFactory, events record.EventRecorder) *Controller {
	d, rs, pods := f.Apps().V1().Deployments(), f.Apps().V1().ReplicaSets(), f.Core().V1().Pods()
	c := &Controller{
		client: client, events: events,
		deployments: d.Lister(), sets: rs.Lister(), pods: pods.Lister(),
		synced: []cache.InformerSynced{d.Informer().HasSynced, rs.Informer().HasSynced, pods.Informer().HasSynced},
	}
	c.loop = controller.NewLoop("deployment", 5, c.sync)
	d.Informer().AddEventHandler(controller.Handler(func(old, d *appsv1.Deployment) {
		if d == nil {
			d = old
		}
		c.loop.Add(controller.Key(d))
	}))
	rs.Informer().AddEventHandler(controller.Handler(c.onSet))
	pods.Informer().AddEventHandler(controller.Handler(c.onPod))
	return c
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.synced...) }

func (c *Controller) onSet(old, rs *appsv1.ReplicaSet) {
	for _, s := range []*appsv1.ReplicaSet{old, rs} {
		if s == nil {
			continue
		}
		if ref := metav1.GetControllerOf(s); ref != nil {
			if ref.Kind == kind.Kind {
				c.loop.Add(s.Namespace + "/" + ref.Name)
			}
			continue
		}
		all, err := c.deployments.Deployments(s.Namespace).List(labels.Everything())
		if err != nil {
			continue
		}
		for _, d := range all {
			if sel, err := metav1.LabelSelectorAsSelector(d.Spec.Selector); err == nil && !sel.Empty() && sel.Matches(labels.Set(s.Labels)) {
				c.loop.Add(controller.Key(d))
			}
		}
	}
}

// onPod wakes a Recreate rollout that waits for the last old pod to go.
func (c *Controller) onPod(old, pod *corev1.Pod) {
	if old == nil || (pod != nil && !podEnded(pod)) {
		return
	}
	ref := metav1.GetControllerOf(old)
	if ref == nil || ref.Kind != "ReplicaSet" {
		return
	}
	rs, err := c.sets.ReplicaSets(old.Namespace).Get(ref.Name)
	if err != nil {
		return
	}
	if owner := metav1.GetControllerOf(rs); owner != nil && owner.Kind == kind.Kind {
		d, err := c.deployments.Deployments(old.Namespace).Get(owner.Name)
		if err == nil && d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
			c.loop.Add(controller.Key(d))
		}
	}
}

func (c *Controller) sync(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	d, err := c.deployments.Deployments(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil || selector.Empty() {
		return nil // refused by validation; it would select every pod
	}
	snapshot, err := c.snapshot(ctx, d, selector)
	if err != nil {
		return err
	}
	decision := Decide(snapshot, time.Now())
	if d.DeletionTimestamp == nil {
		if err := c.do(ctx, d, &decision); err != nil {
			return err
		}
	}
	if decision.Recheck > 0 {
		c.loop.AddAfter(key, decision.Recheck+10*time.Millisecond)
	}
	return c.updateStatus(ctx, d, decision.Status)
}

func (c *Controller) snapshot(ctx context.Context, d *appsv1.Deployment, selector labels.Selector) (Snapshot, error) {
	all, err := c.sets.ReplicaSets(d.Namespace).List(labels.Everything())
	if err != nil {
		return Snapshot{}, err
	}
	claims := controller.Claim(d, selector, all)
	owned := claims.Owned
	if len(claims.Adopt) > 0 {
		// The cache may be older than a deletion of the owner: ask before adopting.
		live, err := c.client.AppsV1().Deployments(d.Namespace).Get(ctx, d.Name, metav1.GetOptions{})
		if err != nil {
			return Snapshot{}, err
		}
		if live.UID == d.UID && live.DeletionTimestamp == nil {
			for _, rs := range claims.Adopt {
				if err := c.patch(ctx, rs, controller.AdoptPatch(d, kind, rs)); err != nil {
					return Snapshot{}, fmt.Errorf("adopt replica set %s/%s: %w", rs.Namespace, rs.Name, err)
				}
				owned = append(owned, rs)
			}
		}
	}
	for _, rs := range claims.Release {
		if err := c.patch(ctx, rs, controller.ReleasePatch(d, rs)); err != nil {
			return Snapshot{}, fmt.Errorf("release replica set %s/%s: %w", rs.Namespace, rs.Name, err)
		}
	}
	s := Snapshot{Deployment: d, Sets: owned}
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		s.OldPods, err = c.oldPods(d, owned)
	}
	return s, err
}

func (c *Controller) patch(ctx context.Context, rs *appsv1.ReplicaSet, patch []byte) error {
	_, err := c.client.AppsV1().ReplicaSets(rs.Namespace).Patch(ctx, rs.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsInvalid(err) {
		return nil
	}
	return err
}

// oldPods counts the pods that still run for ReplicaSets of another template.
func (c *Controller) oldPods(d *appsv1.Deployment, sets []*appsv1.ReplicaSet) (int, error) {
	old := map[types.UID]bool{}
	for _, rs := range sets {
		if !sameTemplate(&rs.Spec.Template, &d.Spec.Template) {
			old[rs.UID] = true
		}
	}
	pods, err := c.pods.Pods(d.Namespace).List(labels.Everything())
	if err != nil {
		return 0, err
	}
	n := 0
	for _, p := range pods {
		if ref := metav1.GetControllerOf(p); ref != nil && old[ref.UID] && !podEnded(p) {
			n++
		}
	}
	return n, nil
}

func (c *Controller) do(ctx context.Context, d *appsv1.Deployment, decision *Decision) error {
	sets := c.client.AppsV1().ReplicaSets(d.Namespace)
	if rs := decision.Create; rs != nil {
		if err := c.create(ctx, d, rs, decision); err != nil {
			return err
		}
	}
	for _, rs := range decision.Update {
		if _, err := sets.Update(ctx, rs, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("scale replica set %s/%s: %w", rs.Namespace, rs.Name, err)
		}
	}
	for _, e := range decision.Events {
		c.events.Event(d, corev1.EventTypeNormal, e.Reason, e.Message)
	}
	for _, rs := range decision.Delete {
		err := sets.Delete(ctx, rs.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(rs.UID))})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete old replica set %s/%s: %w", rs.Namespace, rs.Name, err)
		}
	}
	if decision.Revision != "" && d.Annotations[RevisionAnnotation] != decision.Revision {
		patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, RevisionAnnotation, decision.Revision)
		_, err := c.client.AppsV1().Deployments(d.Namespace).Patch(ctx, d.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		if err != nil {
			return fmt.Errorf("annotate deployment %s/%s: %w", d.Namespace, d.Name, err)
		}
	}
	return nil
}

// errCollision asks for another look after the collision count was raised.
var errCollision = errors.New("hash collision of the pod template; trying another name")

func (c *Controller) create(ctx context.Context, d *appsv1.Deployment, rs *appsv1.ReplicaSet, decision *Decision) error {
	_, err := c.client.AppsV1().ReplicaSets(d.Namespace).Create(ctx, rs, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		if err != nil {
			c.events.Eventf(d, corev1.EventTypeWarning, "FailedCreate", "Failed to create new replica set %q: %v", rs.Name, err)
			return fmt.Errorf("create replica set %s/%s: %w", rs.Namespace, rs.Name, err)
		}
		return nil
	}
	live, getErr := c.client.AppsV1().ReplicaSets(d.Namespace).Get(ctx, rs.Name, metav1.GetOptions{})
	if getErr != nil {
		return getErr
	}
	if ref := metav1.GetControllerOf(live); ref != nil && ref.UID == d.UID && sameTemplate(&live.Spec.Template, &d.Spec.Template) {
		decision.Events = nil
		return nil // made by an earlier look that the cache has not shown yet
	}
	s := *d.Status.DeepCopy()
	n := int32(1)
	if s.CollisionCount != nil {
		n = *s.CollisionCount + 1
	}
	s.CollisionCount = &n
	if err := c.updateStatus(ctx, d, s); err != nil {
		return err
	}
	return errCollision
}

func (c *Controller) updateStatus(ctx context.Context, d *appsv1.Deployment, s appsv1.DeploymentStatus) error {
	if reflect.DeepEqual(s, d.Status) {
		return nil
	}
	body, err := controller.StatusPatch(d, s, "replicas", "updatedReplicas", "readyReplicas", "availableReplicas",
		"unavailableReplicas", "terminatingReplicas", "conditions")
	if err != nil {
		return err
	}
	_, err = c.client.AppsV1().Deployments(d.Namespace).Patch(ctx, d.Name, types.MergePatchType, body, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
