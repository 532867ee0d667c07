// Package job runs pods to their end. In: Jobs and pods by watch. Out: pods created
// and deleted, the finalizers that hold a pod until it is counted, and the status of
// the Job.
package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	batchlisters "k8s.io/client-go/listers/batch/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

var kind = batchv1.SchemeGroupVersion.WithKind("Job")

// burst bounds the pods created or deleted by one look at one Job; the rest follows
// when these have been seen.
const burst = 500

// Controller is the Job controller.
type Controller struct {
	client  kubernetes.Interface
	jobs    batchlisters.JobLister
	pods    corelisters.PodLister
	synced  []cache.InformerSynced
	control controller.PodControl
	newest  controller.Newest[*batchv1.Job]
	loop    *controller.Loop
	// failures are what the last decision about each Job, by its UID, knew of: Failures.
	failures sync.Map
	// orphans are pods that have lost their Job and still its finalizer.
	orphans *controller.Loop
}

// New returns a controller that watches through f; f is started by the caller.
func New(client kubernetes.Interface, f informers.SharedInformerFactory, events record.EventRecorder) *Controller {
	jobs, pods := f.Batch().V1().Jobs(), f.Core().V1().Pods()
	c := &Controller{
		client: client, jobs: jobs.Lister(), pods: pods.Lister(),
		synced:  []cache.InformerSynced{jobs.Informer().HasSynced, pods.Informer().HasSynced},
		control: controller.PodControl{Client: client, Events: events},
	}
	c.loop = controller.NewLoop("job", 5, c.sync)
	c.control.Expected = controller.NewExpectations(c.loop.AddAfter)
	c.orphans = controller.NewLoop("job-orphans", 2, c.syncOrphan)
	jobs.Informer().AddEventHandler(controller.Handler(c.onJob))
	pods.Informer().AddEventHandler(controller.Handler(c.onPod))
	return c
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- c.orphans.Run(ctx, c.synced...) }()
	return errors.Join(c.loop.Run(ctx, c.synced...), <-done)
}

func (c *Controller) onJob(old, job *batchv1.Job) {
	if old != nil && (job == nil || job.UID != old.UID) {
		c.failures.Delete(old.UID)
	}
	if job != nil {
		c.loop.Add(controller.Key(job))
		return
	}
	key := controller.Key(old)
	c.control.Expected.Forget(key)
	c.newest.Forget(key)
	pods, err := c.pods.Pods(old.Namespace).List(labels.Everything())
	if err != nil {
		return
	}
	controller.AddWhere(c.orphans, pods, func(p *corev1.Pod) bool { return tracked(p) && metav1.IsControlledBy(p, old) })
}

func (c *Controller) onPod(old, pod *corev1.Pod) {
	for _, p := range []*corev1.Pod{old, pod} {
		if p == nil {
			continue
		}
		ref := metav1.GetControllerOf(p)
		if ref == nil {
			c.onOrphan(p)
			continue
		}
		if ref.Kind != kind.Kind {
			continue
		}
		if job, err := c.jobs.Jobs(p.Namespace).Get(ref.Name); err != nil || job.UID != ref.UID {
			c.orphans.Add(controller.Key(p))
		}
		key := p.Namespace + "/" + ref.Name
		c.control.Observe(key, old, pod)
		c.loop.Add(key)
	}
}

// onOrphan wakes the Jobs that may adopt a pod, or takes its finalizer if it has
// been let go.
func (c *Controller) onOrphan(p *corev1.Pod) {
	if tracked(p) {
		c.orphans.Add(controller.Key(p))
	}
	jobs, err := c.jobs.Jobs(p.Namespace).List(labels.Everything())
	if err != nil {
		return
	}
	controller.AddWhere(c.loop, jobs, func(job *batchv1.Job) bool {
		s, err := metav1.LabelSelectorAsSelector(job.Spec.Selector)
		return err == nil && !s.Empty() && s.Matches(labels.Set(p.Labels))
	})
}

// syncOrphan takes the finalizer from a pod that no Job will count.
func (c *Controller) syncOrphan(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	p, err := c.pods.Pods(namespace).Get(name)
	if apierrors.IsNotFound(err) || err == nil && !tracked(p) {
		return nil
	}
	if err != nil {
		return err
	}
	if ref := metav1.GetControllerOf(p); ref != nil {
		if ref.Kind != kind.Kind {
			return nil
		}
		job, err := c.client.BatchV1().Jobs(namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) || err == nil && job.UID == ref.UID {
			return err
		}
	}
	return c.control.RemoveFinalizers(ctx, finalizer, []*corev1.Pod{p})
}

