package apiserver_test

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
	"gitk8s.dev/gitk8s/controlplane/pki"
)

func newClaim(name string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}
}

// TestStorage runs its parts against one server.
func TestStorage(t *testing.T) {
	cp := apiservertest.StartWith(t, nil)
	client := kubernetes.NewForConfigOrDie(cp.Admin)
	t.Run("classes", func(t *testing.T) { testClasses(t, client) })
	t.Run("growth", func(t *testing.T) { testGrowth(t, client) })
	t.Run("volumes of nodes", func(t *testing.T) { testNodeVolumes(t, cp, client) })
}

func testClasses(t *testing.T, client kubernetes.Interface) {
	ctx, classes, claims := t.Context(), client.StorageV1().StorageClasses(), client.CoreV1().PersistentVolumeClaims("default")
	local, err := classes.Get(ctx, "local-path", metav1.GetOptions{})
	if err != nil || *local.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer || *local.ReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
		t.Fatalf("the class that every cluster has: %+v, %v", local, err)
	}
	class := func(name string) string {
		t.Helper()
		claim, err := claims.Create(ctx, newClaim(name), metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(claim.Finalizers, "kubernetes.io/pvc-protection") || claim.Status.Phase != corev1.ClaimPending {
			t.Errorf("a new claim: %+v", claim)
		}
		return ptr.Deref(claim.Spec.StorageClassName, "none")
	}
	if got := class("first"); got != "local-path" {
		t.Errorf("the default class is %s", got)
	}
	named := newClaim("named")
	named.Spec.StorageClassName = ptr.To("")
	if claim, err := claims.Create(ctx, named, metav1.CreateOptions{}); err != nil || *claim.Spec.StorageClassName != "" {
		t.Errorf("a claim that wants no class got %v, %v", claim.Spec.StorageClassName, err)
	}
	local.Annotations["storageclass.kubernetes.io/is-default-class"] = "false"
	if _, err := classes.Update(ctx, local, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := class("second"); got != "none" {
		t.Errorf("without a default class, a claim got %s", got)
	}
	_, err = classes.Create(ctx, &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: "mine", Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}},
		Provisioner: "example.com/disk", AllowVolumeExpansion: ptr.To(true),
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := class("third"); got != "mine" {
		t.Errorf("the default class is %s", got)
	}
}

// testGrowth: a claim may ask for more if it is bound and its class allows it.
func testGrowth(t *testing.T, client kubernetes.Interface) {
	ctx, claims := t.Context(), client.CoreV1().PersistentVolumeClaims("default")
	const more = `{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}`
	for name, want := range map[string]string{"first": "must support resize", "second": "must support resize", "third": ""} {
		_, err := claims.Patch(ctx, name, types.MergePatchType, []byte(more), metav1.PatchOptions{})
		if err == nil || !strings.Contains(err.Error(), "spec is immutable after creation") {
			t.Errorf("%s, not bound: %v", name, err)
		}
		if _, err := claims.Patch(ctx, name, types.MergePatchType, []byte(`{"status":{"phase":"Bound","capacity":{"storage":"1Gi"}}}`), metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
		_, err = claims.Patch(ctx, name, types.MergePatchType, []byte(more), metav1.PatchOptions{})
		if (want == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("%s, bound: %v, want %q", name, err, want)
		}
	}
}

// testNodeVolumes: a worker may say that the directory of a volume of its own is
// gone, and nothing else.
func testNodeVolumes(t *testing.T, cp *apiservertest.ControlPlane, admin kubernetes.Interface) {
	ctx := t.Context()
	pair, err := cp.CA.Issue(pki.NodeClient("na"))
	if err != nil {
		t.Fatal(err)
	}
	worker := kubernetes.NewForConfigOrDie(cp.CA.RESTConfig(cp.URL, pair)).CoreV1().PersistentVolumes()
	for name, node := range map[string]string{"mine": "na", "other": "nb"} {
		pv, err := admin.CoreV1().PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"gitk8s.dev/node": node}, Finalizers: []string{"gitk8s.dev/local-path"}},
			Spec: corev1.PersistentVolumeSpec{
				AccessModes:            []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Capacity:               corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
				PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/x"}},
			},
		}, metav1.CreateOptions{})
		if err != nil || !slices.Contains(pv.Finalizers, "kubernetes.io/pv-protection") || pv.Status.LastPhaseTransitionTime == nil {
			t.Fatalf("a new volume: %+v, %v", pv, err)
		}
	}
	if list, err := worker.List(ctx, metav1.ListOptions{LabelSelector: "gitk8s.dev/node=na"}); err != nil || len(list.Items) != 1 {
		t.Errorf("a worker's own volumes: %v, %v", list, err)
	}
	if _, err := worker.List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("all volumes: %v", err)
	}
	patch := func(name, body string) error {
		_, err := worker.Patch(ctx, name, types.MergePatchType, []byte(body), metav1.PatchOptions{})
		return err
	}
	const letGo = `{"metadata":{"finalizers":["kubernetes.io/pv-protection"]}}`
	for _, c := range []struct{ name, body string }{
		{"other", letGo},
		{"mine", `{"metadata":{"finalizers":[]}}`},
		{"mine", `{"metadata":{"finalizers":["gitk8s.dev/local-path"]}}`},
		{"mine", `{"metadata":{"finalizers":["kubernetes.io/pv-protection"],"labels":{"a":"b"}}}`},
		{"mine", `{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`},
		{"mine", `{"spec":{"claimRef":{"namespace":"default","name":"first"}}}`},
	} {
		if err := patch(c.name, c.body); !apierrors.IsForbidden(err) {
			t.Errorf("%s %s: %v", c.name, c.body, err)
		}
	}
	if err := patch("mine", letGo); err != nil {
		t.Error(err)
	}
}
