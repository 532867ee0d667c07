// Package replicaset keeps the number of pods of each ReplicaSet at
// spec.replicas. In: ReplicaSets and pods by watch. Out: pods created and deleted,
// owner references, and the status of the ReplicaSet. A ReplicationController, the
// older form of the same thing, is taken for a ReplicaSet (target.go).
package replicaset

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// burst bounds the pods created or deleted by one look at one ReplicaSet, as
// kube-controller-manager does; the rest follows when these have been seen.
const burst = 500

// Controller is the ReplicaSet controller, or that of ReplicationControllers.
type Controller struct {
	client  kubernetes.Interface
	target  target
	pods    corelisters.PodLister
	synced  []cache.InformerSynced
	control controller.PodControl
	loop    *controller.Loop
}

// New returns a controller of ReplicaSets that watches through f; f is started by
// the caller.
func New(client kubernetes.Interface, f informers.SharedInformerFactory, events record.EventRecorder) *Controller {
	c := newController(client, f, events, replicaSets(client, f))
	f.Apps().V1().ReplicaSets().Informer().AddEventHandler(controller.Handler(c.onSet))
	return c
}

func newController(client kubernetes.Interface, f informers.SharedInformerFactory, events record.EventRecorder, of target) *Controller {
	pods := f.Core().V1().Pods()
	c := &Controller{
		client: client, target: of, pods: pods.Lister(),
		synced:  []cache.InformerSynced{of.synced, pods.Informer().HasSynced},
		control: controller.PodControl{Client: client, Events: events},
	}
	c.loop = controller.NewLoop(strings.ToLower(of.kind.Kind), 5, c.sync)
	c.control.Expected = controller.NewExpectations(c.loop.AddAfter)
	pods.Informer().AddEventHandler(controller.Handler(c.onPod))
	return c
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.synced...) }

func (c *Controller) onSet(old, rs *appsv1.ReplicaSet) {
	if rs == nil {
		c.control.Expected.Forget(controller.Key(old))
		rs = old
	}
	c.loop.Add(controller.Key(rs))
}

func (c *Controller) onPod(old, pod *corev1.Pod) {
	if old != nil && pod != nil && old.ResourceVersion == pod.ResourceVersion {
		return
	}
	current := pod
	if current == nil {
		current = old
	}
	if ref := metav1.GetControllerOf(current); ref != nil && ref.Kind == c.target.kind.Kind {
		key := current.Namespace + "/" + ref.Name
		c.control.Observe(key, old, pod)
		c.loop.Add(key)
	} else if pod != nil {
		c.addMatching(pod)
	}
	if old != nil && pod != nil {
		// A pod that was released or taken over counts for its former owner too.
		if ref := metav1.GetControllerOf(old); ref != nil && ref.Kind == c.target.kind.Kind {
			c.loop.Add(old.Namespace + "/" + ref.Name)
		}
	}
}

// addMatching queues the ReplicaSets that may adopt an orphan.
func (c *Controller) addMatching(pod *corev1.Pod) {
	if metav1.GetControllerOf(pod) != nil || len(pod.Labels) == 0 {
		return
	}
	sets, err := c.target.list(pod.Namespace)
	if err != nil {
		return
	}
	controller.AddWhere(c.loop, sets, func(rs *appsv1.ReplicaSet) bool {
		s, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector)
		return err == nil && !s.Empty() && s.Matches(labels.Set(pod.Labels))
	})
}

func (c *Controller) sync(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	rs, err := c.target.get(namespace, name)
	if apierrors.IsNotFound(err) {
		c.control.Expected.Forget(key)
		return nil
	}
	if err != nil {
		return err
	}
	selector, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector)
	if err != nil || selector.Empty() {
		return nil // refused by validation; nothing sensible can be done with it
	}
	satisfied := c.control.Expected.Satisfied(key)
	owned, err := c.claim(ctx, rs, selector)
	if err != nil {
		return err
	}
	d := Decide(rs, owned, time.Now())
	var doErr error
	if satisfied && rs.DeletionTimestamp == nil {
		doErr = c.do(ctx, key, rs, d)
	}
	if err := c.updateStatus(ctx, rs, d.Status, doErr); err != nil {
		return errors.Join(doErr, err)
	}
	if d.Recheck > 0 {
		c.loop.AddAfter(key, d.Recheck)
	}
	return doErr
}

