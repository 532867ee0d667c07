// Package nodelifecycle watches the leases of the nodes: one that is not renewed
// makes its node Unknown, then tainted, then empty. It also removes the pods of
// nodes that no longer exist. In: Nodes, Leases and pods by watch.
package nodelifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/flowcontrol"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// nodeIndex finds the pods of a node in the pod informer.
const nodeIndex = "spec.nodeName"

// Evictions a second, all nodes together: when many nodes are lost at once, the
// control plane is more likely to be wrong than they are.
const evictionRate = 10

// Controller is the node lifecycle controller.
type Controller struct {
	client kubernetes.Interface
	events record.EventRecorder
	nodes  corelisters.NodeLister
	pods   cache.Indexer
	synced []cache.InformerSynced
	loop   *controller.Loop // keys are node names
	evict  *controller.Loop // keys are pods
	limit  flowcontrol.RateLimiter

	mu      sync.Mutex
	renewed map[string]renewal
}

// renewal is a lease's renew time and when, by our clock, it was first seen: a
// node with a clock of its own is judged by the latter.
type renewal struct {
	renewTime metav1.MicroTime
	seen      time.Time
}

// New returns a controller that watches through f; f is started by the caller.
func New(client kubernetes.Interface, f informers.SharedInformerFactory, events record.EventRecorder) (*Controller, error) {
	nodes, pods, leases := f.Core().V1().Nodes(), f.Core().V1().Pods(), f.Coordination().V1().Leases()
	c := &Controller{
		client: client, events: events, nodes: nodes.Lister(), pods: pods.Informer().GetIndexer(),
		synced:  []cache.InformerSynced{nodes.Informer().HasSynced, pods.Informer().HasSynced, leases.Informer().HasSynced},
		limit:   flowcontrol.NewTokenBucketRateLimiter(evictionRate, evictionRate),
		renewed: map[string]renewal{},
	}
	c.loop = controller.NewLoop("nodelifecycle", 1, c.syncNode)
	c.evict = controller.NewLoop("taint-eviction", 2, c.syncPod)
	err := pods.Informer().AddIndexers(cache.Indexers{nodeIndex: func(obj any) ([]string, error) {
		p, ok := obj.(*corev1.Pod)
		if !ok || p.Spec.NodeName == "" {
			return nil, nil
		}
		return []string{p.Spec.NodeName}, nil
	}})
	if err != nil {
		return nil, fmt.Errorf("index pods by node: %w", err)
	}
	nodes.Informer().AddEventHandler(controller.Handler(c.onNode))
	leases.Informer().AddEventHandler(controller.Handler(c.onLease))
	pods.Informer().AddEventHandler(controller.Handler(func(old, p *corev1.Pod) {
		if p != nil && p.Spec.NodeName != "" && (old == nil || old.Spec.NodeName == "") {
			c.evict.Add(controller.Key(p))
		}
	}))
	return c, nil
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { _ = c.evict.Run(ctx, c.synced...) })
	err := c.loop.Run(ctx, c.synced...)
	wg.Wait()
	return err
}

func (c *Controller) onNode(old, n *corev1.Node) {
	if n == nil {
		c.mu.Lock()
		delete(c.renewed, old.Name)
		c.mu.Unlock()
		// Its pods go when it has been away for as long as a lease lasts: a node
		// that is deleted and registers anew keeps them.
		for _, p := range c.podsOf(old.Name) {
			c.evict.AddAfter(controller.Key(p), gracePeriod)
		}
		return
	}
	c.loop.Add(n.Name)
	if old == nil || !apiequality.Semantic.DeepEqual(old.Spec.Taints, n.Spec.Taints) {
		for _, p := range c.podsOf(n.Name) {
			c.evict.Add(controller.Key(p))
		}
	}
}

func (c *Controller) onLease(_, l *coordinationv1.Lease) {
	if l == nil || l.Namespace != corev1.NamespaceNodeLease || l.Spec.RenewTime == nil {
		return
	}
	c.mu.Lock()
	was, known := c.renewed[l.Name]
	if !known || !was.renewTime.Equal(l.Spec.RenewTime) {
		c.renewed[l.Name] = renewal{*l.Spec.RenewTime, time.Now()}
	}
	c.mu.Unlock()
	if n, err := c.nodes.Get(l.Name); err == nil && (!known || unreachable(n)) {
		c.loop.Add(l.Name)
	}
}

func unreachable(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionUnknown
		}
	}
	return true
}

func (c *Controller) podsOf(node string) (out []*corev1.Pod) {
	objs, err := c.pods.ByIndex(nodeIndex, node)
	if err != nil {
		return nil
	}
	for _, o := range objs {
		if p, ok := o.(*corev1.Pod); ok {
			out = append(out, p)
		}
	}
	return out
}

