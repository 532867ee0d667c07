package job

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// manage brings the number of running pods to what it should be.
func (d *decision) manage() {
	if d.suspended() {
		d.out.Remove = d.active
		return
	}
	want := d.wanted()
	d.remove(len(d.active) - want)
	if len(d.out.Remove) > 0 {
		return // their places are free when they are seen to go
	}
	missing := want - len(d.active)
	if onlyReplaceFailed(d.spec) {
		missing -= len(d.stopping)
	}
	if missing <= 0 {
		return
	}
	if !isIndexed(d.spec) {
		if left := d.backOffLeft(); left > 0 {
			d.wait(left)
			return
		}
		d.out.Create = slices.Repeat([]Want{{Index: unknownIndex}}, missing)
		return
	}
	d.createIndexes(missing)
}

// wanted is how many pods should run: no more than are still to succeed; and of a
// work queue (no completions) no new ones after the first has succeeded.
func (d *decision) wanted() int {
	parallelism := 0
	if d.spec.Parallelism != nil {
		parallelism = int(*d.spec.Parallelism)
	}
	switch {
	case d.spec.Completions != nil:
		return max(min(d.completions()-d.succeeded-d.broken.total(), parallelism), 0)
	case d.succeeded > 0:
		return min(len(d.active), parallelism)
	}
	return parallelism
}

// remove takes out at least n running pods: first those that nobody could count
// any more, or whose index is out of range, done, or run by another pod too; then
// those that have come least far.
func (d *decision) remove(n int) {
	var rest []*corev1.Pod
	seen := map[int]bool{}
	for _, p := range d.furthestFirst() {
		i := indexOf(p)
		useless := isIndexed(d.spec) && (i < 0 || i >= d.completions() || seen[i] || d.done.has(i) || d.broken.has(i))
		seen[i] = true
		if useless || !tracked(p) {
			d.out.Remove = append(d.out.Remove, p)
		} else {
			rest = append(rest, p)
		}
	}
	slices.Reverse(rest)
	if n -= len(d.out.Remove); n > 0 {
		d.out.Remove = append(d.out.Remove, rest[:min(n, len(rest))]...)
	}
}

// furthestFirst orders the running pods by how far they have come: ready, on a node,
// the oldest first.
func (d *decision) furthestFirst() []*corev1.Pod {
	rank := func(p *corev1.Pod) int {
		switch {
		case p.Spec.NodeName == "":
			return 2
		case !controller.PodReady(p):
			return 1
		}
		return 0
	}
	out := slices.Clone(d.active)
	slices.SortStableFunc(out, func(a, b *corev1.Pod) int { return rank(a) - rank(b) })
	return out
}

// backOffLeft is how long no pod is created after failures.
func (d *decision) backOffLeft() time.Duration { return d.out.Failures.until().Sub(d.now) }

// createIndexes creates pods for the lowest indexes that need one. With a limit for
// each index, each has its own back-off too.
func (d *decision) createIndexes(n int) {
	perIndex := d.spec.BackoffLimitPerIndex != nil
	if !perIndex {
		if left := d.backOffLeft(); left > 0 {
			d.wait(left)
			return
		}
	}
	taken := map[int]bool{}
	for _, p := range d.active {
		taken[indexOf(p)] = true
	}
	if onlyReplaceFailed(d.spec) {
		for _, p := range d.stopping {
			taken[indexOf(p)] = true
		}
	}
	for i := 0; i < d.completions() && len(d.out.Create) < n; i++ {
		if taken[i] || d.done.has(i) || d.broken.has(i) {
			continue
		}
		w := Want{Index: i}
		if p := d.kept[i]; perIndex && p != nil {
			w.history = after(p, d.spec.PodFailurePolicy)
			left := finishedAt(p).Add(backOff(w.history.failures + w.history.ignored)).Sub(d.now)
			if left > 0 {
				d.wait(left)
				continue
			}
		}
		d.out.Create = append(d.out.Create, w)
	}
}
