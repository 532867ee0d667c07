package job

import (
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Failures are those of a Job's pods since the last one succeeded, as far as they have
// been seen: the back-off goes on when the pods are deleted. They add up like sets, so
// that it does not matter how often the same pod is seen.
//
// They are kept in memory alone, as Kubernetes does. Another server that takes over goes
// by the pods that are still there.
type Failures struct {
	succeeded time.Time // when the last pod has
	newest    []failure // the oldest first
}

type failure struct {
	pod types.UID
	at  time.Time
}

// enoughFailures is how many are kept: more make no longer pause.
var enoughFailures = func() (n int) {
	for backOff(n) < longestBackOff {
		n++
	}
	return n
}()

// with adds what can be seen of pods.
func (f Failures) with(spec *batchv1.JobSpec, pods []*corev1.Pod) Failures {
	all := map[types.UID]time.Time{}
	for _, x := range f.newest {
		all[x.pod] = x.at
	}
	for _, p := range pods {
		switch at := finishedAt(p); {
		case p.Status.Phase == corev1.PodSucceeded:
			if at.After(f.succeeded) {
				f.succeeded = at
			}
		// One that the Job itself has deleted has lost its finalizer before.
		case failed(p, spec) && (tracked(p) || p.DeletionTimestamp == nil):
			all[p.UID] = at
		}
	}
	f.newest = nil
	for uid, at := range all {
		if at.After(f.succeeded) {
			f.newest = append(f.newest, failure{uid, at})
		}
	}
	slices.SortFunc(f.newest, func(a, b failure) int { return a.at.Compare(b.at) })
	f.newest = f.newest[max(len(f.newest)-enoughFailures, 0):]
	return f
}

// until is when the next pod may be created.
func (f Failures) until() time.Time {
	if len(f.newest) == 0 {
		return time.Time{}
	}
	return f.newest[len(f.newest)-1].at.Add(backOff(len(f.newest)))
}
