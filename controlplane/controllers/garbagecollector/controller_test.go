package garbagecollector_test

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
	"gitk8s.dev/gitk8s/controlplane/controllers/garbagecollector"
	"gitk8s.dev/gitk8s/controlplane/pki"
)

const limit = 30 * time.Second

// start runs a collector under the controllers' own identity.
func start(t *testing.T) *kubernetes.Clientset {
	t.Helper()
	cp := apiservertest.StartWith(t, nil)
	config := cp.Server.ClientConfig(pki.UserControllerManager)
	client := kubernetes.NewForConfigOrDie(config)
	c := garbagecollector.New(client.Discovery(), metadata.NewForConfigOrDie(config), nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the collector ended with %v", err)
		}
	})
	select {
	case <-c.Synced():
	case <-time.After(limit):
		t.Fatal("not synced")
	}
	return kubernetes.NewForConfigOrDie(cp.Admin)
}

func eventually(t *testing.T, what string, condition func(ctx context.Context) (bool, error)) {
	t.Helper()
	if err := wait.PollUntilContextTimeout(t.Context(), 5*time.Millisecond, limit, true, condition); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func configMap(t *testing.T, client kubernetes.Interface, name string, owners ...metav1.OwnerReference) *corev1.ConfigMap {
	t.Helper()
	cm, err := client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: name, OwnerReferences: owners},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return cm
}

func ownerRef(cm *corev1.ConfigMap) metav1.OwnerReference {
	block := true
	return metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: cm.Name, UID: cm.UID, BlockOwnerDeletion: &block}
}

func gone(client kubernetes.Interface, name string) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		_, err := client.CoreV1().ConfigMaps("default").Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return false, err
	}
}

func remove(t *testing.T, client kubernetes.Interface, name string, policy metav1.DeletionPropagation) {
	t.Helper()
	if err := client.CoreV1().ConfigMaps("default").Delete(t.Context(), name, metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil {
		t.Fatal(err)
	}
}

func TestCollect(t *testing.T) {
	client := start(t)

	t.Run("background", func(t *testing.T) {
		a := configMap(t, client, "a")
		b := configMap(t, client, "b", ownerRef(a))
		configMap(t, client, "c", ownerRef(b))
		remove(t, client, "a", metav1.DeletePropagationBackground)
		eventually(t, "b gone", gone(client, "b"))
		eventually(t, "c gone", gone(client, "c"))
	})

	t.Run("foreground", func(t *testing.T) {
		a := configMap(t, client, "fa")
		b := configMap(t, client, "fb", ownerRef(a))
		// A finalizer keeps the dependent, and so its owner, until it is removed.
		b.Finalizers = []string{"example.com/wait"}
		b, err := client.CoreV1().ConfigMaps("default").Update(t.Context(), b, metav1.UpdateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		remove(t, client, "fa", metav1.DeletePropagationForeground)
		eventually(t, "fb being deleted", func(ctx context.Context) (bool, error) {
			b, err = client.CoreV1().ConfigMaps("default").Get(ctx, "fb", metav1.GetOptions{})
			return err == nil && b.DeletionTimestamp != nil, err
		})
		if _, err := client.CoreV1().ConfigMaps("default").Get(t.Context(), "fa", metav1.GetOptions{}); err != nil {
			t.Fatalf("the owner went before its dependent: %v", err)
		}
		b.Finalizers = nil
		if _, err := client.CoreV1().ConfigMaps("default").Update(t.Context(), b, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "fb gone", gone(client, "fb"))
		eventually(t, "fa gone", gone(client, "fa"))
	})

	t.Run("orphan", func(t *testing.T) {
		a := configMap(t, client, "oa")
		configMap(t, client, "ob", ownerRef(a))
		remove(t, client, "oa", metav1.DeletePropagationOrphan)
		eventually(t, "oa gone", gone(client, "oa"))
		b, err := client.CoreV1().ConfigMaps("default").Get(t.Context(), "ob", metav1.GetOptions{})
		if err != nil || len(b.OwnerReferences) != 0 {
			t.Fatalf("the dependent was not released: %v %v", b, err)
		}
	})

	t.Run("an owner that never was", func(t *testing.T) {
		keeper := configMap(t, client, "keeper")
		absent := metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: "never", UID: "12345"}
		configMap(t, client, "va", absent)
		configMap(t, client, "vb", absent, ownerRef(keeper))
		eventually(t, "va gone", gone(client, "va"))
		eventually(t, "vb released", func(ctx context.Context) (bool, error) {
			b, err := client.CoreV1().ConfigMaps("default").Get(ctx, "vb", metav1.GetOptions{})
			return err == nil && len(b.OwnerReferences) == 1, err
		})
	})
}
