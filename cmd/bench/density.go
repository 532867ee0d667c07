package main

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

// clear removes all applications and waits until no pod is left, so that what
// follows is measured from an empty cluster.
func (b *bench) clear(ctx context.Context, c *cluster) error {
	err := c.AppsV1().RESTClient().Delete().AbsPath("/apis", v1alpha1.SchemeGroupVersion.String(), "namespaces", namespace, "applications").Do(ctx).Error()
	if err != nil {
		return fmt.Errorf("remove the applications: %w", err)
	}
	background := metav1.DeletePropagationBackground
	if err := c.AppsV1().Deployments(namespace).DeleteCollection(ctx, metav1.DeleteOptions{PropagationPolicy: &background}, metav1.ListOptions{}); err != nil {
		return err
	}
	return c.noPods(ctx)
}

// noPods waits until no pod is left.
func (c *cluster) noPods(ctx context.Context) error {
	pods := c.CoreV1().Pods(namespace)
	list, err := pods.List(ctx, metav1.ListOptions{})
	if err != nil || len(list.Items) == 0 {
		return err
	}
	left := map[string]bool{}
	for _, p := range list.Items {
		left[p.Name] = true
	}
	w, err := pods.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		return err
	}
	defer w.Stop()
	_, err = until(ctx, w, "no pod is left", func(ev watch.Event) bool {
		if p, ok := ev.Object.(*corev1.Pod); ok {
			left[p.Name] = true
			if ev.Type == watch.Deleted {
				delete(left, p.Name)
			}
		}
		return len(left) == 0
	})
	return err
}

const densityPods = 200

// density measures many pods at once, and what each of them costs besides its own
// container.
func (b *bench) density(ctx context.Context, c *cluster) error {
	before, err := b.observe(ctx, c)
	if err != nil {
		return err
	}
	took, err := c.deploy(ctx, "dense", densityPods, corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: image("v1")}}})
	if err != nil {
		return err
	}
	after, err := b.observe(ctx, c)
	if err != nil {
		return err
	}
	b.add(row{what: fmt.Sprintf("a Deployment of %d pods on two workers: created → all Ready, one run", densityPods), figure: show(took)})
	pss := func(u use) (sum int64) {
		for _, p := range u.memory {
			sum += p.pss
		}
		return sum
	}
	b.add(row{
		what:   fmt.Sprintf("the same: memory for each pod beyond its container's own (shim, init, worker, control plane; %d pods)", after.pods()),
		figure: fmt.Sprintf("%.2f MB PSS", float64(pss(after)-pss(before))/float64(densityPods)/1e6),
	})
	b.add(row{what: "the same: processor at rest", figure: fmt.Sprintf("%.1f %% of one core (%.1f %% before)", after.cpu, before.cpu)})
	return c.undeploy(ctx, "dense")
}

// Probes are measured on pods with five containers of two probes each.
const probedContainers = 5

// probed is a pod with ten probes, or with none if every is 0.
func probed(every int32) corev1.PodSpec {
	var spec corev1.PodSpec
	for n := range probedContainers {
		// Each serves on a port of its own; they share the pod's network.
		port := 8080 + n
		ctr := corev1.Container{Name: fmt.Sprintf("web-%d", n), Image: image("v1"), Env: []corev1.EnvVar{{Name: "PORT", Value: fmt.Sprint(port)}}}
		if every > 0 {
			p := &corev1.Probe{
				ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt(port)}},
				PeriodSeconds: every,
			}
			ctr.ReadinessProbe, ctr.LivenessProbe = p, p
		}
		spec.Containers = append(spec.Containers, ctr)
	}
	return spec
}

