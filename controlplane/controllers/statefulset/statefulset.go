// Package statefulset runs pods that have a name, an order and storage of their
// own. In: StatefulSets, pods, claims and ControllerRevisions by watch. Out: pods
// and claims created, pods deleted, the owners of claims, revisions, and the status
// of the StatefulSet.
package statefulset

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
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
	"gitk8s.dev/gitk8s/controlplane/controller/history"
)

var kind = appsv1.SchemeGroupVersion.WithKind("StatefulSet")

// Controller is the StatefulSet controller.
type Controller struct {
	client    kubernetes.Interface
	events    record.EventRecorder
	sets      appslisters.StatefulSetLister
	pods      corelisters.PodLister
	claims    corelisters.PersistentVolumeClaimLister
	revisions *history.Revisions
	synced    []cache.InformerSynced
	control   controller.PodControl
	loop      *controller.Loop
}

// New returns a controller that watches through f; f is started by the caller.
func New(client kubernetes.Interface, f informers.SharedInformerFactory, events record.EventRecorder) *Controller {
	sets, revisions := f.Apps().V1().StatefulSets(), f.Apps().V1().ControllerRevisions()
	pods, claims := f.Core().V1().Pods(), f.Core().V1().PersistentVolumeClaims()
	c := &Controller{
		client: client, events: events, sets: sets.Lister(), pods: pods.Lister(), claims: claims.Lister(),
		revisions: history.NewRevisions(client, revisions.Lister()),
		control:   controller.PodControl{Client: client, Events: events},
		synced: []cache.InformerSynced{
			sets.Informer().HasSynced, revisions.Informer().HasSynced, pods.Informer().HasSynced, claims.Informer().HasSynced,
		},
	}
	c.loop = controller.NewLoop("statefulset", 5, c.sync)
	c.control.Expected = controller.NewExpectations(c.loop.AddAfter)
	sets.Informer().AddEventHandler(controller.Handler(func(old, set *appsv1.StatefulSet) {
		if set == nil {
			c.control.Expected.Forget(controller.Key(old))
			set = old
		}
		c.loop.Add(controller.Key(set))
	}))
	pods.Informer().AddEventHandler(controller.Handler(c.onPod))
	claims.Informer().AddEventHandler(controller.Handler(c.onClaim))
	return c
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.synced...) }

func (c *Controller) onPod(old, pod *corev1.Pod) {
	for _, p := range []*corev1.Pod{old, pod} {
		if p == nil {
			continue
		}
		if ref := metav1.GetControllerOf(p); ref != nil {
			if ref.Kind == kind.Kind {
				key := p.Namespace + "/" + ref.Name
				c.control.Observe(key, old, pod)
				c.loop.Add(key)
			}
			continue
		}
		c.addWhere(p.Namespace, func(set *appsv1.StatefulSet) bool { // that may adopt an orphan
			_, named := ordinalOf(set, p)
			s, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
			return named && err == nil && s.Matches(labels.Set(p.Labels))
		})
	}
}

// onClaim wakes the sets whose pods wait for a claim to be gone, or that have lost
// one.
func (c *Controller) onClaim(old, claim *corev1.PersistentVolumeClaim) {
	if old == nil {
		return
	}
	c.addWhere(old.Namespace, func(set *appsv1.StatefulSet) bool {
		return slices.ContainsFunc(set.Spec.VolumeClaimTemplates, func(t corev1.PersistentVolumeClaim) bool {
			return strings.HasPrefix(old.Name, t.Name+"-"+set.Name+"-")
		})
	})
}

func (c *Controller) addWhere(namespace string, f func(*appsv1.StatefulSet) bool) {
	sets, err := c.sets.StatefulSets(namespace).List(labels.Everything())
	if err != nil {
		return
	}
	controller.AddWhere(c.loop, sets, f)
}

