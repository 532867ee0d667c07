package apiserver_test

import (
	"slices"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
)

// warnings collects the warnings of a server.
type warnings []string

func (w *warnings) HandleWarningHeader(_ int, _, text string) { *w = append(*w, text) }

const jobManifest = `{"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "hello"}, "spec": {
	"template": {"metadata": {"labels": {"app": "hello"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}`

// TestJobs: the server gives a Job its selector, keeps it through further applies,
// and guards what may not change.
func TestJobs(t *testing.T) {
	cfg := apiservertest.Start(t)
	client := kubernetes.NewForConfigOrDie(cfg)
	jobs, ctx := client.BatchV1().Jobs("default"), t.Context()
	apply := func(manifest string) (*batchv1.Job, error) {
		return jobs.Patch(ctx, "hello", types.ApplyPatchType, []byte(manifest), metav1.PatchOptions{FieldManager: "test"})
	}
	job, err := apply(jobManifest)
	if err != nil {
		t.Fatal(err)
	}
	uid := string(job.UID)
	if got := metav1.FormatLabelSelector(job.Spec.Selector); got != batchv1.ControllerUidLabel+"="+uid {
		t.Errorf("selector %s", got)
	}
	for k, v := range map[string]string{"app": "hello", "job-name": "hello", batchv1.JobNameLabel: "hello", "controller-uid": uid, batchv1.ControllerUidLabel: uid} {
		if got := job.Spec.Template.Labels[k]; got != v {
			t.Errorf("label %s of the pods is %q, want %q", k, got, v)
		}
	}
	if *job.Spec.BackoffLimit != 6 || *job.Spec.Completions != 1 || job.Generation != 1 {
		t.Errorf("not defaulted: %+v", job.Spec)
	}
	again, err := apply(jobManifest)
	if err != nil || again.ResourceVersion != job.ResourceVersion {
		t.Errorf("applied again it changes from %s to %s: %v", job.ResourceVersion, again.ResourceVersion, err)
	}
	_, err = jobs.Patch(ctx, "hello", types.MergePatchType, []byte(`{"spec": {"template": {"spec": {"priorityClassName": "x"}}}}`), metav1.PatchOptions{})
	if !apierrors.IsInvalid(err) {
		t.Errorf("the template was changed: %v", err)
	}
	job.Status.Succeeded = 3
	if _, err := jobs.UpdateStatus(ctx, job, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	for selector, want := range map[string]int{"status.successful=3": 1, "status.successful=0": 0} {
		list, err := jobs.List(ctx, metav1.ListOptions{FieldSelector: selector})
		if err != nil || len(list.Items) != want {
			t.Errorf("%s selects %d, want %d: %v", selector, len(list.Items), want, err)
		}
	}
	// A bare request leaves the pods, and says so.
	var warned warnings
	warning := rest.CopyConfig(cfg)
	warning.WarningHandler = &warned
	bare := kubernetes.NewForConfigOrDie(warning).BatchV1().Jobs("default")
	if err := bare.Delete(ctx, "hello", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	job, err = jobs.Get(ctx, "hello", metav1.GetOptions{})
	if err != nil || !slices.Contains(job.Finalizers, metav1.FinalizerOrphanDependents) || len(warned) != 1 || !strings.HasPrefix(warned[0], "child pods are preserved by default") {
		t.Errorf("finalizers %v, warnings %q, %v", job.Finalizers, warned, err)
	}
	manual := true
	_, err = jobs.Create(ctx, &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: "manual"},
		Spec: batchv1.JobSpec{
			ManualSelector: &manual, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "m"}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "m"}},
				Spec:       corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Errorf("a selector given by hand: %v", err)
	}
}
