package scheduler

import (
	"context"

	corev1 "k8s.io/api/core/v1"
)

// Simulate places pods on nodes as the scheduler does, queue included, without an
// API: each pod is bound as soon as its node is chosen. Pods with claims stay out. It
// returns the placed pods' nodes by the pods' UIDs.
func Simulate(ctx context.Context, c *Cluster, pods []*corev1.Pod) map[string]string {
	s := &Scheduler{cluster: c, queue: newQueue(), storage: storageIn(newIndexer(), newIndexer(), newIndexer()), kick: make(chan struct{}, 1)}
	for _, p := range pods {
		s.onPod(nil, p)
	}
	s.drain(ctx, func(func()) {})
	out := make(map[string]string, len(pods))
	for _, p := range pods {
		if node, ok := c.where[p.UID]; ok {
			out[string(p.UID)] = node
		}
	}
	return out
}
