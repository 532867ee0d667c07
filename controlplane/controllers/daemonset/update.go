package daemonset

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// limits resolves maxSurge and maxUnavailable, percents of the nodes that should
// run a pod, rounded up. When both come out as 0 the update could never move, so
// one pod may be unavailable.
func (d *decision) limits() (surge, unavailable int) {
	if d.ds.Spec.UpdateStrategy.Type != appsv1.RollingUpdateDaemonSetStrategyType {
		return 0, 0
	}
	r := d.ds.Spec.UpdateStrategy.RollingUpdate
	if r == nil {
		return 0, 1
	}
	resolve := func(v *intstr.IntOrString, missing int) int {
		if v == nil {
			return missing
		}
		// At least of one: a set that surges does so also when no node is left for it.
		n, err := intstr.GetScaledValueFromIntOrPercent(v, max(d.desired, 1), true)
		if err != nil {
			return missing
		}
		return n
	}
	surge, unavailable = resolve(r.MaxSurge, 0), resolve(r.MaxUnavailable, 1)
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, unavailable
}

// pair returns the pods of a place that are not being deleted: the one of the
// newest template and the one of a former.
func (d *decision) pair(p *place) (current, old *corev1.Pod) {
	for _, pod := range p.alive {
		if d.updated(pod) {
			current = pod
		} else {
			old = pod
		}
	}
	return current, old
}

// replace deletes old pods, whose nodes then get new ones, as long as no more than
// limit nodes are without an available pod. An old pod that is not available anyway
// costs nothing.
func (d *decision) replace(limit int) {
	var candidates []*corev1.Pod
	down := 0
	for _, p := range d.places {
		if !p.run && len(p.pods) == 0 {
			continue
		}
		current, old := d.pair(p)
		switch {
		case old == nil && current == nil:
			down++
		case current != nil:
			if !d.available(current) {
				down++
			}
		case !d.available(old):
			down++
			if !d.held(p, old) {
				d.out.Delete = append(d.out.Delete, old)
			}
		default:
			candidates = append(candidates, old)
		}
	}
	d.out.Delete = append(d.out.Delete, candidates[:min(len(candidates), max(limit-down, 0))]...)
}

// surge gives nodes with an old pod a new one beside it, at most limit at once; the
// old one goes when the new one is available. A node whose old pod is not available
// gets a new one at once. Pods on nodes that should run none go when as many others
// are available as there should be, for who surges wants no gap.
func (d *decision) surge(limit int) {
	var candidates []string
	var sunset []*corev1.Pod
	surging, up := 0, 0
	for _, p := range d.places {
		current, old := d.pair(p)
		if (old != nil && d.available(old)) || (old == nil && current != nil && d.available(current)) {
			up++
		}
		switch {
		case old == nil:
		case current != nil:
			if !d.available(current) {
				surging++
			}
		case !p.run && d.available(old):
			sunset = append(sunset, old)
		case !p.run:
			d.out.Delete = append(d.out.Delete, old)
		case len(p.pods) > 1 || d.held(p, old):
			// A pod that is stopping or failing holds the second place.
		case !d.available(old):
			d.out.Create = append(d.out.Create, p.name)
		default:
			candidates = append(candidates, p.name)
		}
	}
	d.out.Delete = append(d.out.Delete, sunset[:min(len(sunset), max(up-d.desired, 0))]...)
	d.out.Create = append(d.out.Create, candidates[:min(len(candidates), max(limit-surging, 0))]...)
}

// held says whether a failed pod has to stay for its back-off.
func (d *decision) held(p *place, pod *corev1.Pod) bool {
	return ended(pod) && d.s.BackOff[p.name] > 0
}
