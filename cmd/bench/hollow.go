package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"
)

// Hollow workers say that their pods run and run nothing: what is left is the
// control plane's own share.
const (
	hollowNodes    = 10
	hollowReplicas = 1000
	// hollowWriters answer for all hollow workers together.
	hollowWriters = 16
)

// hollowTaint keeps other pods away from hollow nodes.
var hollowTaint = corev1.Taint{Key: "bench/hollow", Effect: corev1.TaintEffectNoSchedule}

// hollow measures a Deployment that is scaled from nothing to many pods and back.
func (b *bench) hollow(ctx context.Context, c *cluster) (err error) {
	defer func() { err = errors.Join(err, c.removeHollow()) }()
	for i := range hollowNodes {
		if err := c.addHollowNode(ctx, fmt.Sprintf("hollow-%d", i)); err != nil {
			return err
		}
	}
	if _, err := c.AppsV1().Deployments(namespace).Create(ctx, hollowDeployment(), metav1.CreateOptions{}); err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	w, err := c.watchPods(running, "hollow")
	if err != nil {
		return err
	}
	defer w.Stop()
	pods := hollowPods{w, map[string]bool{}}
	kubelets, err := c.watchPods(running, "hollow")
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer kubelets.Stop()
	defer stop()
	wg.Go(func() { c.runHollow(running, kubelets) })
	wg.Go(func() { c.renewHollow(running) })

	var ups, placed, downs sample
	var cpu time.Duration
	for range b.runs {
		before, ok := readProcess(fmt.Sprintf("/proc/%d", c.cmd.Process.Pid))
		if !ok {
			return os.ErrProcessDone
		}
		up, scheduled, err := c.scaleHollow(ctx, pods, hollowReplicas)
		if err != nil {
			return err
		}
		after, _ := readProcess(fmt.Sprintf("/proc/%d", c.cmd.Process.Pid))
		ups, placed, cpu = append(ups, up), append(placed, scheduled), cpu+after.cpu-before.cpu
		down, _, err := c.scaleHollow(ctx, pods, 0)
		if err != nil {
			return err
		}
		downs = append(downs, down)
	}
	what := fmt.Sprintf("a Deployment scaled 0 → %d pods against %d hollow workers: ", hollowReplicas, hollowNodes)
	b.add(row{what: what + "all bound", figure: placed.spread()})
	b.add(row{what: what + "all Ready in the Deployment's status", figure: fmt.Sprintf("%s (%.2f s of processor time in `up`)", ups.spread(), (cpu / time.Duration(b.runs)).Seconds())})
	b.add(row{what: fmt.Sprintf("the same scaled %d → 0: all gone", hollowReplicas), figure: downs.spread()})
	return nil
}

// scaleHollow scales the Deployment and returns after what time its status and its
// pods have followed, and after what time the last of them was bound.
func (c *cluster) scaleHollow(ctx context.Context, pods hollowPods, replicas int32) (done, bound time.Duration, err error) {
	deployments, err := c.AppsV1().Deployments(namespace).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=hollow"})
	if err != nil {
		return 0, 0, err
	}
	defer deployments.Stop()
	began := time.Now()
	body := fmt.Sprintf(`{"spec":{"replicas":%d}}`, replicas)
	if _, err := c.AppsV1().Deployments(namespace).Patch(ctx, "hollow", types.MergePatchType, []byte(body), metav1.PatchOptions{}, "scale"); err != nil {
		return 0, 0, err
	}
	at, err := until(ctx, pods, fmt.Sprintf("there are %d hollow pods", replicas), func(ev watch.Event) bool {
		p, ok := ev.Object.(*corev1.Pod)
		switch {
		case !ok:
			return false
		case ev.Type == watch.Deleted:
			delete(pods.bound, p.Name)
		case p.Spec.NodeName != "":
			pods.bound[p.Name] = true
		}
		return len(pods.bound) == int(replicas)
	})
	if err != nil {
		return 0, 0, err
	}
	bound = at.Sub(began)
	if replicas == 0 {
		return bound, bound, nil
	}
	at, err = until(ctx, deployments, fmt.Sprintf("%d hollow pods are available", replicas), func(ev watch.Event) bool {
		d, ok := ev.Object.(*appsv1.Deployment)
		return ok && *d.Spec.Replicas == replicas && complete(d)
	})
	return at.Sub(began), bound, err
}

