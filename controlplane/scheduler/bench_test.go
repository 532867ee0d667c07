package scheduler

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// BenchmarkSimulate places 50,000 pods on 5,000 nodes in 10 zones.
func BenchmarkSimulate(b *testing.B) {
	const nodes, pods = 5000, 50_000
	for _, kind := range []struct {
		name   string
		change func(i int) []func(*corev1.Pod)
	}{
		{"plain", func(int) []func(*corev1.Pod) { return nil }},
		{"replicas", func(i int) []func(*corev1.Pod) {
			return []func(*corev1.Pod){app(fmt.Sprint(i / 100)), ownedBy("rs")}
		}},
		{"spread", func(i int) []func(*corev1.Pod) {
			name := fmt.Sprint(i / 1000)
			return []func(*corev1.Pod){app(name), spreading(inZone, 1, name), spreading(host, 1, name)}
		}},
		{"antiaffinity", func(i int) []func(*corev1.Pod) {
			name := fmt.Sprint(i / 1000)
			return []func(*corev1.Pod){app(name), apart(host, name)}
		}},
	} {
		b.Run(kind.name, func(b *testing.B) {
			var list []*corev1.Pod
			for i := range pods {
				list = append(list, pod(fmt.Sprintf("p%05d", i), append(kind.change(i), requests("100m", "200Mi"))...))
			}
			for b.Loop() {
				b.StopTimer()
				c := NewCluster()
				for i := range nodes {
					c.SetNode(node(fmt.Sprintf("n%04d", i), "4", "32Gi", zone(fmt.Sprint(i%10))))
				}
				c.SetService("default", "all", map[string]string{"app": "0"})
				b.StartTimer()
				if placed := Simulate(b.Context(), c, list); len(placed) != pods {
					b.Fatalf("%d placed", len(placed))
				}
			}
			b.ReportMetric(float64(pods)*float64(b.N)/b.Elapsed().Seconds(), "pods/s")
		})
	}
}
