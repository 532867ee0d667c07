package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

const rolloutReplicas = 10

// rollouts measures a commit with a new tag, from the start of `git push` to a
// Deployment that is complete.
func (b *bench) rollouts(ctx context.Context, c *cluster) error {
	r, err := b.newRepo(ctx, c, "roll")
	if err != nil {
		return err
	}
	var took sample
	var all tally
	for i := range b.runs + 1 {
		v := versions[i%len(versions)]
		if err := r.commit(ctx, fmt.Sprintf("update %d to %s", i, v), map[string]string{"web.yaml": deployment("roll", v, rolloutReplicas, true)}); err != nil {
			return err
		}
		if i == 0 { // the first makes the Deployment
			if _, err := c.rollOut(ctx, r, v); err != nil {
				return err
			}
			continue
		}
		watched := make(chan tally, 1)
		watching, stop := context.WithCancel(ctx)
		w, err := c.CoreV1().Pods(namespace).Watch(watching, metav1.ListOptions{LabelSelector: "app=roll"})
		if err != nil {
			stop()
			return err
		}
		go func() { watched <- count(w) }()
		d, err := c.rollOut(ctx, r, v)
		stop()
		if err != nil {
			return err
		}
		took, all = append(took, d), all.and(<-watched)
	}
	b.add(row{
		what:   "rolling update of 10 replicas, surge 1, unavailable 0, readiness period 1 s: `git push` → complete",
		figure: fmt.Sprintf("%s (meanwhile %d to %d pods Ready, at most %d not ending)", took.spread(), all.minReady, all.maxReady, all.maxAlive),
		aim:    "4 s", kubernetes: "14.3 s",
	})
	return nil
}

// tally says whether an update kept to surge and unavailability.
type tally struct{ minReady, maxReady, maxAlive int }

func (t tally) and(o tally) tally {
	if t == (tally{}) {
		return o
	}
	return tally{min(t.minReady, o.minReady), max(t.maxReady, o.maxReady), max(t.maxAlive, o.maxAlive)}
}

// count follows pods until the watch ends. Pods that are being deleted count
// neither as Ready nor as alive.
func count(w watch.Interface) (t tally) {
	defer w.Stop()
	ready, alive := map[string]bool{}, map[string]bool{}
	for ev := range w.ResultChan() {
		p, ok := ev.Object.(*corev1.Pod)
		if !ok {
			continue
		}
		if ending := ev.Type == watch.Deleted || p.DeletionTimestamp != nil; ending {
			delete(ready, p.Name)
			delete(alive, p.Name)
		} else {
			alive[p.Name] = true
			delete(ready, p.Name)
			if isReady(p) {
				ready[p.Name] = true
			}
		}
		t.maxAlive, t.maxReady = max(t.maxAlive, len(alive)), max(t.maxReady, len(ready))
		switch {
		case len(ready) == rolloutReplicas && t.minReady == 0: // the watch has told of all
			t.minReady = rolloutReplicas
		case t.minReady > 0:
			t.minReady = min(t.minReady, len(ready))
		}
	}
	return t
}

func (c *cluster) rollOut(ctx context.Context, r *repo, version string) (time.Duration, error) {
	w, err := c.AppsV1().Deployments(namespace).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=roll"})
	if err != nil {
		return 0, err
	}
	defer w.Stop()
	began := time.Now()
	pushed := r.push(ctx)
	at, err := until(ctx, w, "the update to "+version+" is complete", func(ev watch.Event) bool {
		d, ok := ev.Object.(*appsv1.Deployment)
		return ok && runs(d, version) && complete(d)
	})
	if err != nil {
		return 0, err
	}
	return at.Sub(began), <-pushed
}

// complete is what `kubectl rollout status` waits for.
func complete(d *appsv1.Deployment) bool {
	s := d.Status
	return s.ObservedGeneration >= d.Generation && s.UpdatedReplicas == *d.Spec.Replicas && s.Replicas == s.UpdatedReplicas && s.AvailableReplicas == s.UpdatedReplicas
}

// runs tells whether the template asks for a version. The reference is pinned to a
// digest when it is applied, and keeps its tag.
func runs(d *appsv1.Deployment, version string) bool {
	return strings.Contains(d.Spec.Template.Spec.Containers[0].Image, ":"+version)
}