func (c *Controller) sync(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	set, err := c.sets.StatefulSets(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil || selector.Empty() {
		return nil // refused by validation; it would select every pod
	}
	satisfied := c.control.Expected.Satisfied(key)
	owner := ownerOf(set, selector)
	revisions, err := c.revisions.Owned(ctx, owner, c.live(set))
	if err != nil {
		return err
	}
	snapshot, err := c.snapshot(ctx, set, owner, revisions)
	if err != nil {
		return err
	}
	d := Decide(snapshot, time.Now())
	var doErr error
	if satisfied {
		doErr = c.do(ctx, key, set, &d)
	}
	if err := errors.Join(doErr, c.updateStatus(ctx, set, d.Status)); err != nil {
		return err
	}
	if d.Recheck > 0 {
		c.loop.AddAfter(key, d.Recheck)
	}
	return c.revisions.Truncate(ctx, owner, revisions, func(r *appsv1.ControllerRevision) bool {
		return r.Name == snapshot.Current.Name || r.Name == snapshot.Update.Name ||
			slices.ContainsFunc(snapshot.Pods, func(p *corev1.Pod) bool { return revisionOf(p) == r.Name })
	})
}

// hashLabel is the label of a revision that has its hash; its pods have the
// revision's name.
const hashLabel = "controller.kubernetes.io/hash"

func ownerOf(set *appsv1.StatefulSet, selector labels.Selector) history.Owner {
	o := history.Owner{
		Object: set, Kind: kind, Selector: selector, Template: &set.Spec.Template,
		HashLabel: hashLabel, Limit: set.Spec.RevisionHistoryLimit,
	}
	if set.Status.CollisionCount != nil {
		o.Collisions = *set.Status.CollisionCount
	}
	return o
}

func (c *Controller) live(set *appsv1.StatefulSet) func(context.Context) (metav1.Object, error) {
	return func(ctx context.Context) (metav1.Object, error) {
		return c.client.AppsV1().StatefulSets(set.Namespace).Get(ctx, set.Name, metav1.GetOptions{})
	}
}

func (c *Controller) snapshot(ctx context.Context, set *appsv1.StatefulSet, owner history.Owner, revisions []*appsv1.ControllerRevision) (Snapshot, error) {
	s := Snapshot{Set: set, Claims: map[string]*corev1.PersistentVolumeClaim{}, Collisions: owner.Collisions}
	s.Update = Revision{set.Status.UpdateRevision, &set.Spec.Template}
	if set.DeletionTimestamp == nil {
		rev, collisions, err := c.revisions.Ensure(ctx, owner, revisions)
		if err != nil {
			return s, err
		}
		s.Update.Name, s.Collisions = rev.Name, collisions
	}
	s.Current = s.Update
	for _, r := range revisions {
		if r.Name == set.Status.CurrentRevision && r.Name != s.Update.Name {
			t, err := history.Template(r)
			if err != nil {
				return s, err
			}
			s.Current = Revision{r.Name, t}
		}
	}
	claims, err := c.claims.PersistentVolumeClaims(set.Namespace).List(labels.Everything())
	if err != nil {
		return s, err
	}
	for _, claim := range claims {
		s.Claims[claim.Name] = claim
	}
	s.Pods, err = c.ownedPods(ctx, set, owner.Selector)
	return s, err
}

// ownedPods claims the pods that are named after the set.
func (c *Controller) ownedPods(ctx context.Context, set *appsv1.StatefulSet, selector labels.Selector) ([]*corev1.Pod, error) {
	all, err := c.pods.Pods(set.Namespace).List(labels.Everything())
	if err != nil {
		return nil, err
	}
	named := slices.DeleteFunc(all, func(p *corev1.Pod) bool {
		_, ok := ordinalOf(set, p)
		return !ok
	})
	return controller.Take(ctx, set, kind, controller.Claim(set, selector, named), c.live(set), c.control.Patch)
}

func (c *Controller) updateStatus(ctx context.Context, set *appsv1.StatefulSet, s appsv1.StatefulSetStatus) error {
	if apiequality.Semantic.DeepEqual(s, set.Status) {
		return nil
	}
	body, err := controller.StatusPatch(set, s, "readyReplicas", "currentReplicas", "updatedReplicas", "currentRevision", "updateRevision")
	if err != nil {
		return err
	}
	_, err = c.client.AppsV1().StatefulSets(set.Namespace).Patch(ctx, set.Name, types.MergePatchType, body, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write status of %s/%s: %w", set.Namespace, set.Name, err)
	}
	return nil
}
