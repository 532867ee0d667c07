// Package cronjob makes Jobs on a schedule. In: CronJobs and Jobs by watch. Out: Jobs
// created and deleted, and the status of the CronJob.
package cronjob

import (
	"context"
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
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

var kind = batchv1.SchemeGroupVersion.WithKind("CronJob")

// Controller is the CronJob controller.
type Controller struct {
	client kubernetes.Interface
	events record.EventRecorder
	crons  batchlisters.CronJobLister
	jobs   batchlisters.JobLister
	synced []cache.InformerSynced
	newest controller.Newest[*batchv1.CronJob]
	loop   *controller.Loop

	mu sync.Mutex
	// told is the run of each CronJob that was last told to be skipped.
	told map[string]time.Time
}

// New returns a controller that watches through f; f is started by the caller.
func New(client kubernetes.Interface, f informers.SharedInformerFactory, events record.EventRecorder) *Controller {
	crons, jobs := f.Batch().V1().CronJobs(), f.Batch().V1().Jobs()
	c := &Controller{
		client: client, events: events, crons: crons.Lister(), jobs: jobs.Lister(), told: map[string]time.Time{},
		synced: []cache.InformerSynced{crons.Informer().HasSynced, jobs.Informer().HasSynced},
	}
	c.loop = controller.NewLoop("cronjob", 5, c.sync)
	crons.Informer().AddEventHandler(controller.Handler(func(old, cron *batchv1.CronJob) {
		if cron == nil {
			cron = old
		}
		c.loop.Add(controller.Key(cron))
	}))
	jobs.Informer().AddEventHandler(controller.Handler(func(old, job *batchv1.Job) {
		for _, j := range []*batchv1.Job{old, job} {
			if j == nil {
				continue
			}
			if ref := metav1.GetControllerOf(j); ref != nil && ref.Kind == kind.Kind {
				c.loop.Add(j.Namespace + "/" + ref.Name)
			}
		}
	}))
	return c
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.synced...) }

func (c *Controller) sync(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	cached, err := c.crons.CronJobs(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		c.forget(key)
		return nil
	}
	if err != nil {
		return err
	}
	cron := c.newest.Of(key, cached)
	s, err := c.snapshot(ctx, cron)
	if err != nil {
		return err
	}
	d := Decide(s, time.Now())
	if err := c.delete(ctx, cron, d.Replaced); err != nil {
		return err
	}
	if d.Start != nil {
		job, err := c.create(ctx, cron, d.Start)
		if err != nil {
			return errors.Join(err, c.updateStatus(ctx, key, cron, d.Status))
		}
		d.Status = Started(d.Status, job, d.At)
	}
	if err := c.updateStatus(ctx, key, cron, d.Status); err != nil {
		return err
	}
	for _, e := range d.Events {
		c.events.Event(cron, e.Type, e.Reason, e.Message)
	}
	c.tellSkipped(key, cron, &d)
	if err := c.delete(ctx, cron, d.Expired); err != nil {
		return err
	}
	if d.Recheck > 0 {
		c.loop.AddAfter(key, d.Recheck)
	}
	return nil
}

func (c *Controller) forget(key string) {
	c.newest.Forget(key)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.told, key)
}

// tellSkipped tells once of a run that does not start.
func (c *Controller) tellSkipped(key string, cron *batchv1.CronJob, d *Decision) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d.Why == nil || c.told[key].Equal(d.Skipped) {
		return
	}
	c.told[key] = d.Skipped
	c.events.Event(cron, d.Why.Type, d.Why.Reason, d.Why.Message)
}

// snapshot finds the Jobs of a CronJob. The cache may not show one yet that the
// status knows: it is asked for, so as not to be taken for gone.
func (c *Controller) snapshot(ctx context.Context, cron *batchv1.CronJob) (Snapshot, error) {
	s := Snapshot{CronJob: cron}
	all, err := c.jobs.Jobs(cron.Namespace).List(labels.Everything())
	if err != nil {
		return s, err
	}
	known := map[string]bool{}
	for _, job := range all {
		if metav1.IsControlledBy(job, cron) {
			s.Jobs = append(s.Jobs, job)
			known[job.Name] = true
		}
	}
	for _, ref := range cron.Status.Active {
		if known[ref.Name] {
			continue
		}
		job, err := c.client.BatchV1().Jobs(cron.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return s, err
		}
		s.Jobs = append(s.Jobs, job)
	}
	return s, nil
}

// create makes the Job of a run. If it is there already it was made before and not
// written down.
func (c *Controller) create(ctx context.Context, cron *batchv1.CronJob, job *batchv1.Job) (*batchv1.Job, error) {
	created, err := c.client.BatchV1().Jobs(job.Namespace).Create(ctx, job, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		there, getErr := c.client.BatchV1().Jobs(job.Namespace).Get(ctx, job.Name, metav1.GetOptions{})
		if getErr != nil {
			return nil, getErr
		}
		if metav1.IsControlledBy(there, cron) {
			return there, nil
		}
	}
	if err != nil {
		c.events.Eventf(cron, corev1.EventTypeWarning, "FailedCreate", "Error creating job: %v", err)
		return nil, fmt.Errorf("create job %s/%s: %w", job.Namespace, job.Name, err)
	}
	c.events.Eventf(cron, corev1.EventTypeNormal, "SuccessfulCreate", "Created job %v", created.Name)
	return created, nil
}

func (c *Controller) delete(ctx context.Context, cron *batchv1.CronJob, jobs []*batchv1.Job) error {
	background := metav1.DeletePropagationBackground
	return controller.Each(len(jobs), func(i int) error {
		job := jobs[i]
		err := c.client.BatchV1().Jobs(job.Namespace).Delete(ctx, job.Name, metav1.DeleteOptions{
			PropagationPolicy: &background, Preconditions: metav1.NewUIDPreconditions(string(job.UID)),
		})
		switch {
		case apierrors.IsNotFound(err), apierrors.IsConflict(err):
			return nil
		case err != nil:
			c.events.Eventf(cron, corev1.EventTypeWarning, "FailedDelete", "Deleted job: %v", err)
			return fmt.Errorf("delete job %s/%s: %w", job.Namespace, job.Name, err)
		}
		c.events.Eventf(cron, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted job %v", job.Name)
		return nil
	})
}

// updateStatus writes the status, if nobody has written the CronJob since it was
// read.
func (c *Controller) updateStatus(ctx context.Context, key string, cron *batchv1.CronJob, s batchv1.CronJobStatus) error {
	if apiequality.Semantic.DeepEqual(s, cron.Status) {
		return nil
	}
	changed := cron.DeepCopy()
	changed.Status = s
	written, err := c.client.BatchV1().CronJobs(cron.Namespace).UpdateStatus(ctx, changed, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write status of cronjob %s: %w", key, err)
	}
	c.newest.Wrote(key, written)
	return nil
}
