// Package daemonset runs one pod of a template on every node that is eligible. In:
// DaemonSets, nodes, pods and ControllerRevisions by watch. Out: pods created and
// deleted, revisions, and the status of the DaemonSet. The scheduler binds the pods.
package daemonset

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	"k8s.io/client-go/util/flowcontrol"

	"gitk8s.dev/gitk8s/controlplane/controller"
	"gitk8s.dev/gitk8s/controlplane/controller/history"
)

const (
	// burst bounds the pods created or deleted by one look at one set, as
	// kube-controller-manager does; the rest follows when these have been seen.
	burst = 250

	// A pod that fails is replaced after a second, then after two, up to this.
	firstBackOff, longestBackOff = time.Second, 15 * time.Minute
)

var kind = appsv1.SchemeGroupVersion.WithKind("DaemonSet")

// Controller is the DaemonSet controller.
type Controller struct {
	client    kubernetes.Interface
	events    record.EventRecorder
	sets      appslisters.DaemonSetLister
	nodes     corelisters.NodeLister
	pods      corelisters.PodLister
	revisions *history.Revisions
	synced    []cache.InformerSynced
	control   controller.PodControl
	backOff   *flowcontrol.Backoff
	loop      *controller.Loop
}

// New returns a controller that watches through f; f is started by the caller.
func New(client kubernetes.Interface, f informers.SharedInformerFactory, events record.EventRecorder) *Controller {
	sets, revisions := f.Apps().V1().DaemonSets(), f.Apps().V1().ControllerRevisions()
	nodes, pods := f.Core().V1().Nodes(), f.Core().V1().Pods()
	c := &Controller{
		client: client, events: events, sets: sets.Lister(), nodes: nodes.Lister(), pods: pods.Lister(),
		revisions: history.NewRevisions(client, revisions.Lister()),
		synced: []cache.InformerSynced{
			sets.Informer().HasSynced, revisions.Informer().HasSynced, nodes.Informer().HasSynced, pods.Informer().HasSynced,
		},
		control: controller.PodControl{Client: client, Events: events},
		backOff: flowcontrol.NewBackOff(firstBackOff, longestBackOff),
	}
	c.loop = controller.NewLoop("daemonset", 2, c.sync)
	c.control.Expected = controller.NewExpectations(c.loop.AddAfter)
	sets.Informer().AddEventHandler(controller.Handler(func(old, ds *appsv1.DaemonSet) {
		if ds == nil {
			c.control.Expected.Forget(controller.Key(old))
			ds = old
		}
		c.loop.Add(controller.Key(ds))
	}))
	nodes.Informer().AddEventHandler(controller.Handler(c.onNode))
	pods.Informer().AddEventHandler(controller.Handler(c.onPod))
	return c
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.synced...) }

func (c *Controller) onNode(old, n *corev1.Node) {
	if old != nil && n != nil && apiequality.Semantic.DeepEqual(old.Labels, n.Labels) && apiequality.Semantic.DeepEqual(old.Spec.Taints, n.Spec.Taints) {
		return
	}
	c.addWhere(metav1.NamespaceAll, func(*appsv1.DaemonSet) bool { return true })
}

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
		c.addWhere(p.Namespace, func(ds *appsv1.DaemonSet) bool { // that may adopt an orphan
			s, err := metav1.LabelSelectorAsSelector(ds.Spec.Selector)
			return err == nil && !s.Empty() && s.Matches(labels.Set(p.Labels))
		})
	}
}

func (c *Controller) addWhere(namespace string, f func(*appsv1.DaemonSet) bool) {
	sets, err := c.sets.DaemonSets(namespace).List(labels.Everything())
	if err != nil {
		return
	}
	controller.AddWhere(c.loop, sets, f)
}

func (c *Controller) sync(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	ds, err := c.sets.DaemonSets(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		c.control.Expected.Forget(key)
		return nil
	}
	if err != nil {
		return err
	}
	selector, err := metav1.LabelSelectorAsSelector(ds.Spec.Selector)
	if err != nil || selector.Empty() {
		return nil // refused by validation; it would select every pod
	}
	satisfied := c.control.Expected.Satisfied(key)
	owner := ownerOf(ds, selector)
	revisions, err := c.revisions.Owned(ctx, owner, c.live(ds))
	if err != nil {
		return err
	}
	snapshot, err := c.snapshot(ctx, ds, owner, revisions)
	if err != nil {
		return err
	}
	d := Decide(snapshot, time.Now())
	var doErr error
	if satisfied && ds.DeletionTimestamp == nil {
		doErr = c.do(ctx, key, ds, snapshot.Hash, &d)
	}
	if err := errors.Join(doErr, c.updateStatus(ctx, ds, d.Status)); err != nil {
		return err
	}
	if d.Recheck > 0 {
		c.loop.AddAfter(key, d.Recheck)
	}
	return c.revisions.Truncate(ctx, owner, revisions, func(r *appsv1.ControllerRevision) bool {
		hash := r.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]
		return hash == snapshot.Hash || slices.ContainsFunc(snapshot.Pods, func(p *corev1.Pod) bool {
			return p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == hash
		})
	})
}

