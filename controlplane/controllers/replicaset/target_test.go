package replicaset

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestAsReplicaSet(t *testing.T) {
	n := int32(3)
	rc := &corev1.ReplicationController{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "rc", Generation: 2},
		Spec: corev1.ReplicationControllerSpec{
			Replicas: &n, MinReadySeconds: 5, Selector: map[string]string{"app": "web"},
			Template: &corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}}},
		},
		Status: corev1.ReplicationControllerStatus{
			Replicas: 2, FullyLabeledReplicas: 1, ReadyReplicas: 1, AvailableReplicas: 1, ObservedGeneration: 1,
			Conditions: []corev1.ReplicationControllerCondition{{Type: "ReplicaFailure", Status: "True", Reason: "FailedCreate"}},
		},
	}
	rs := asReplicaSet(rc)
	d := Decide(rs, nil, now)
	if d.Create != 3 || d.Status.ObservedGeneration != 2 {
		t.Errorf("decision %+v, want 3 pods of generation 2", d)
	}
	p := newPod(rs, replicationController)
	if ref := p.OwnerReferences[0]; ref.Kind != "ReplicationController" || ref.APIVersion != "v1" || ref.UID != "rc" || p.Labels["app"] != "web" {
		t.Errorf("pod %+v", p.ObjectMeta)
	}
	if c := rs.Status.Conditions; len(c) != 1 || c[0].Reason != "FailedCreate" {
		t.Errorf("conditions %+v", c)
	}
	if !reflect.DeepEqual(rs.Spec.Selector.MatchLabels, rc.Spec.Selector) {
		t.Errorf("selector %+v", rs.Spec.Selector)
	}
	if asReplicaSet(nil) != nil {
		t.Error("nothing became something")
	}
}
