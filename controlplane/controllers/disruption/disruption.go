// Package disruption keeps the status of PodDisruptionBudgets: how many pods may be
// taken down on purpose now. In: budgets, pods and the controllers of pods by watch.
// Out: the status of the budgets, which the eviction subresource asks.
package disruption

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	policylisters "k8s.io/client-go/listers/policy/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// Controller is the disruption controller.
type Controller struct {
	client  kubernetes.Interface
	events  record.EventRecorder
	budgets policylisters.PodDisruptionBudgetLister
	pods    corelisters.PodLister
	owners  owners
	synced  []cache.InformerSynced
	loop    *controller.Loop
}

// owners finds what a pod's controller wants to have.
type owners struct {
	deployments appslisters.DeploymentLister
	replicaSets appslisters.ReplicaSetLister
	stateful    appslisters.StatefulSetLister
	replication corelisters.ReplicationControllerLister
}

// New returns a controller that watches through f; f is started by the caller.
func New(client kubernetes.Interface, f informers.SharedInformerFactory, events record.EventRecorder) *Controller {
	budgets, pods, apps := f.Policy().V1().PodDisruptionBudgets(), f.Core().V1().Pods(), f.Apps().V1()
	rcs := f.Core().V1().ReplicationControllers()
	c := &Controller{
		client: client, events: events, budgets: budgets.Lister(), pods: pods.Lister(),
		owners: owners{apps.Deployments().Lister(), apps.ReplicaSets().Lister(), apps.StatefulSets().Lister(), rcs.Lister()},
		synced: []cache.InformerSynced{
			budgets.Informer().HasSynced, pods.Informer().HasSynced, apps.Deployments().Informer().HasSynced,
			apps.ReplicaSets().Informer().HasSynced, apps.StatefulSets().Informer().HasSynced, rcs.Informer().HasSynced,
		},
	}
	c.loop = controller.NewLoop("disruption", 1, c.sync)
	budgets.Informer().AddEventHandler(controller.Handler(func(old, b *policyv1.PodDisruptionBudget) {
		if b != nil {
			c.loop.Add(controller.Key(b))
		}
	}))
	pods.Informer().AddEventHandler(controller.Handler(func(old, p *corev1.Pod) {
		for _, pod := range []*corev1.Pod{old, p} {
			if pod != nil {
				c.addWhere(pod.Namespace, labels.Set(pod.Labels))
			}
		}
	}))
	onScale(c, apps.Deployments().Informer(), func(d *appsv1.Deployment) (*int32, map[string]string) {
		return d.Spec.Replicas, d.Spec.Template.Labels
	})
	onScale(c, apps.ReplicaSets().Informer(), func(rs *appsv1.ReplicaSet) (*int32, map[string]string) {
		return rs.Spec.Replicas, rs.Spec.Template.Labels
	})
	onScale(c, apps.StatefulSets().Informer(), func(s *appsv1.StatefulSet) (*int32, map[string]string) {
		return s.Spec.Replicas, s.Spec.Template.Labels
	})
	onScale(c, rcs.Informer(), func(rc *corev1.ReplicationController) (*int32, map[string]string) {
		if rc.Spec.Template == nil {
			return rc.Spec.Replicas, nil
		}
		return rc.Spec.Replicas, rc.Spec.Template.Labels
	})
	return c
}

// onScale looks again at the budgets over a workload's pods when its scale changes.
func onScale[T any, P interface {
	*T
	metav1.Object
}](c *Controller, informer cache.SharedIndexInformer, of func(P) (*int32, map[string]string)) {
	informer.AddEventHandler(controller.Handler(func(old, obj *T) {
		if old == nil || obj == nil {
			return // its pods come and go, too
		}
		before, _ := of(old)
		after, set := of(obj)
		if !apiequality.Semantic.DeepEqual(before, after) {
			c.addWhere(P(obj).GetNamespace(), labels.Set(set))
		}
	}))
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.synced...) }

