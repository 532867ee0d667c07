package defaults

import (
	"maps"
	"math"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// Job sets one completion by one pod at a time, its limits, and the labels of its
// template where it has none itself.
func Job(job *batchv1.Job) {
	if labels := job.Spec.Template.Labels; len(labels) > 0 && len(job.Labels) == 0 {
		job.Labels = maps.Clone(labels)
	}
	spec := &job.Spec
	PodSpec(&spec.Template.Spec)
	jobSpec(spec)
	// With neither, there is one pod; with parallelism alone, completions stay unset:
	// the pods share a work queue.
	if spec.Completions == nil && spec.Parallelism == nil {
		missing(&spec.Completions, 1)
	}
	missing(&spec.Parallelism, 1)
	if spec.BackoffLimitPerIndex != nil {
		missing(&spec.BackoffLimit, math.MaxInt32)
	}
	missing(&spec.BackoffLimit, 6)
	missing(&spec.CompletionMode, batchv1.NonIndexedCompletion)
	missing(&spec.Suspend, false)
	replacement := batchv1.TerminatingOrFailed
	if spec.PodFailurePolicy != nil {
		replacement = batchv1.Failed
	}
	missing(&spec.PodReplacementPolicy, replacement)
	missing(&spec.ManualSelector, false)
}

// jobSpec sets what is defaulted in the template of a CronJob as well.
func jobSpec(spec *batchv1.JobSpec) {
	if spec.PodFailurePolicy == nil {
		return
	}
	for i := range spec.PodFailurePolicy.Rules {
		for j := range spec.PodFailurePolicy.Rules[i].OnPodConditions {
			unset(&spec.PodFailurePolicy.Rules[i].OnPodConditions[j].Status, corev1.ConditionTrue)
		}
	}
}

// CronJob lets runs overlap and keeps three successful and one failed Job. The rest
// of the Job's defaults are set when the Job is made.
func CronJob(cron *batchv1.CronJob) {
	spec := &cron.Spec
	unset(&spec.ConcurrencyPolicy, batchv1.AllowConcurrent)
	missing(&spec.Suspend, false)
	missing(&spec.SuccessfulJobsHistoryLimit, 3)
	missing(&spec.FailedJobsHistoryLimit, 1)
	PodSpec(&spec.JobTemplate.Spec.Template.Spec)
	jobSpec(&spec.JobTemplate.Spec)
}