// heard is when the node last gave a sign of life. A node that has no lease yet
// is given the grace period from when we first looked.
func (c *Controller) heard(node string) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.renewed[node]
	if !ok {
		r.seen = time.Now()
		c.renewed[node] = r
	}
	return r.seen
}

func (c *Controller) syncNode(ctx context.Context, name string) error {
	node, err := c.nodes.Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	d := Decide(node, c.heard(name), time.Now())
	if !apiequality.Semantic.DeepEqual(d.Conditions, node.Status.Conditions) {
		body, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": node.UID}, "status": map[string]any{"conditions": d.Conditions}})
		if err != nil {
			return err
		}
		_, err = c.client.CoreV1().Nodes().Patch(ctx, name, types.StrategicMergePatchType, body, metav1.PatchOptions{}, "status")
		if err != nil {
			return fmt.Errorf("mark node %s unknown: %w", name, err)
		}
		c.events.Event(node, corev1.EventTypeNormal, "NodeNotReady", "Node "+name+" status is now: NodeNotReady")
	}
	if !apiequality.Semantic.DeepEqual(d.Taints, node.Spec.Taints) {
		next := node.DeepCopy()
		next.Spec.Taints = d.Taints
		if _, err := c.client.CoreV1().Nodes().Update(ctx, next, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("taint node %s: %w", name, err)
		}
	}
	if d.Lost {
		for _, p := range c.podsOf(name) {
			if err := c.markNotReady(ctx, p); err != nil {
				return err
			}
		}
	}
	if d.Recheck > 0 {
		c.loop.AddAfter(name, d.Recheck)
	}
	return nil
}

// markNotReady takes the pods of a lost node out of their Services.
func (c *Controller) markNotReady(ctx context.Context, p *corev1.Pod) error {
	if !controller.PodReady(p) {
		return nil
	}
	return c.setCondition(ctx, p, corev1.PodCondition{
		Type: corev1.PodReady, Status: corev1.ConditionFalse, Reason: "NodeLost", Message: "The node has stopped reporting.",
	})
}

// disrupted says on a pod that it goes for no fault of its own, which its Job may
// ask (KEP-3329).
func (c *Controller) disrupted(ctx context.Context, p *corev1.Pod, reason, message string) error {
	if controller.PodCondition(p, corev1.DisruptionTarget) != nil || !controller.PodActive(p) {
		return nil
	}
	return c.setCondition(ctx, p, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: reason, Message: message})
}

// setCondition changes one condition of a pod, if it is still there.
func (c *Controller) setCondition(ctx context.Context, p *corev1.Pod, condition corev1.PodCondition) error {
	condition.LastTransitionTime = metav1.Now()
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": p.UID}, "status": map[string]any{"conditions": []corev1.PodCondition{condition}},
	})
	if err != nil {
		return err
	}
	_, err = c.client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, body, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) || apierrors.IsInvalid(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// syncPod evicts one pod when its node's taints say so, and removes it when its
// node is gone.
func (c *Controller) syncPod(ctx context.Context, key string) error {
	obj, ok, err := c.pods.GetByKey(key)
	if err != nil || !ok {
		return err
	}
	p, ok := obj.(*corev1.Pod)
	if !ok || p.Spec.NodeName == "" {
		return nil
	}
	node, err := c.nodes.Get(p.Spec.NodeName)
	if apierrors.IsNotFound(err) {
		return c.removeOrphan(ctx, p)
	}
	if err != nil || p.DeletionTimestamp != nil {
		return err
	}
	now := time.Now()
	at, due := EvictAt(p, node.Spec.Taints, now)
	if !due {
		return nil
	}
	if at.After(now) {
		c.evict.AddAfter(key, at.Sub(now))
		return nil
	}
	c.limit.Accept()
	if err := c.disrupted(ctx, p, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint"); err != nil {
		return err
	}
	c.events.Eventf(p, corev1.EventTypeNormal, "TaintManagerEviction", "Marking for deletion Pod %s", key)
	err = c.client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(p.UID))})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// removeOrphan deletes a pod of a node that no longer exists: nobody is left to
// confirm its end.
func (c *Controller) removeOrphan(ctx context.Context, p *corev1.Pod) error {
	if _, err := c.client.CoreV1().Nodes().Get(ctx, p.Spec.NodeName, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return err
	}
	if err := c.disrupted(ctx, p, "DeletionByPodGC", "PodGC: node no longer exists"); err != nil {
		return err
	}
	zero := int64(0)
	err := c.client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &zero, Preconditions: metav1.NewUIDPreconditions(string(p.UID)),
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}