func (c *Controller) claim(ctx context.Context, rs *appsv1.ReplicaSet, selector labels.Selector) ([]*corev1.Pod, error) {
	all, err := c.pods.Pods(rs.Namespace).List(labels.Everything())
	if err != nil {
		return nil, err
	}
	claims := controller.Claim(rs, selector, all)
	owned := claims.Owned
	if len(claims.Adopt) > 0 {
		// The cache may be older than a deletion of the owner: ask before adopting.
		live, err := c.target.live(ctx, rs.Namespace, rs.Name)
		if err != nil || live.UID != rs.UID || live.DeletionTimestamp != nil {
			return owned, err
		}
	}
	for _, p := range claims.Adopt {
		if !controller.PodActive(p) {
			continue
		}
		_, err := c.client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType,
			controller.AdoptPatch(rs, c.target.kind, p), metav1.PatchOptions{})
		switch {
		case apierrors.IsNotFound(err), apierrors.IsInvalid(err), apierrors.IsConflict(err):
			continue
		case err != nil:
			return nil, fmt.Errorf("adopt pod %s/%s: %w", p.Namespace, p.Name, err)
		}
		owned = append(owned, p)
	}
	for _, p := range claims.Release {
		_, err := c.client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType,
			controller.ReleasePatch(rs, p), metav1.PatchOptions{})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsInvalid(err) {
			return nil, fmt.Errorf("release pod %s/%s: %w", p.Namespace, p.Name, err)
		}
	}
	return owned, nil
}

func (c *Controller) do(ctx context.Context, key string, rs *appsv1.ReplicaSet, d Decision) error {
	if d.Create > 0 {
		return c.control.Create(ctx, rs, key, min(d.Create, burst), func(int) *corev1.Pod { return newPod(rs, c.target.kind) })
	}
	return c.control.Delete(ctx, rs, key, d.Delete[:min(len(d.Delete), burst)])
}

func newPod(rs *appsv1.ReplicaSet, kind schema.GroupVersionKind) *corev1.Pod {
	t := rs.Spec.Template.DeepCopy()
	// The API server cuts a generated name's prefix to fit; a prefix that is no
	// valid name itself loses its dash there.
	p := &corev1.Pod{ObjectMeta: t.ObjectMeta, Spec: t.Spec}
	p.Name, p.Namespace = "", rs.Namespace
	p.GenerateName = strings.TrimSuffix(rs.Name, "-") + "-"
	p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(rs, kind)}
	return p
}

func (c *Controller) updateStatus(ctx context.Context, rs *appsv1.ReplicaSet, s appsv1.ReplicaSetStatus, failure error) error {
	setFailure(&s, failure, metav1.Now())
	if !c.target.countsTerminating {
		s.TerminatingReplicas = nil
	}
	if reflect.DeepEqual(s, rs.Status) {
		return nil
	}
	body, err := controller.StatusPatch(rs, s, "replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "conditions")
	if err != nil {
		return err
	}
	err = c.target.patchStatus(ctx, rs.Namespace, rs.Name, body)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// setFailure keeps the ReplicaFailure condition equal to the outcome of the last
// attempt to create or delete.
func setFailure(s *appsv1.ReplicaSetStatus, failure error, now metav1.Time) {
	at := -1
	for i, c := range s.Conditions {
		if c.Type == appsv1.ReplicaSetReplicaFailure {
			at = i
		}
	}
	switch {
	case failure == nil && at >= 0:
		s.Conditions = append(s.Conditions[:at:at], s.Conditions[at+1:]...)
		if len(s.Conditions) == 0 {
			s.Conditions = nil
		}
	case failure != nil && at < 0:
		reason := "FailedCreate"
		if strings.HasPrefix(failure.Error(), "delete") {
			reason = "FailedDelete"
		}
		s.Conditions = append(s.Conditions, appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue,
			LastTransitionTime: now, Reason: reason, Message: failure.Error(),
		})
	}
}
