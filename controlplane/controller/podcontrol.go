package controller

import (
	"cmp"
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
)

// PodControl writes pods for a controller: it expects to see what it did and tells
// of it in events of the owner.
type PodControl struct {
	Client   kubernetes.Interface
	Events   record.EventRecorder
	Expected *Expectations
}

// Owner is the object that pods are written for.
type Owner interface {
	metav1.Object
	runtime.Object
}

// Observe notes what an event shows of what was asked for; old or pod is nil when
// the pod has come or gone.
func (c PodControl) Observe(key string, old, pod *corev1.Pod) {
	if old == nil {
		c.Expected.Created(key)
	}
	if pod == nil || pod.DeletionTimestamp != nil {
		c.Expected.Deleted(key, cmp.Or(pod, old).UID)
	}
}

// Create creates n pods of owner, whose key is given, slowly at first.
func (c PodControl) Create(ctx context.Context, owner Owner, key string, n int, pod func(i int) *corev1.Pod) error {
	c.Expected.ExpectCreate(key, n)
	tried, err := SlowStart(n, func(i int) error {
		created, err := c.Client.CoreV1().Pods(owner.GetNamespace()).Create(ctx, pod(i), metav1.CreateOptions{})
		if err != nil {
			c.Expected.Created(key)
			c.Events.Eventf(owner, corev1.EventTypeWarning, "FailedCreate", "Error creating: %v", err)
			return fmt.Errorf("create pod of %s: %w", key, err)
		}
		c.Events.Eventf(owner, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: %s", created.Name)
		return nil
	})
	for range n - tried {
		c.Expected.Created(key)
	}
	return err
}

// Delete deletes pods of owner side by side. A pod that was replaced by another of
// the same name stays.
func (c PodControl) Delete(ctx context.Context, owner Owner, key string, pods []*corev1.Pod) error {
	for _, p := range pods {
		c.Expected.ExpectDelete(key, p.UID)
	}
	return Each(len(pods), func(i int) error {
		p := pods[i]
		err := c.Client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(p.UID))})
		if err == nil {
			c.Events.Eventf(owner, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: %s", p.Name)
			return nil
		}
		c.Expected.Deleted(key, p.UID)
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil
		}
		c.Events.Eventf(owner, corev1.EventTypeWarning, "FailedDelete", "Error deleting pod %q: %v", p.Name, err)
		return fmt.Errorf("delete pod %s/%s: %w", p.Namespace, p.Name, err)
	})
}

// Patch changes the metadata of a pod, for Take.
func (c PodControl) Patch(ctx context.Context, p *corev1.Pod, body []byte) error {
	_, err := c.Client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, body, metav1.PatchOptions{})
	return err
}

// RemoveFinalizers takes a finalizer from pods; those that are gone have none.
func (c PodControl) RemoveFinalizers(ctx context.Context, finalizer string, pods []*corev1.Pod) error {
	return Each(len(pods), func(i int) error {
		p := pods[i]
		err := c.Patch(ctx, p, mustJSON(map[string]any{"metadata": map[string]any{
			"uid": p.UID, "$deleteFromPrimitiveList/finalizers": []string{finalizer},
		}}))
		if err != nil && !gone(err) {
			return fmt.Errorf("remove the finalizer of pod %s/%s: %w", p.Namespace, p.Name, err)
		}
		return nil
	})
}