func ownerOf(ds *appsv1.DaemonSet, selector labels.Selector) history.Owner {
	o := history.Owner{
		Object: ds, Kind: kind, Selector: selector, Template: &ds.Spec.Template,
		HashLabel: appsv1.DefaultDaemonSetUniqueLabelKey, Limit: ds.Spec.RevisionHistoryLimit,
	}
	if ds.Status.CollisionCount != nil {
		o.Collisions = *ds.Status.CollisionCount
	}
	return o
}

func (c *Controller) live(ds *appsv1.DaemonSet) func(context.Context) (metav1.Object, error) {
	return func(ctx context.Context) (metav1.Object, error) {
		return c.client.AppsV1().DaemonSets(ds.Namespace).Get(ctx, ds.Name, metav1.GetOptions{})
	}
}

func (c *Controller) snapshot(ctx context.Context, ds *appsv1.DaemonSet, owner history.Owner, revisions []*appsv1.ControllerRevision) (Snapshot, error) {
	s := Snapshot{Set: ds, Collisions: owner.Collisions, BackOff: map[string]time.Duration{}}
	if ds.DeletionTimestamp == nil {
		rev, collisions, err := c.revisions.Ensure(ctx, owner, revisions)
		if err != nil {
			return s, err
		}
		s.Hash, s.Collisions = rev.Labels[appsv1.DefaultDaemonSetUniqueLabelKey], collisions
	}
	var err error
	if s.Nodes, err = c.nodes.List(labels.Everything()); err != nil {
		return s, err
	}
	all, err := c.pods.Pods(ds.Namespace).List(labels.Everything())
	if err != nil {
		return s, err
	}
	s.Pods, err = controller.Take(ctx, ds, kind, controller.Claim(ds, owner.Selector, all), c.live(ds), c.control.Patch)
	if err != nil {
		return s, err
	}
	for _, p := range s.Pods {
		if node := nodeOf(p); ended(p) && c.backOff.IsInBackOffSinceUpdate(backOffKey(ds, node), c.backOff.Clock.Now()) {
			s.BackOff[node] = c.backOff.Get(backOffKey(ds, node))
		}
	}
	return s, nil
}

// backOffKey names the back-off of a set's pods on a node.
func backOffKey(ds *appsv1.DaemonSet, node string) string { return string(ds.UID) + "/" + node }

func (c *Controller) do(ctx context.Context, key string, ds *appsv1.DaemonSet, hash string, d *Decision) error {
	c.backOff.GC()
	for _, p := range d.Ended {
		c.backOff.Next(backOffKey(ds, nodeOf(p)), c.backOff.Clock.Now())
		if p.Status.Phase == corev1.PodFailed {
			c.events.Eventf(ds, corev1.EventTypeWarning, "FailedDaemonPod", "Found failed daemon pod %s/%s on node %s, will try to kill it", p.Namespace, p.Name, nodeOf(p))
		} else {
			c.events.Eventf(ds, corev1.EventTypeNormal, "SucceededDaemonPod", "Found succeeded daemon pod %s/%s on node %s, will try to delete it", p.Namespace, p.Name, nodeOf(p))
		}
	}
	creates, deletes := d.Create[:min(len(d.Create), burst)], d.Delete[:min(len(d.Delete), burst)]
	createErr := c.control.Create(ctx, ds, key, len(creates), func(i int) *corev1.Pod { return newPod(ds, creates[i], hash) })
	return errors.Join(createErr, c.control.Delete(ctx, ds, key, deletes))
}

func (c *Controller) updateStatus(ctx context.Context, ds *appsv1.DaemonSet, s appsv1.DaemonSetStatus) error {
	if apiequality.Semantic.DeepEqual(s, ds.Status) {
		return nil
	}
	body, err := controller.StatusPatch(ds, s, "updatedNumberScheduled", "numberAvailable", "numberUnavailable")
	if err != nil {
		return err
	}
	_, err = c.client.AppsV1().DaemonSets(ds.Namespace).Patch(ctx, ds.Name, types.MergePatchType, body, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write status of %s/%s: %w", ds.Namespace, ds.Name, err)
	}
	return nil
}
