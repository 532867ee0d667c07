package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// rollout watches a rolling update from outside: a line for every pod that
// becomes ready or begins to stop, and one request after the other all the while.
type rollout struct {
	s      *story
	cancel context.CancelFunc
	work   sync.WaitGroup

	pods map[string]podState // by name; the watching goroutine's own

	answered map[string]int // by version; the asking goroutine's own
	failures []string
}

// podState is what of a pod is shown.
type podState struct {
	version, node   string
	ready, stopping bool
}

func stateOf(p *corev1.Pod) podState {
	st := podState{node: p.Spec.NodeName, stopping: p.DeletionTimestamp != nil}
	if len(p.Spec.Containers) > 0 {
		image, _, _ := strings.Cut(p.Spec.Containers[0].Image, "@")
		st.version = image[strings.LastIndex(image, ":")+1:]
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			st.ready = c.Status == corev1.ConditionTrue
		}
	}
	return st
}

// watchRollout begins to watch; what is there now is taken as known.
func (s *story) watchRollout(ctx context.Context) (*rollout, error) {
	api := s.client.CoreV1().Pods(metav1.NamespaceDefault)
	list, err := api.List(ctx, metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		return nil, fmt.Errorf("list the pods: %w", err)
	}
	w, err := api.Watch(ctx, metav1.ListOptions{LabelSelector: "app=web", ResourceVersion: list.ResourceVersion})
	if err != nil {
		return nil, fmt.Errorf("watch the pods: %w", err)
	}
	r := &rollout{s: s, pods: map[string]podState{}, answered: map[string]int{}}
	for i := range list.Items {
		r.pods[list.Items[i].Name] = stateOf(&list.Items[i])
	}
	ctx, r.cancel = context.WithCancel(ctx)
	r.work.Go(func() { r.watch(ctx, w) })
	r.work.Go(func() { r.ask(ctx) })
	return r, nil
}

func (r *rollout) watch(ctx context.Context, w watch.Interface) {
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case ev, ok := <-w.ResultChan():
			if !ok {
				return
			}
			if p, ok := ev.Object.(*corev1.Pod); ok {
				r.see(p, ev.Type == watch.Deleted)
			}
		}
	}
}

// see shows what is new about a pod.
func (r *rollout) see(p *corev1.Pod, gone bool) {
	was, is := r.pods[p.Name], stateOf(p)
	r.pods[p.Name] = is
	if gone {
		delete(r.pods, p.Name)
	}
	word := ""
	switch {
	case is.stopping && !was.stopping:
		word = "stopping"
	case is.ready && !was.ready && !is.stopping:
		word = "ready"
	default:
		return
	}
	r.s.say("    %s %s on %s: %-8s   %s", is.version, p.Name, is.node, word, tally(r.pods))
}

// tally draws the pods that take requests, a dot for each, by version.
func tally(pods map[string]podState) string {
	dots := map[string]string{}
	for _, p := range pods {
		if p.ready && !p.stopping {
			dots[p.version] += "●"
		}
	}
	var out []string
	for _, v := range slices.Sorted(maps.Keys(dots)) {
		out = append(out, v+" "+dots[v])
	}
	return strings.Join(out, "  ")
}

// ask requests the page again and again and counts who answers.
func (r *rollout) ask(ctx context.Context) {
	every := time.NewTicker(10 * time.Millisecond)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
		page, err := r.s.client.CoreV1().RESTClient().Get().AbsPath(pagePath).DoRaw(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			r.failures = append(r.failures, err.Error())
			continue
		}
		version, _, _ := strings.Cut(strings.TrimPrefix(string(page), "shop "), ":")
		r.answered[version]++
	}
}

// stop ends the watching and says how the requests went; a failed one is an error.
func (r *rollout) stop() error {
	r.cancel()
	r.work.Wait()
	total, parts := 0, []string(nil)
	for _, v := range slices.Sorted(maps.Keys(r.answered)) {
		total += r.answered[v]
		parts = append(parts, fmt.Sprintf("%d by %s", r.answered[v], v))
	}
	r.s.say("    %d requests to the Service meanwhile: %s, %d failed", total+len(r.failures), strings.Join(parts, ", "), len(r.failures))
	if len(r.failures) > 0 {
		return fmt.Errorf("%d requests failed during the rollout, the first with: %s", len(r.failures), r.failures[0])
	}
	return nil
}