// ours says whether this controller is the one that the Job is managed by
// (KEP-4368).
func ours(job *batchv1.Job) bool {
	return job.Spec.ManagedBy == nil || *job.Spec.ManagedBy == batchv1.JobControllerName
}

func (c *Controller) sync(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	cached, err := c.jobs.Jobs(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		c.control.Expected.Forget(key)
		c.newest.Forget(key)
		return nil
	}
	if err != nil {
		return err
	}
	job := c.newest.Of(key, cached)
	selector, err := metav1.LabelSelectorAsSelector(job.Spec.Selector)
	if err != nil || selector.Empty() || !ours(job) {
		return nil
	}
	satisfied := c.control.Expected.Satisfied(key)
	pods, complete, err := c.take(ctx, job, selector)
	if err != nil || !complete {
		return err
	}
	known, _ := c.failures.Load(job.UID)
	failures, _ := known.(Failures)
	d := Decide(Snapshot{Job: job, Pods: pods, Behind: !satisfied, Failures: failures}, time.Now())
	if Finished(job) {
		c.failures.Delete(job.UID)
	} else {
		c.failures.Store(job.UID, d.Failures)
	}
	if err := c.updateStatus(ctx, key, job, &d); err != nil {
		return err
	}
	err = errors.Join(c.control.RemoveFinalizers(ctx, finalizer, d.Release), c.do(ctx, key, job, &d))
	if d.Recheck > 0 {
		c.loop.AddAfter(key, d.Recheck)
	}
	return err
}

// take claims the pods of a Job. One that has just been adopted has got the
// finalizer with its owner, which the cache does not show yet: the step is taken
// when it does.
func (c *Controller) take(ctx context.Context, job *batchv1.Job, selector labels.Selector) (pods []*corev1.Pod, complete bool, err error) {
	all, err := c.pods.Pods(job.Namespace).List(labels.Everything())
	if err != nil {
		return nil, false, err
	}
	complete = true
	live := func(ctx context.Context) (metav1.Object, error) {
		return c.client.BatchV1().Jobs(job.Namespace).Get(ctx, job.Name, metav1.GetOptions{})
	}
	pods, err = controller.Take(ctx, job, kind, controller.Claim(job, selector, all), live, func(ctx context.Context, p *corev1.Pod, body []byte) error {
		if metav1.GetControllerOf(p) != nil {
			return c.control.Patch(ctx, p, body)
		}
		complete = false
		body, err := withFinalizer(body)
		if err != nil {
			return err
		}
		return c.control.Patch(ctx, p, body)
	})
	return pods, complete, err
}

// withFinalizer adds the finalizer to a patch that adopts a pod.
func withFinalizer(body []byte) ([]byte, error) {
	var patch map[string]map[string]any
	if err := json.Unmarshal(body, &patch); err != nil {
		return nil, fmt.Errorf("read the patch that adopts a pod: %w", err)
	}
	patch["metadata"]["finalizers"] = []string{finalizer}
	return json.Marshal(patch)
}

// updateStatus writes the status, if nobody has written the Job since it was read:
// what counts from an old status counts wrong. Then it tells what has happened.
func (c *Controller) updateStatus(ctx context.Context, key string, job *batchv1.Job, d *Decision) error {
	if apiequality.Semantic.DeepEqual(d.Status, job.Status) {
		return nil
	}
	changed := job.DeepCopy()
	changed.Status = d.Status
	written, err := c.client.BatchV1().Jobs(job.Namespace).UpdateStatus(ctx, changed, metav1.UpdateOptions{})
	if err != nil {
		return fmt.Errorf("write status of job %s: %w", key, err)
	}
	c.newest.Wrote(key, written)
	for _, e := range d.Events {
		c.control.Events.Event(job, e.Type, e.Reason, e.Message)
	}
	return nil
}

// do creates and deletes pods.
func (c *Controller) do(ctx context.Context, key string, job *batchv1.Job, d *Decision) error {
	remove, stop := d.Remove[:min(len(d.Remove), burst)], d.Stop[:min(len(d.Stop), burst)]
	if err := c.control.RemoveFinalizers(ctx, finalizer, remove); err != nil {
		return err
	}
	deleteErr := errors.Join(c.control.Delete(ctx, job, key, remove), c.control.Delete(ctx, job, key, stop))
	create := d.Create[:min(len(d.Create), burst)]
	return errors.Join(deleteErr, c.control.Create(ctx, job, key, len(create), func(i int) *corev1.Pod { return newPod(job, create[i]) }))
}
