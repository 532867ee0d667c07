package authz

import (
	"context"
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"gitk8s.dev/gitk8s/controlplane/pki"
)

// volumes is the volumes that there are.
type volumes map[string]*corev1.PersistentVolume

func (v volumes) Volume(_ context.Context, name string) (*corev1.PersistentVolume, error) {
	if pv := v[name]; pv != nil {
		return pv, nil
	}
	return nil, errors.New("not found")
}

// TestVolumes: a worker reads the claims and volumes of its pods, and lets go of
// volumes whose directories it has.
func TestVolumes(t *testing.T) {
	using := func(name, node, claim string) corev1.Pod {
		pod := testPod(name, node)
		pod.Spec.Volumes = append(pod.Spec.Volumes,
			corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}},
			corev1.Volume{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}})
		return pod
	}
	boundTo := func(claim string) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{ClaimRef: &corev1.ObjectReference{Namespace: "ns", Name: claim}}}
	}
	mine := &corev1.PersistentVolume{}
	mine.Labels = map[string]string{LabelNode: "one"}
	a := New(cluster{using("a", "one", "used"), using("b", "two", "other")}, volumes{
		"mine": mine, "used": boundTo("used"), "other": boundTo("other"), "free": {},
	}, ingresses{}, gateways{}, policies(false))
	node, scheduler := person(pki.UserNodePrefix+"one", pki.GroupNodes), person(pki.UserScheduler)
	for _, tt := range []struct {
		who                            user.Info
		verb, resource, name, selector string
		want                           bool
	}{
		{node, "get", "persistentvolumeclaims", "used", "", true},
		{node, "watch", "persistentvolumeclaims", "a-scratch", "", true},
		{node, "get", "persistentvolumeclaims", "other", "", false},
		{node, "get", "persistentvolumeclaims", "b-scratch", "", false},
		{node, "patch", "persistentvolumeclaims", "used", "", false},
		{node, "list", "persistentvolumeclaims", "", "", false},
		{node, "get", "persistentvolumes", "used", "", true},
		{node, "patch", "persistentvolumes", "used", "", false},
		{node, "get", "persistentvolumes", "other", "", false},
		{node, "get", "persistentvolumes", "free", "", false},
		{node, "get", "persistentvolumes", "absent", "", false},
		{node, "get", "persistentvolumes", "mine", "", true},
		{node, "patch", "persistentvolumes", "mine", "", true},
		{node, "delete", "persistentvolumes", "mine", "", false},
		{node, "list", "persistentvolumes", "", "", false},
		{node, "list", "persistentvolumes", "", "gitk8s.dev/node=one", true},
		{node, "watch", "persistentvolumes", "", "gitk8s.dev/node=one", true},
		{node, "watch", "persistentvolumes", "", "gitk8s.dev/node=two", false},
		{node, "watch", "persistentvolumes", "", "gitk8s.dev/node in (one,two)", false},
		{node, "list", "persistentvolumes", "", "gitk8s.dev/node!=two", false},
		{scheduler, "patch", "persistentvolumeclaims", "used", "", true},
		{scheduler, "update", "persistentvolumes", "used", "", true},
		{scheduler, "delete", "persistentvolumes", "used", "", false},
	} {
		attrs := authorizer.AttributesRecord{User: tt.who, Verb: tt.verb, Resource: tt.resource, Name: tt.name, ResourceRequest: true}
		if tt.resource == "persistentvolumeclaims" {
			attrs.Namespace = "ns"
		}
		if tt.selector != "" {
			var err error
			if attrs.LabelSelectorRequirements, err = labels.ParseToRequirements(tt.selector); err != nil {
				t.Fatal(err)
			}
		}
		decision, reason, err := a.Authorize(t.Context(), attrs)
		if err != nil || (decision == authorizer.DecisionAllow) != tt.want {
			t.Errorf("%s %s %s %s %s: %v %s %v", tt.who.GetName(), tt.verb, tt.resource, tt.name, tt.selector, decision, reason, err)
		}
	}
}
