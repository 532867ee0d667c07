package main

import (
	"context"
	"fmt"
	"runtime"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/controlplane/scheduler"
)

// The simulated cluster: nodes in zones, and pods of workloads. Upstream measures its
// scheduler on as many nodes (scheduler_perf), with an API server behind it.
const (
	simulatedNodes     = 5000
	simulatedZones     = 10
	simulatedPods      = 50_000
	simulatedWorkloads = 50
)

// scheduler measures decisions alone: queue, filters, scores and bookkeeping, in this
// process, without an API.
func (b *bench) scheduler(ctx context.Context) error {
	for _, s := range []struct {
		what, kubernetes string
		change           func(p *corev1.Pod, selector *metav1.LabelSelector)
	}{
		{"plain", "590–810/s wanted by its own tests, API server included", func(*corev1.Pod, *metav1.LabelSelector) {}},
		{"each workload a ReplicaSet (built-in default spreading)", "", ofReplicaSet},
		{"each workload spread over zones and nodes (DoNotSchedule, skew 1)", "", spreadOut},
		{"each workload with anti-affinity to itself by node", "", keepApart},
	} {
		var rates []float64
		for range b.runs {
			rate, err := simulate(ctx, s.change)
			if err != nil {
				return fmt.Errorf("%s: %w", s.what, err)
			}
			rates = append(rates, rate)
		}
		b.add(row{
			what:   fmt.Sprintf("scheduler alone, %d nodes, %d pods, %s", simulatedNodes, simulatedPods, s.what),
			figure: perSecond(rates), aim: "6000/s", kubernetes: s.kubernetes,
		})
	}
	return nil
}

// simulate places all pods once and returns how many a second.
func simulate(ctx context.Context, change func(*corev1.Pod, *metav1.LabelSelector)) (float64, error) {
	c := scheduler.NewCluster()
	for i := range simulatedNodes {
		c.SetNode(simulatedNode(i))
	}
	for i := range simulatedWorkloads {
		name := workload(i)
		c.SetOwner(scheduler.Owner{Kind: "ReplicaSet", Namespace: metav1.NamespaceDefault, Name: name}, metav1.SetAsLabelSelector(map[string]string{"app": name}))
	}
	pods := make([]*corev1.Pod, simulatedPods)
	for i := range pods {
		pods[i] = simulatedPod(i, change)
	}
	runtime.GC()
	start := time.Now()
	placed := scheduler.Simulate(ctx, c, pods)
	took := time.Since(start)
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if len(placed) != len(pods) {
		return 0, fmt.Errorf("%d of %d pods were placed", len(placed), len(pods))
	}
	return float64(len(pods)) / took.Seconds(), nil
}

func simulatedNode(i int) *corev1.Node {
	name := fmt.Sprintf("node-%04d", i)
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			corev1.LabelHostname: name, corev1.LabelTopologyZone: fmt.Sprint("zone-", i%simulatedZones),
		}},
		Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("32Gi"), corev1.ResourcePods: resource.MustParse("110"),
		}},
	}
}

func workload(i int) string { return fmt.Sprint("app-", i) }

func simulatedPod(i int, change func(*corev1.Pod, *metav1.LabelSelector)) *corev1.Pod {
	name := fmt.Sprintf("pod-%05d", i)
	labels := map[string]string{"app": workload(i * simulatedWorkloads / simulatedPods)}
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: name, UID: types.UID(name), Labels: labels},
		Spec: corev1.PodSpec{
			SchedulerName: corev1.DefaultSchedulerName,
			Containers: []corev1.Container{{Name: "main", Image: "example.com/app:v1", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("500Mi"),
			}}}},
		},
	}
	change(p, &metav1.LabelSelector{MatchLabels: labels})
	return p
}

func ofReplicaSet(p *corev1.Pod, _ *metav1.LabelSelector) {
	p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: p.Labels["app"], UID: types.UID(p.Labels["app"]), Controller: ptr.To(true)}}
}

func spreadOut(p *corev1.Pod, selector *metav1.LabelSelector) {
	for _, key := range []string{corev1.LabelTopologyZone, corev1.LabelHostname} {
		p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, corev1.TopologySpreadConstraint{
			MaxSkew: 1, TopologyKey: key, WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: selector,
		})
	}
}

func keepApart(p *corev1.Pod, selector *metav1.LabelSelector) {
	p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{TopologyKey: corev1.LabelHostname, LabelSelector: selector}},
	}}
}
