// Package ttlafterfinished deletes finished Jobs when their time to live has passed
// (page "Automatic Cleanup for Finished Jobs"). In: Jobs by watch. Out: Jobs
// deleted, with their pods.
package ttlafterfinished

import (
	"context"
	"fmt"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	batchlisters "k8s.io/client-go/listers/batch/v1"
	"k8s.io/client-go/tools/cache"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// Controller is the TTL-after-finished controller.
type Controller struct {
	client kubernetes.Interface
	jobs   batchlisters.JobLister
	synced cache.InformerSynced
	loop   *controller.Loop
}

// New returns a controller that watches through f; f is started by the caller.
func New(client kubernetes.Interface, f informers.SharedInformerFactory) *Controller {
	jobs := f.Batch().V1().Jobs()
	c := &Controller{client: client, jobs: jobs.Lister(), synced: jobs.Informer().HasSynced}
	c.loop = controller.NewLoop("ttl-after-finished", 2, c.sync)
	jobs.Informer().AddEventHandler(controller.Handler(func(_, job *batchv1.Job) {
		if job != nil {
			if _, ok := Expires(job); ok {
				c.loop.Add(controller.Key(job))
			}
		}
	}))
	return c
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.synced) }

// Expires is when a Job is to be deleted: not before it is finished, and only if it
// has a time to live.
func Expires(job *batchv1.Job) (at time.Time, ok bool) {
	if job.Spec.TTLSecondsAfterFinished == nil || job.DeletionTimestamp != nil {
		return at, false
	}
	for _, c := range job.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return c.LastTransitionTime.Add(time.Duration(*job.Spec.TTLSecondsAfterFinished) * time.Second), true
		}
	}
	return at, false
}

func (c *Controller) sync(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	job, err := c.jobs.Jobs(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	at, ok := Expires(job)
	if !ok {
		return nil
	}
	if left := time.Until(at); left > 0 {
		c.loop.AddAfter(key, left)
		return nil
	}
	// The version makes sure of the time to live: it may just have been prolonged.
	foreground := metav1.DeletePropagationForeground
	err = c.client.BatchV1().Jobs(namespace).Delete(ctx, name, metav1.DeleteOptions{
		PropagationPolicy: &foreground, Preconditions: &metav1.Preconditions{UID: &job.UID, ResourceVersion: &job.ResourceVersion},
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete job %s after its time to live: %w", key, err)
	}
	return nil
}
