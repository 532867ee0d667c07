package statefulset

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// burst bounds the pods created or deleted by one look at one set that need not
// keep an order; the rest follows when these have been seen.
const burst = 500

// do carries a decision out. Names tell what was done already, and deletions name
// the pod they mean by UID: acting twice on an old cache would do no harm, and
// expectations spare it.
func (c *Controller) do(ctx context.Context, key string, set *appsv1.StatefulSet, d *Decision) error {
	for _, claim := range d.Own {
		if err := c.own(ctx, claim); err != nil {
			return err
		}
	}
	for _, p := range d.Identify {
		if err := c.identify(ctx, set, p); err != nil {
			return err
		}
	}
	for _, m := range d.Supply {
		if err := c.createClaims(ctx, set, m); err != nil {
			return err
		}
	}
	creates, deletes := d.Create[:min(len(d.Create), burst)], d.Delete[:min(len(d.Delete), burst)]
	c.control.Expected.ExpectCreate(key, len(creates))
	tried, createErr := controller.SlowStart(len(creates), func(i int) error {
		err := c.create(ctx, set, creates[i])
		if err != nil {
			c.control.Expected.Created(key)
		}
		return err
	})
	for range len(creates) - tried {
		c.control.Expected.Created(key)
	}
	for _, p := range deletes {
		c.control.Expected.ExpectDelete(key, p.UID)
	}
	deleteErr := controller.Each(len(deletes), func(i int) error {
		done, err := c.delete(ctx, set, deletes[i])
		if !done {
			c.control.Expected.Deleted(key, deletes[i].UID)
		}
		return err
	})
	return errors.Join(createErr, deleteErr)
}

// own writes the owner references of a claim; a conflict means that it has changed
// and is looked at again.
func (c *Controller) own(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	_, err := c.client.CoreV1().PersistentVolumeClaims(claim.Namespace).Update(ctx, claim, metav1.UpdateOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("set the owners of claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	return nil
}

func (c *Controller) identify(ctx context.Context, set *appsv1.StatefulSet, p *corev1.Pod) error {
	ordinal, _ := ordinalOf(set, p)
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.UID, "labels": identityLabels(p.Name, ordinal)}})
	if err != nil {
		return err
	}
	_, err = c.client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, body, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return c.recordPod(set, "update", p.Name, err)
}

func (c *Controller) createClaims(ctx context.Context, set *appsv1.StatefulSet, m Member) error {
	for _, claim := range m.Claims {
		_, err := c.client.CoreV1().PersistentVolumeClaims(claim.Namespace).Create(ctx, claim, metav1.CreateOptions{})
		switch {
		case apierrors.IsAlreadyExists(err):
		case err != nil:
			c.events.Eventf(set, corev1.EventTypeWarning, "FailedCreate", "create Claim %s for Pod %s in StatefulSet %s failed error: %s", claim.Name, m.Pod.Name, set.Name, err)
			return fmt.Errorf("create claim %s/%s: %w", claim.Namespace, claim.Name, err)
		default:
			c.events.Eventf(set, corev1.EventTypeNormal, "SuccessfulCreate", "create Claim %s Pod %s in StatefulSet %s success", claim.Name, m.Pod.Name, set.Name)
		}
	}
	return nil
}

func (c *Controller) create(ctx context.Context, set *appsv1.StatefulSet, m Member) error {
	if err := c.createClaims(ctx, set, m); err != nil {
		return c.recordPod(set, "create", m.Pod.Name, err)
	}
	_, err := c.client.CoreV1().Pods(m.Pod.Namespace).Create(ctx, m.Pod, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		// Ours, and the cache has not shown it yet; or somebody else's, in whose way
		// we are not: tried again with back-off.
		return fmt.Errorf("create pod %s/%s: %w", m.Pod.Namespace, m.Pod.Name, err)
	}
	return c.recordPod(set, "create", m.Pod.Name, err)
}

// delete says whether the pod is going because of it.
func (c *Controller) delete(ctx context.Context, set *appsv1.StatefulSet, p *corev1.Pod) (done bool, err error) {
	err = c.client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(p.UID))})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return false, nil
	}
	return err == nil, c.recordPod(set, "delete", p.Name, err)
}

// reasons are the event reasons of what is done to pods, done and failed.
var reasons = map[string][2]string{
	"create": {"SuccessfulCreate", "FailedCreate"},
	"update": {"SuccessfulUpdate", "FailedUpdate"},
	"delete": {"SuccessfulDelete", "FailedDelete"},
}

// recordPod tells what was done to a pod and passes the error on.
func (c *Controller) recordPod(set *appsv1.StatefulSet, verb, pod string, err error) error {
	if err != nil {
		c.events.Eventf(set, corev1.EventTypeWarning, reasons[verb][1], "%s Pod %s in StatefulSet %s failed error: %s", verb, pod, set.Name, err)
		return fmt.Errorf("%s pod %s/%s: %w", verb, set.Namespace, pod, err)
	}
	c.events.Eventf(set, corev1.EventTypeNormal, reasons[verb][0], "%s Pod %s in StatefulSet %s successful", verb, pod, set.Name)
	return nil
}
