package scheduler

import (
	"maps"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
)

// followSelectors keeps the selectors of Services and of the controllers of pods.
// What they change is only what is preferred: no pod that waits is tried again.
func (s *Scheduler) followSelectors(f informers.SharedInformerFactory) {
	follow(s, f.Core().V1().Services().Informer(), func(old, now *corev1.Service) { s.cluster.setService(old, now) })
	follow(s, f.Core().V1().ReplicationControllers().Informer(), func(old, now *corev1.ReplicationController) {
		setOwner(s.cluster, old, now, ofReplicationController)
	})
	follow(s, f.Apps().V1().ReplicaSets().Informer(), func(old, now *appsv1.ReplicaSet) {
		setOwner(s.cluster, old, now, ofReplicaSet)
	})
	follow(s, f.Apps().V1().StatefulSets().Informer(), func(old, now *appsv1.StatefulSet) {
		setOwner(s.cluster, old, now, ofStatefulSet)
	})
}

func (c *Cluster) setService(old, now *corev1.Service) {
	switch {
	case now == nil:
		c.SetService(old.Namespace, old.Name, nil)
	case old == nil || !maps.Equal(old.Spec.Selector, now.Spec.Selector):
		c.SetService(now.Namespace, now.Name, now.Spec.Selector)
	}
}

// setOwner takes in a controller of pods; its selector does not change.
func setOwner[T any](c *Cluster, old, now *T, of func(*T) (Owner, *metav1.LabelSelector)) {
	switch {
	case now == nil:
		owner, _ := of(old)
		c.SetOwner(owner, nil)
	case old == nil:
		c.SetOwner(of(now))
	}
}

func ofReplicationController(o *corev1.ReplicationController) (Owner, *metav1.LabelSelector) {
	return Owner{"ReplicationController", o.Namespace, o.Name}, &metav1.LabelSelector{MatchLabels: o.Spec.Selector}
}

func ofReplicaSet(o *appsv1.ReplicaSet) (Owner, *metav1.LabelSelector) {
	return Owner{"ReplicaSet", o.Namespace, o.Name}, o.Spec.Selector
}

func ofStatefulSet(o *appsv1.StatefulSet) (Owner, *metav1.LabelSelector) {
	return Owner{"StatefulSet", o.Namespace, o.Name}, o.Spec.Selector
}
