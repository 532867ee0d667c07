package job

import (
	"slices"
	"strconv"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	finalizer = batchv1.JobTrackingFinalizer
	indexEnv  = "JOB_COMPLETION_INDEX"
	// longestPrefix is what the API server keeps of a prefix for generated names.
	longestPrefix = 58
)

func tracked(p *corev1.Pod) bool { return slices.Contains(p.Finalizers, finalizer) }

func isIndexed(spec *batchv1.JobSpec) bool {
	return spec.CompletionMode != nil && *spec.CompletionMode == batchv1.IndexedCompletion
}

// Want is a pod to be created.
type Want struct {
	// Index is the completion index, or -1.
	Index int
	// history of the index, with backoffLimitPerIndex.
	history history
}

// newPod is a pod of the Job. One of an Indexed Job knows its index by annotation,
// label, host name and environment (KEP-2214).
func newPod(job *batchv1.Job, w Want) *corev1.Pod {
	t := job.Spec.Template.DeepCopy()
	p := &corev1.Pod{ObjectMeta: t.ObjectMeta, Spec: t.Spec}
	p.Name, p.Namespace, p.GenerateName = "", job.Namespace, job.Name+"-"
	p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(job, kind)}
	if !tracked(p) {
		p.Finalizers = append(p.Finalizers, finalizer)
	}
	if w.Index < 0 {
		return p
	}
	index := strconv.Itoa(w.Index)
	suffix := "-" + index + "-"
	p.GenerateName = job.Name[:min(len(job.Name), longestPrefix-len(suffix))] + suffix
	p.Spec.Hostname = job.Name + "-" + index
	metav1.SetMetaDataAnnotation(&p.ObjectMeta, batchv1.JobCompletionIndexAnnotation, index)
	metav1.SetMetaDataLabel(&p.ObjectMeta, batchv1.JobCompletionIndexAnnotation, index)
	if job.Spec.BackoffLimitPerIndex != nil {
		metav1.SetMetaDataAnnotation(&p.ObjectMeta, batchv1.JobIndexFailureCountAnnotation, strconv.Itoa(w.history.failures))
		if w.history.ignored > 0 {
			metav1.SetMetaDataAnnotation(&p.ObjectMeta, batchv1.JobIndexIgnoredFailureCountAnnotation, strconv.Itoa(w.history.ignored))
		}
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			setIndexEnv(&list[i])
		}
	}
	return p
}

// setIndexEnv tells a container the index, unless it has a variable of that name.
func setIndexEnv(c *corev1.Container) {
	if slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == indexEnv }) {
		return
	}
	c.Env = append(c.Env, corev1.EnvVar{Name: indexEnv, ValueFrom: &corev1.EnvVarSource{
		FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels['" + batchv1.JobCompletionIndexAnnotation + "']"},
	}})
}
