// Package podautoscaler scales workloads by what their pods use: every 15 seconds,
// as kube-controller-manager, for usage has no watch. In: HorizontalPodAutoscalers
// and pods by watch, the scale of the target and the usage of its pods by asking.
// Out: the scale of the target and the autoscaler's status. Decide is pure.
package podautoscaler

import (
	"context"
	"fmt"
	"sync"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	autoscalinglisters "k8s.io/client-go/listers/autoscaling/v2"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
	metrics "k8s.io/metrics/pkg/client/clientset/versioned/typed/metrics/v1beta1"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// period is the time between two looks at an autoscaler.
const period = 15 * time.Second

// Controller is the horizontal pod autoscaler.
type Controller struct {
	client      kubernetes.Interface
	metrics     metrics.PodMetricsesGetter
	events      record.EventRecorder
	autoscalers autoscalinglisters.HorizontalPodAutoscalerLister
	pods        corelisters.PodLister
	synced      []cache.InformerSynced
	loop        *controller.Loop

	mu      sync.Mutex
	history map[types.UID]History
}

// New returns a controller that watches through f; f is started by the caller.
func New(client kubernetes.Interface, usage metrics.PodMetricsesGetter, f informers.SharedInformerFactory, events record.EventRecorder) *Controller {
	autoscalers, pods := f.Autoscaling().V2().HorizontalPodAutoscalers(), f.Core().V1().Pods()
	c := &Controller{
		client: client, metrics: usage, events: events, history: map[types.UID]History{},
		autoscalers: autoscalers.Lister(), pods: pods.Lister(),
		synced: []cache.InformerSynced{autoscalers.Informer().HasSynced, pods.Informer().HasSynced},
	}
	c.loop = controller.NewLoop("podautoscaler", 2, c.sync)
	autoscalers.Informer().AddEventHandler(controller.Handler(func(old, a *autoscalingv2.HorizontalPodAutoscaler) {
		switch {
		case a == nil:
			c.mu.Lock()
			delete(c.history, old.UID)
			c.mu.Unlock()
		case old == nil || old.Generation != a.Generation:
			c.loop.Add(controller.Key(a))
		}
	}))
	return c
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.synced...) }

func (c *Controller) sync(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	a, err := c.autoscalers.HorizontalPodAutoscalers(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	// A failure is told in the status and tried again in time, not at once.
	c.loop.AddAfter(key, period)
	s, err := c.snapshot(ctx, a)
	if err != nil {
		return err
	}
	now := time.Now()
	d := Decide(s, now)
	if d.Rescale {
		current := s.Scale.Spec.Replicas
		if err := c.rescale(ctx, a, s.Scale, d.Status.DesiredReplicas); err != nil {
			d.Failed(current, err, now)
		} else {
			d.Rescaled(current, now)
		}
	}
	c.mu.Lock()
	c.history[a.UID] = d.History
	c.mu.Unlock()
	for _, e := range d.Events {
		c.events.Event(a, e.Type, e.Reason, e.Message)
	}
	return c.update(ctx, a, d.Status)
}

func (c *Controller) snapshot(ctx context.Context, a *autoscalingv2.HorizontalPodAutoscaler) (Snapshot, error) {
	s := Snapshot{Autoscaler: a}
	c.mu.Lock()
	s.History = c.history[a.UID]
	c.mu.Unlock()
	if s.Scale, s.ScaleErr = c.scale(ctx, a); s.ScaleErr != nil {
		return s, nil
	}
	selector, err := labels.Parse(s.Scale.Status.Selector)
	if err != nil || selector.Empty() {
		s.Scale.Status.Selector = ""
		return s, nil
	}
	others, err := c.autoscalers.HorizontalPodAutoscalers(a.Namespace).List(labels.Everything())
	if err != nil {
		return s, err
	}
	for _, other := range others {
		if other.UID != a.UID && sameTarget(other.Spec.ScaleTargetRef, a.Spec.ScaleTargetRef) {
			s.Ambiguous = append(s.Ambiguous, other.Name)
		}
	}
	if s.Pods, err = c.pods.Pods(a.Namespace).List(selector); err != nil {
		return s, err
	}
	if len(s.Pods) == 0 || s.Scale.Spec.Replicas == 0 {
		return s, nil // what they use is not asked for
	}
	list, err := c.metrics.PodMetricses(a.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector.String()})
	if err != nil {
		s.UsedErr = err
		return s, nil
	}
	s.Used = usageByPod(list.Items)
	return s, nil
}

