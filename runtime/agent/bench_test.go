package agent

import (
	"fmt"
	"sort"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
)

// BenchmarkPodReady measures from the creation of a bound pod until a watch shows it
// Ready, image present, no probes, real container: sequentially, and a batch of
// ten at once.
func BenchmarkPodReady(b *testing.B) {
	plane := apiservertest.StartWith(b, nil)
	r := newRealNode(b, plane, "node-b")
	r.ready()
	ns := r.namespace("bench")
	i := 0
	create := func() string {
		i++
		name := fmt.Sprintf("p%d", i)
		r.pod(ns, name, func(p *v1.Pod) { p.Spec.Containers[0].Args = []string{"sleep"} })
		return name
	}
	remove := func(names ...string) {
		for _, n := range names {
			r.deletePod(ns, n, 1)
		}
		for _, n := range names {
			r.until(ns, n, "gone", gone)
		}
	}
	b.Run("one", func(b *testing.B) {
		var all []time.Duration
		for b.Loop() {
			begin := time.Now()
			name := create()
			r.untilReady(ns, name)
			all = append(all, time.Since(begin))
			b.StopTimer()
			remove(name)
			b.StartTimer()
		}
		sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
		b.ReportMetric(float64(all[len(all)/2].Milliseconds()), "p50-ms")
	})
	b.Run("ten", func(b *testing.B) {
		for b.Loop() {
			var names []string
			for range 10 {
				names = append(names, create())
			}
			for _, n := range names {
				r.untilReady(ns, n)
			}
			b.StopTimer()
			remove(names...)
			b.StartTimer()
		}
	})
}