func (c *Controller) addWhere(namespace string, set labels.Set) {
	budgets, err := c.budgets.PodDisruptionBudgets(namespace).List(labels.Everything())
	if err != nil {
		return
	}
	controller.AddWhere(c.loop, budgets, func(b *policyv1.PodDisruptionBudget) bool {
		s, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		return err == nil && s.Matches(set)
	})
}

func (c *Controller) sync(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	b, err := c.budgets.PodDisruptionBudgets(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	if err != nil {
		return nil // refused by validation
	}
	s := Snapshot{Budget: b}
	if s.Pods, err = c.pods.Pods(namespace).List(selector); err != nil {
		return err
	}
	if countsByScale(b) {
		s.Scale, s.Err = c.owners.scale(s.Pods)
	}
	if s.Err != nil {
		c.events.Event(b, corev1.EventTypeWarning, "CalculateExpectedPodCountFailed", "Failed to calculate the number of expected pods: "+s.Err.Error())
	}
	status, recheck := Decide(s, time.Now())
	if recheck > 0 {
		c.loop.AddAfter(key, recheck)
	}
	return c.update(ctx, b, status)
}

// update writes the status whole and only over the version that was looked at: the
// eviction subresource writes it, too, and its account of pods must not be lost.
func (c *Controller) update(ctx context.Context, b *policyv1.PodDisruptionBudget, s policyv1.PodDisruptionBudgetStatus) error {
	if apiequality.Semantic.DeepEqual(s, b.Status) {
		return nil
	}
	b = b.DeepCopy()
	b.Status = s
	_, err := c.client.PolicyV1().PodDisruptionBudgets(b.Namespace).UpdateStatus(ctx, b, metav1.UpdateOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write status of %s/%s: %w", b.Namespace, b.Name, err)
	}
	return nil
}

// scale adds up what the controllers of pods want, each once. Pods without a
// controller have no scale and are left out.
func (o owners) scale(pods []*corev1.Pod) (int, error) {
	counted := map[types.UID]int{}
	for _, p := range pods {
		ref := metav1.GetControllerOf(p)
		if ref == nil {
			continue
		}
		if _, ok := counted[ref.UID]; ok {
			continue
		}
		uid, n, err := o.wanted(p.Namespace, ref)
		if err != nil {
			return 0, err
		}
		counted[uid] = n
		if uid != ref.UID {
			counted[ref.UID] = 0 // a ReplicaSet of a Deployment that is counted
		}
	}
	sum := 0
	for _, n := range counted {
		sum += n
	}
	return sum, nil
}

// wanted is the scale of a controller, or of the Deployment above it.
func (o owners) wanted(namespace string, ref *metav1.OwnerReference) (types.UID, int, error) {
	replicas := func(n *int32) int {
		if n == nil {
			return 1
		}
		return int(*n)
	}
	switch ref.Kind {
	case "ReplicaSet":
		rs, err := o.replicaSets.ReplicaSets(namespace).Get(ref.Name)
		if err != nil {
			return "", 0, err
		}
		if up := metav1.GetControllerOf(rs); up != nil && up.Kind == "Deployment" {
			d, err := o.deployments.Deployments(namespace).Get(up.Name)
			if err != nil {
				return "", 0, err
			}
			return d.UID, replicas(d.Spec.Replicas), nil
		}
		return rs.UID, replicas(rs.Spec.Replicas), nil
	case "StatefulSet":
		s, err := o.stateful.StatefulSets(namespace).Get(ref.Name)
		if err != nil {
			return "", 0, err
		}
		return s.UID, replicas(s.Spec.Replicas), nil
	case "ReplicationController":
		rc, err := o.replication.ReplicationControllers(namespace).Get(ref.Name)
		if err != nil {
			return "", 0, err
		}
		return rc.UID, replicas(rc.Spec.Replicas), nil
	}
	return "", 0, fmt.Errorf("%s %s has no scale", ref.Kind, ref.Name)
}
