package job

import (
	"context"
	"fmt"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
)

// TestController runs the controller against an API server; the test plays the
// workers.
func TestController(t *testing.T) {
	client := kubernetes.NewForConfigOrDie(apiservertest.Start(t))
	f := informers.NewSharedInformerFactory(client, 0)
	c := New(client, f, &record.FakeRecorder{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	f.StartWithContext(ctx)
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		f.Shutdown()
	})
	w := world{client, f.Core().V1().Pods().Lister()}
	t.Run("adopts", w.adopts)
	t.Run("lets go", w.letsGo)
	t.Run("of another controller", w.managedByAnother)
	t.Run("remembers failures", w.remembers)
}

type world struct {
	client kubernetes.Interface
	seen   corelisters.PodLister // what the controller has heard of
}

func (w world) eventually(t *testing.T, what string, f func(ctx context.Context) (bool, error)) {
	t.Helper()
	if err := wait.PollUntilContextTimeout(t.Context(), 5*time.Millisecond, time.Minute, true, f); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func (w world) create(t *testing.T, job *batchv1.Job) *batchv1.Job {
	t.Helper()
	job.Spec.Template.Spec = corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "i"}}}
	out, err := w.client.BatchV1().Jobs("default").Create(t.Context(), job, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (w world) pods(ctx context.Context, t *testing.T, selector string) []corev1.Pod {
	t.Helper()
	list, err := w.client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// adopts: a pod that fits a selector given by hand becomes the Job's, is held until
// it is counted, and counts.
func (w world) adopts(t *testing.T) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "orphan", Labels: map[string]string{"app": "adopt"}},
		Spec:       corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	if _, err := w.client.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// Else the Job may make a pod of its own, and then delete one of the two.
	w.eventually(t, "the controller has heard of the pod", func(context.Context) (bool, error) {
		_, err := w.seen.Pods("default").Get("orphan")
		return err == nil, nil
	})
	manual := true
	job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "adopt"}}
	job.Spec.ManualSelector, job.Spec.Selector = &manual, &metav1.LabelSelector{MatchLabels: pod.Labels}
	job.Spec.Template.Labels = pod.Labels
	w.create(t, job)
	w.eventually(t, "the pod is adopted", func(ctx context.Context) (bool, error) {
		p, err := w.client.CoreV1().Pods("default").Get(ctx, "orphan", metav1.GetOptions{})
		return err == nil && tracked(p) && metav1.GetControllerOf(p) != nil, err
	})
	if _, err := w.client.CoreV1().Pods("default").Patch(t.Context(), "orphan", "application/merge-patch+json", []byte(`{"status": {"phase": "Succeeded"}}`), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	w.eventually(t, "the Job is complete", func(ctx context.Context) (bool, error) {
		j, err := w.client.BatchV1().Jobs("default").Get(ctx, "adopt", metav1.GetOptions{})
		return err == nil && Finished(j) && j.Status.Succeeded == 1, err
	})
	if pods := w.pods(t.Context(), t, "app=adopt"); len(pods) != 1 || tracked(&pods[0]) {
		t.Errorf("%d pods, of which the first has finalizers %v", len(pods), pods[0].Finalizers)
	}
}

// letsGo: the pods of a Job that is gone are held by nobody.
func (w world) letsGo(t *testing.T) {
	two := int32(2)
	job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "gone"}}
	job.Spec.Parallelism, job.Spec.Completions = &two, &two
	w.create(t, job)
	w.eventually(t, "its pods exist", func(ctx context.Context) (bool, error) { return len(w.pods(ctx, t, "job-name=gone")) == 2, nil })
	background := metav1.DeletePropagationBackground
	if err := w.client.BatchV1().Jobs("default").Delete(t.Context(), "gone", metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
		t.Fatal(err)
	}
	w.eventually(t, "they are let go", func(ctx context.Context) (bool, error) {
		for _, p := range w.pods(ctx, t, "job-name=gone") {
			if tracked(&p) {
				return false, nil
			}
		}
		return true, nil
	})
}

// managedByAnother: a Job of another controller is left alone (KEP-4368).
func (w world) managedByAnother(t *testing.T) {
	another := "example.com/another"
	foreign := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "foreign"}}
	foreign.Spec.ManagedBy = &another
	w.create(t, foreign)
	w.create(t, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "own"}})
	w.eventually(t, "the pod of the Job made after it exists", func(ctx context.Context) (bool, error) {
		return len(w.pods(ctx, t, "job-name=own")) == 1, nil
	})
	j, err := w.client.BatchV1().Jobs("default").Get(t.Context(), "foreign", metav1.GetOptions{})
	if err != nil || j.Status.StartTime != nil || len(w.pods(t.Context(), t, "job-name=foreign")) > 0 {
		t.Errorf("%+v, %v", j.Status, err)
	}
}

// remembers: that a failed pod is deleted by hand does not make the next one start
// sooner.
func (w world) remembers(t *testing.T) {
	w.create(t, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "fails"}})
	var first corev1.Pod
	w.eventually(t, "its pod exists", func(ctx context.Context) (bool, error) {
		pods := w.pods(ctx, t, "job-name=fails")
		if len(pods) == 1 {
			first = pods[0]
		}
		return len(pods) == 1, nil
	})
	ended := time.Now().Truncate(time.Second)
	status := fmt.Sprintf(`{"status": {"phase": "Failed", "containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 1, "finishedAt": %q}}}]}}`, ended.UTC().Format(time.RFC3339))
	if _, err := w.client.CoreV1().Pods("default").Patch(t.Context(), first.Name, "application/merge-patch+json", []byte(status), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	if err := w.client.CoreV1().Pods("default").Delete(t.Context(), first.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Fatal(err)
	}
	w.eventually(t, "the next pod exists", func(ctx context.Context) (bool, error) {
		pods := w.pods(ctx, t, "job-name=fails")
		return len(pods) == 1 && pods[0].UID != first.UID, nil
	})
	j, err := w.client.BatchV1().Jobs("default").Get(t.Context(), "fails", metav1.GetOptions{})
	if waited := time.Since(ended); err != nil || waited < firstBackOff || j.Status.Failed != 1 {
		t.Errorf("after %s, with %d failures: %v", waited, j.Status.Failed, err)
	}
}