// hollowPods watches the hollow pods and knows those that have a node.
type hollowPods struct {
	watch.Interface
	bound map[string]bool
}

func hollowDeployment() *appsv1.Deployment {
	labels := map[string]string{"app": "hollow"}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "hollow"},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To[int32](0), Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
				NodeSelector: map[string]string{hollowTaint.Key: "true"},
				Tolerations:  []corev1.Toleration{{Key: hollowTaint.Key, Operator: corev1.TolerationOpExists}},
				Containers:   []corev1.Container{{Name: "c", Image: "hollow"}},
			}},
		},
	}
}

// addHollowNode makes a Node with a lease.
func (c *cluster) addHollowNode(ctx context.Context, name string) error {
	resources := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("64"), corev1.ResourceMemory: resource.MustParse("256Gi"), corev1.ResourcePods: resource.MustParse("200"),
	}
	now := metav1.Now()
	_, err := c.CoreV1().Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{hollowTaint.Key: "true", corev1.LabelHostname: name}},
		Spec:       corev1.NodeSpec{Taints: []corev1.Taint{hollowTaint}},
		Status: corev1.NodeStatus{
			Capacity: resources, Allocatable: resources,
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: now, LastTransitionTime: now}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	_, err = c.CoordinationV1().Leases(corev1.NamespaceNodeLease).Create(ctx, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: corev1.NamespaceNodeLease},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: ptr.To[int32](40), RenewTime: ptr.To(metav1.NowMicro())},
	}, metav1.CreateOptions{})
	return err
}

// removeHollow leaves the cluster as it was, also after the run was cancelled.
func (c *cluster) removeHollow() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	now := metav1.NewDeleteOptions(0)
	err := c.AppsV1().Deployments(namespace).Delete(ctx, "hollow", *now)
	errs := []error{err, c.CoreV1().Pods(namespace).DeleteCollection(ctx, *now, metav1.ListOptions{LabelSelector: "app=hollow"})}
	for i := range hollowNodes {
		errs = append(errs, c.CoreV1().Nodes().Delete(ctx, fmt.Sprintf("hollow-%d", i), *now))
	}
	return errors.Join(errs...)
}

// renewHollow keeps the hollow nodes' leases, as kubelets do.
func (c *cluster) renewHollow(ctx context.Context) {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for i := range hollowNodes {
			body := fmt.Sprintf(`{"spec":{"renewTime":%q}}`, time.Now().UTC().Format(metav1.RFC3339Micro))
			_, _ = c.CoordinationV1().Leases(corev1.NamespaceNodeLease).Patch(ctx, fmt.Sprintf("hollow-%d", i), types.MergePatchType, []byte(body), metav1.PatchOptions{})
		}
	}
}

// runHollow is all hollow workers: what is bound to them runs at once, and what is
// to end is gone.
func (c *cluster) runHollow(ctx context.Context, w watch.Interface) {
	work := make(chan *corev1.Pod, hollowReplicas)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(work)
	for range hollowWriters {
		wg.Go(func() {
			for p := range work {
				// What fails is a pod that is not Ready, which the measurement waits for
				// in vain and tells.
				if p.DeletionTimestamp != nil {
					_ = c.CoreV1().Pods(namespace).Delete(ctx, p.Name, *metav1.NewDeleteOptions(0))
					continue
				}
				_, _ = c.CoreV1().Pods(namespace).UpdateStatus(ctx, runningPod(p), metav1.UpdateOptions{})
			}
		})
	}
	for ev := range w.ResultChan() {
		p, ok := ev.Object.(*corev1.Pod)
		if !ok || ev.Type == watch.Deleted || p.Spec.NodeName == "" || (p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodRunning) {
			continue
		}
		select {
		case work <- p:
		case <-ctx.Done():
			return
		}
	}
}

func runningPod(p *corev1.Pod) *corev1.Pod {
	p = p.DeepCopy()
	now := metav1.Now()
	p.Status.Phase, p.Status.StartTime = corev1.PodRunning, &now
	for _, kind := range []corev1.PodConditionType{corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	return p
}