func usageByPod(list []metricsv1beta1.PodMetrics) map[string]Usage {
	out := make(map[string]Usage, len(list))
	for _, m := range list {
		u := Usage{At: m.Timestamp.Time, Window: m.Window.Duration, Containers: map[string]corev1.ResourceList{}}
		for _, c := range m.Containers {
			u.Containers[c.Name] = c.Usage
		}
		out[m.Name] = u
	}
	return out
}

func sameTarget(a, b autoscalingv2.CrossVersionObjectReference) bool {
	return a.Kind == b.Kind && a.Name == b.Name && groupOf(a) == groupOf(b)
}

func groupOf(ref autoscalingv2.CrossVersionObjectReference) string {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return ref.APIVersion
	}
	return gv.Group
}

// scaler is the scale subresource of a kind.
type scaler interface {
	GetScale(ctx context.Context, name string, o metav1.GetOptions) (*autoscalingv1.Scale, error)
	UpdateScale(ctx context.Context, name string, scale *autoscalingv1.Scale, o metav1.UpdateOptions) (*autoscalingv1.Scale, error)
}

// scalerOf finds the scale subresource of the kind that an autoscaler names.
func (c *Controller) scalerOf(a *autoscalingv2.HorizontalPodAutoscaler) (scaler, error) {
	ref, apps := a.Spec.ScaleTargetRef, c.client.AppsV1()
	switch groupOf(ref) + "/" + ref.Kind {
	case "apps/Deployment":
		return apps.Deployments(a.Namespace), nil
	case "apps/StatefulSet":
		return apps.StatefulSets(a.Namespace), nil
	case "apps/ReplicaSet":
		return apps.ReplicaSets(a.Namespace), nil
	case "/ReplicationController":
		return c.client.CoreV1().ReplicationControllers(a.Namespace), nil
	}
	return nil, fmt.Errorf("no matches for kind %q in group %q with a scale subresource; use a Deployment, StatefulSet, ReplicaSet or ReplicationController",
		ref.Kind, groupOf(ref))
}

func (c *Controller) scale(ctx context.Context, a *autoscalingv2.HorizontalPodAutoscaler) (*autoscalingv1.Scale, error) {
	s, err := c.scalerOf(a)
	if err != nil {
		return nil, err
	}
	return s.GetScale(ctx, a.Spec.ScaleTargetRef.Name, metav1.GetOptions{})
}

// rescale is refused when somebody else has scaled since it was looked at.
func (c *Controller) rescale(ctx context.Context, a *autoscalingv2.HorizontalPodAutoscaler, scale *autoscalingv1.Scale, replicas int32) error {
	s, err := c.scalerOf(a)
	if err != nil {
		return err
	}
	scale.Spec.Replicas = replicas
	_, err = s.UpdateScale(ctx, scale.Name, scale, metav1.UpdateOptions{})
	return err
}

func (c *Controller) update(ctx context.Context, a *autoscalingv2.HorizontalPodAutoscaler, status autoscalingv2.HorizontalPodAutoscalerStatus) error {
	if apiequality.Semantic.DeepEqual(a.Status, status) {
		return nil
	}
	a = a.DeepCopy()
	a.Status = status
	_, err := c.client.AutoscalingV2().HorizontalPodAutoscalers(a.Namespace).UpdateStatus(ctx, a, metav1.UpdateOptions{})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("write status of %s/%s: %w", a.Namespace, a.Name, err)
	}
	return nil // a newer one is looked at in time
}
