package apiserver

import (
	"context"
	"fmt"
	"maps"
	"strconv"

	batchv1 "k8s.io/api/batch/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"gitk8s.dev/gitk8s/controlplane/apiserver/printers"
	"gitk8s.dev/gitk8s/controlplane/apiserver/validation"
)

// batchResources are the workloads that run to an end.
func batchResources() []*resource {
	batch := batchv1.SchemeGroupVersion
	return []*resource{
		{
			gv: batch, kind: "Job", plural: "jobs", singular: "job", categories: []string{"all"}, namespaced: true,
			newObject: object[batchv1.Job], newList: object[batchv1.JobList],
			table: printers.Jobs, name: apivalidation.NameIsDNSSubdomain, status: true, generation: true,
			check: checked(validation.Job), validateStatus: checked(validation.JobStatus),
			prepareCreate: jobCreate, warnings: jobWarnings, fields: jobFields, orphans: orphanedPods,
		},
		{
			gv: batch, kind: "CronJob", plural: "cronjobs", singular: "cronjob", shortNames: []string{"cj"},
			categories: []string{"all"}, namespaced: true,
			newObject: object[batchv1.CronJob], newList: object[batchv1.CronJobList],
			table: printers.CronJobs, name: apivalidation.NameIsDNSSubdomain, status: true, generation: true,
			check: checked(validation.CronJob), warnings: cronJobWarnings,
		},
	}
}

// orphanedPods is what batch/v1 has kept of older versions: kubectl and controllers
// say what is to happen to the pods, a bare request may not.
const orphanedPods = "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning"

// jobCreate gives a Job a selector of its own, and its pods the labels for it. What
// is set already stays, and validation refuses it if it does not fit.
func jobCreate(_ context.Context, obj runtime.Object) {
	job := obj.(*batchv1.Job)
	if m := job.Spec.ManualSelector; m != nil && *m {
		return
	}
	labels := validation.JobLabels(job)
	maps.Copy(labels, job.Spec.Template.Labels)
	job.Spec.Template.Labels = labels
	if job.Spec.Selector == nil {
		job.Spec.Selector = &metav1.LabelSelector{}
	}
	if _, ok := job.Spec.Selector.MatchLabels[batchv1.ControllerUidLabel]; !ok {
		metav1.AddLabelToSelector(job.Spec.Selector, batchv1.ControllerUidLabel, string(job.UID))
	}
}

func jobFields(obj runtime.Object) fields.Set {
	return fields.Set{"status.successful": strconv.Itoa(int(obj.(*batchv1.Job).Status.Succeeded))}
}

// manyCompletions and manyAtOnce are the numbers above which the indexes of a Job
// may no longer fit into its status (KEP-3850).
const (
	manyCompletions = 100_000
	manyAtOnce      = 10_000
)

func jobWarnings(obj runtime.Object) []string {
	job := obj.(*batchv1.Job)
	return append(jobSpecWarnings(&job.Spec, field.NewPath("spec")), nameWarning(job.Name)...)
}

func cronJobWarnings(obj runtime.Object) []string {
	cron := obj.(*batchv1.CronJob)
	return append(jobSpecWarnings(&cron.Spec.JobTemplate.Spec, field.NewPath("spec", "jobTemplate", "spec")), nameWarning(cron.Name)...)
}

// nameWarning warns of a name that is none of a host.
func nameWarning(name string) []string {
	faults := utilvalidation.IsDNS1123Label(name)
	if name == "" || len(faults) == 0 {
		return nil
	}
	return []string{"metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: " + fmt.Sprint(faults)}
}

func jobSpecWarnings(spec *batchv1.JobSpec, p *field.Path) []string {
	out := podSpecWarnings(&spec.Template.Spec, p.Child("template", "spec"))
	out = append(out, warn(p.Child("scheduling"), spec.Scheduling != nil)...)
	if spec.Completions != nil && *spec.Completions > manyCompletions && spec.Parallelism != nil && *spec.Parallelism > manyAtOnce {
		out = append(out, "In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail")
	}
	return out
}
