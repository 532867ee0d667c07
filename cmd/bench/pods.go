package main

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

const namespace = metav1.NamespaceDefault

func isReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil
		}
	}
	return false
}

// prepare pushes the images and has both nodes pull them.
func (b *bench) prepare(ctx context.Context, c *cluster) error {
	if err := c.pushImages(ctx, b.server); err != nil {
		return err
	}
	nodes, err := c.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, n := range nodes.Items {
		for _, v := range versions {
			if _, err := c.onePod(ctx, "warm-"+n.Name+"-"+v, n.Name, v); err != nil {
				return err
			}
		}
	}
	return nil
}

// podTimes of one pod's life.
type podTimes struct{ scheduled, ready, gone time.Duration }

// onePod creates a pod, waits until it is Ready, deletes it and waits until it is
// gone. An empty node leaves the choice to the scheduler.
func (c *cluster) onePod(ctx context.Context, name, node, version string) (podTimes, error) {
	var t podTimes
	pods := c.CoreV1().Pods(namespace)
	w, err := pods.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		return t, err
	}
	defer w.Stop()
	began := time.Now()
	_, err = pods.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "web", Image: image(version)}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return t, err
	}
	at, err := until(ctx, w, "pod "+name+" is Ready", func(ev watch.Event) bool {
		p, ok := ev.Object.(*corev1.Pod)
		if ok && p.Spec.NodeName != "" && t.scheduled == 0 {
			t.scheduled = time.Since(began)
		}
		return ok && isReady(p)
	})
	if err != nil {
		return t, err
	}
	t.ready = at.Sub(began)
	began = time.Now()
	if err := pods.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return t, err
	}
	if at, err = until(ctx, w, "pod "+name+" is gone", func(ev watch.Event) bool { return ev.Type == watch.Deleted }); err != nil {
		return t, err
	}
	t.gone = at.Sub(began)
	return t, nil
}

// singlePods measures pods that come one after the other.
func (b *bench) singlePods(ctx context.Context, c *cluster) error {
	floor, err := b.floor(ctx, 1, b.pods)
	if err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	var scheduled, ready, gone sample
	for i := range b.pods {
		t, err := c.onePod(ctx, fmt.Sprintf("one-%d", i), "", "v1")
		if err != nil {
			return err
		}
		scheduled, ready, gone = append(scheduled, t.scheduled), append(ready, t.ready), append(gone, t.gone)
	}
	b.add(row{what: "one container started directly (floor)", figure: floor.tail()})
	b.add(row{what: "one pod: created → scheduled", figure: scheduled.tail(), kubernetes: "17 ms"})
	b.add(row{what: "one pod: created → Ready", figure: ready.tail(), aim: "0.25 s", kubernetes: "1.40 s"})
	b.add(row{what: "one pod: deleted → gone", figure: gone.tail(), kubernetes: "2.04 s"})
	return nil
}
