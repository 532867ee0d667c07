package e2e

import (
	"fmt"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

func gitJob(name, metadata, spec, image, command string) string {
	return fmt.Sprintf(`apiVersion: batch/v1
kind: Job
metadata: {name: %s%s}
spec:
  %s
  template: {spec: {restartPolicy: Never, containers: [{name: c, image: "gitk8s.local/%s", command: [/server, %s]}]}}
`, name, metadata, spec, image, command)
}

// TestGitJobs deploys Jobs from Git: they run once, are waited for, are not run
// again by self-heal, and what they run changes only on purpose.
func TestGitJobs(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "gitjobs")
	r := newRepo(t, c)
	r.add(ns, "shop")
	if _, err := c.pushImage("gitjobs/task:v1", "VERSION=v1"); err != nil {
		t.Fatal(err)
	}
	uid := func(name string) string {
		t.Helper()
		j, err := c.k.BatchV1().Jobs(ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return string(j.UID)
	}
	config := func(value string) string {
		return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cfg}\ndata: {a: " + value + "}\n"
	}
	r.commit("first", map[string]string{
		"brief.yaml": gitJob("brief", "", "ttlSecondsAfterFinished: 1", "gitjobs/task:v1", "env"),
		"keep.yaml":  gitJob("keep", "", "completions: 2", "gitjobs/task:v1", "env"),
		"cron.yaml": `apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
spec: {schedule: "0 3 * * *", jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: "gitk8s.local/gitjobs/task:v1"}]}}}}}
`,
		"cfg.yaml": config("one"),
	})
	contains(t, r.deploy(), "create    "+ns+"/job.batch/keep", "create    "+ns+"/cronjob.batch/nightly")
	keep := await(t, c, jobsGVR, ns, "keep", "it is complete: the deploy has waited for it", complete)
	if !strings.Contains(keep.Spec.Template.Spec.Containers[0].Image, "gitjobs/task:v1@sha256:") {
		t.Errorf("the image of a Job is not pinned: %s", keep.Spec.Template.Spec.Containers[0].Image)
	}
	cron, err := c.k.BatchV1().CronJobs(ns).Get(t.Context(), "nightly", metav1.GetOptions{})
	if err != nil || !strings.Contains(cron.Spec.JobTemplate.Spec.Template.Spec.Containers[0].Image, "@sha256:") {
		t.Errorf("the image of a CronJob is not pinned: %v", err)
	}

	// The Job that removed itself is not drift.
	awaitGone(t, c, jobsGVR, ns, "brief")
	c.kubectl(t, "-n", ns, "patch", "configmap", "cfg", "-p", `{"data":{"a":"tampered"}}`)
	await(t, c, configMapsGVR, ns, "cfg", "the patch is undone", func(m *corev1.ConfigMap) bool { return m.Data["a"] == "one" })
	c.awaitApp(t, ns, "shop", "it is Ready", func(a *v1alpha1.Application) bool { return a.Status.Phase == v1alpha1.PhaseReady })
	if _, err := c.k.BatchV1().Jobs(ns).Get(t.Context(), "brief", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("self-heal has made the Job again: %v", err)
	}
	// One that was deleted by hand is.
	c.kubectl(t, "-n", ns, "delete", "job", "keep")
	await(t, c, jobsGVR, ns, "keep", "it is made again", func(j *batchv1.Job) bool { return j.UID != keep.UID && complete(j) })

	// A tag that moved leaves a Job alone that exists, and the next deploy runs again
	// what is gone.
	if _, err := c.pushImage("gitjobs/task:v1", "VERSION=v1b"); err != nil {
		t.Fatal(err)
	}
	kept := uid("keep")
	r.commit("second", map[string]string{"cfg.yaml": config("two")})
	contains(t, r.deploy(), "create    "+ns+"/job.batch/brief", "2 to configure, 1 unchanged")
	if uid("keep") != kept {
		t.Error("the Job was replaced")
	}
	awaitGone(t, c, jobsGVR, ns, "brief")

	// What it runs cannot be changed, unless it is to be replaced.
	r.write(map[string]string{"keep.yaml": gitJob("keep", "", "completions: 2", "gitjobs/task:v1", "args")})
	if res := c.exec(r.dir, "", suite.bin, "diff", "shop", "-n", ns); res.code != 2 || !strings.Contains(res.stderr, "what a Job runs cannot be changed") {
		t.Errorf("diff: %s", res)
	}
	r.commit("changed", nil)
	if res := r.try("push", "gitk8s", "main"); res.code == 0 || !strings.Contains(res.stderr, "what a Job runs cannot be changed: give it another name") {
		t.Errorf("push: %s", res)
	}
	r.commit("replaced", map[string]string{"keep.yaml": gitJob("keep", ", annotations: {gitk8s.dev/replace: enabled}", "completions: 2", "gitjobs/task:v1", "args")})
	contains(t, r.deploy(), "replace   "+ns+"/job.batch/keep")
	replaced := await(t, c, jobsGVR, ns, "keep", "it is replaced", func(j *batchv1.Job) bool { return string(j.UID) != kept && complete(j) })
	if got := replaced.Spec.Template.Spec.Containers[0].Command[1]; got != "args" {
		t.Errorf("it runs %s", got)
	}

	// A Job that fails fails the deploy, and what ran before is back, Jobs too.
	r.commit("fails", map[string]string{"keep.yaml": gitJob("keep", ", annotations: {gitk8s.dev/replace: enabled}", "backoffLimit: 0", "gitjobs/task:v1", "exit, '1'")})
	contains(t, r.push(), "keep: Job has reached the specified backoff limit; rolling back")
	await(t, c, jobsGVR, ns, "keep", "it is back", func(j *batchv1.Job) bool {
		return j.Spec.Template.Spec.Containers[0].Command[1] == "args" && complete(j)
	})
	c.awaitApp(t, ns, "shop", "it is Ready again", func(a *v1alpha1.Application) bool { return a.Status.Phase == v1alpha1.PhaseReady })
}
