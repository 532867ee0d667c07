package apiserver_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
	"gitk8s.dev/gitk8s/controlplane/pki"
)

// TestMirrorPods: a worker may create mirrors of its own static pods and nothing else,
// and what it creates stays as it is.
func TestMirrorPods(t *testing.T) {
	cp := apiservertest.StartWith(t, nil)
	pair, err := cp.CA.Issue(pki.NodeClient("n1"))
	if err != nil {
		t.Fatal(err)
	}
	admin, worker := kubernetes.NewForConfigOrDie(cp.Admin), kubernetes.NewForConfigOrDie(cp.CA.RESTConfig(cp.URL, pair))
	node, err := worker.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pods := worker.CoreV1().Pods("default")
	mirror := func(adjust func(*corev1.Pod)) *corev1.Pod {
		p := newPod("web-n1")
		p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "1"}
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "n1", UID: node.UID, Controller: ptr.To(true)}}
		p.Spec.NodeName, p.Spec.PriorityClassName = "n1", "system-node-critical"
		p.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute}}
		if adjust != nil {
			adjust(p)
		}
		return p
	}
	for want, adjust := range map[string]func(*corev1.Pod){
		`pod does not have "kubernetes.io/config.mirror" annotation, node "n1" can only create mirror pods`: func(p *corev1.Pod) { p.Annotations = nil },
		`node "n1" can only create pods with spec.nodeName set to itself`:                                   func(p *corev1.Pod) { p.Spec.NodeName = "n2" },
		`node "n1" can only create pods with an owner reference set to itself`:                              func(p *corev1.Pod) { p.OwnerReferences = nil },
		`node "n1" can only create pods with a single owner reference set to itself`: func(p *corev1.Pod) {
			p.OwnerReferences = append(p.OwnerReferences, metav1.OwnerReference{APIVersion: "v1", Kind: "Node", Name: "n2", UID: "u"})
		},
		`node "n1" can only create pods with a controller owner reference set to itself`: func(p *corev1.Pod) { p.OwnerReferences[0].Controller = nil },
		`node "n1" must not set blockOwnerDeletion on an owner reference`:                func(p *corev1.Pod) { p.OwnerReferences[0].BlockOwnerDeletion = ptr.To(true) },
		`node n1 UID mismatch: expected ` + string(node.UID) + ` got u`:                  func(p *corev1.Pod) { p.OwnerReferences[0].UID = types.UID("u") },
		`a mirror pod may not reference service accounts`:                                func(p *corev1.Pod) { p.Spec.ServiceAccountName = "default" },
		`a mirror pod may not reference secrets`: func(p *corev1.Pod) {
			p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "s"}}
		},
		`node "n1" can not create pods that reference "configmaps"`: func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}}}}}
		},
	} {
		_, err := pods.Create(t.Context(), mirror(adjust), metav1.CreateOptions{})
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	p, err := pods.Create(t.Context(), mirror(nil), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if p.Spec.ServiceAccountName != "" || len(p.Spec.Tolerations) != 1 || len(p.Spec.Volumes) != 0 || p.Spec.Priority == nil || *p.Spec.Priority != 2000001000 {
		t.Errorf("the mirror was changed: %+v", p.Spec)
	}
	for want, annotations := range map[string]map[string]string{
		"may not remove or update mirror pod annotation": {corev1.MirrorPodAnnotationKey: "2"}, "may not remove": {},
	} {
		fresh := p.DeepCopy()
		fresh.Annotations = annotations
		if _, err := admin.CoreV1().Pods("default").Update(t.Context(), fresh, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	other := createPod(t, admin, newPod("other"))
	other.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "1"}
	if _, err := admin.CoreV1().Pods("default").Update(t.Context(), other, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "may not add mirror pod annotation") {
		t.Errorf("an ordinary pod becomes a mirror: %v", err)
	}
	if _, err := admin.CoreV1().Pods("default").Create(t.Context(), mirror(func(p *corev1.Pod) { p.Name, p.Spec.NodeName = "x", "" }), metav1.CreateOptions{}); !apierrors.IsInvalid(err) ||
		!strings.Contains(err.Error(), "must set spec.nodeName if mirror pod annotation is set") {
		t.Errorf("a mirror without a node: %v", err)
	}
	if err := pods.Delete(t.Context(), "other", metav1.DeleteOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("the worker deletes another's pod: %v", err)
	}
	if err := pods.Delete(t.Context(), "web-n1", *metav1.NewDeleteOptions(0)); err != nil {
		t.Error(err)
	}
}