// probes measures what ten probes a second cost for a pod, besides its containers,
// and what 500 of the usual period cost one node.
func (b *bench) probes(ctx context.Context, c *cluster) error {
	// cost is the processor that probed pods take above those without probes.
	cost := func(pods int32, every int32, node string) (with, without float64, err error) {
		var cpu [2]float64
		for i, every := range []int32{0, every} {
			name, spec := fmt.Sprintf("probed-%d", i), probed(every)
			if node != "" {
				spec.NodeSelector = map[string]string{corev1.LabelHostname: node}
			}
			if _, err := c.deploy(ctx, name, pods, spec); err != nil {
				return 0, 0, err
			}
			u, err := b.observe(ctx, c)
			if err != nil {
				return 0, 0, err
			}
			cpu[i] = u.cpu
			if err := c.undeploy(ctx, name); err != nil {
				return 0, 0, err
			}
		}
		return cpu[1], cpu[0], nil
	}
	const each, many = 10, 50
	with, without, err := cost(each, 1, "")
	if err != nil {
		return err
	}
	b.add(row{
		what:   "ten HTTP probes a second in a pod: processor besides the pod's containers",
		figure: fmt.Sprintf("%.2f %% of one core (%d such pods: %.1f %%, without probes %.1f %%)", (with-without)/each, each, with, without),
	})
	if with, without, err = cost(many, 10, "worker-1"); err != nil {
		return err
	}
	b.add(row{
		what:   fmt.Sprintf("%d HTTP probes of the usual ten seconds on one node (%d pods): processor besides the pods' containers", many*probedContainers*2, many),
		figure: fmt.Sprintf("%.1f %% of one core (with %.1f %%, without probes %.1f %%)", with-without, with, without),
	})
	return nil
}

const orderedReplicas = 5

// orderedStart measures a StatefulSet whose pods wait for each other.
func (b *bench) orderedStart(ctx context.Context, c *cluster) error {
	var took sample
	for i := range b.runs {
		name := fmt.Sprintf("ordered-%d", i)
		labels := map[string]string{"app": name}
		w, err := c.watchPods(ctx, name)
		if err != nil {
			return err
		}
		began := time.Now()
		_, err = c.AppsV1().StatefulSets(namespace).Create(ctx, &appsv1.StatefulSet{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: appsv1.StatefulSetSpec{
				Replicas: ptr.To[int32](orderedReplicas), Selector: &metav1.LabelSelector{MatchLabels: labels},
				Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
					Containers: []corev1.Container{{Name: "web", Image: image("v1")}},
				}},
			},
		}, metav1.CreateOptions{})
		if err != nil {
			w.Stop()
			return err
		}
		at, err := untilReady(ctx, w, orderedReplicas)
		w.Stop()
		if err != nil {
			return err
		}
		took = append(took, at.Sub(began))
		background := metav1.DeletePropagationBackground
		if err := c.AppsV1().StatefulSets(namespace).Delete(ctx, name, metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
			return err
		}
		if err := c.noPods(ctx); err != nil {
			return err
		}
	}
	b.add(row{what: fmt.Sprintf("a StatefulSet of %d, one after the other: created → all Ready", orderedReplicas), figure: took.spread()})
	return nil
}

// deploy creates a Deployment and returns after what time its pods were Ready.
func (c *cluster) deploy(ctx context.Context, name string, replicas int32, spec corev1.PodSpec) (time.Duration, error) {
	w, err := c.watchPods(ctx, name)
	if err != nil {
		return 0, err
	}
	defer w.Stop()
	labels := map[string]string{"app": name}
	began := time.Now()
	_, err = c.AppsV1().Deployments(namespace).Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return 0, err
	}
	at, err := untilReady(ctx, w, int(replicas))
	return at.Sub(began), err
}

func (c *cluster) undeploy(ctx context.Context, name string) error {
	background := metav1.DeletePropagationBackground
	if err := c.AppsV1().Deployments(namespace).Delete(ctx, name, metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
		return err
	}
	return c.noPods(ctx)
}

// untilReady waits until so many of the watched pods are Ready.
func untilReady(ctx context.Context, w watch.Interface, n int) (time.Time, error) {
	ready := map[string]bool{}
	return until(ctx, w, fmt.Sprintf("%d pods are Ready", n), func(ev watch.Event) bool {
		if p, ok := ev.Object.(*corev1.Pod); ok {
			delete(ready, p.Name)
			if isReady(p) {
				ready[p.Name] = true
			}
		}
		return len(ready) == n
	})
}
