package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var (
	jobsGVR     = batchv1.SchemeGroupVersion.WithResource("jobs")
	cronJobsGVR = batchv1.SchemeGroupVersion.WithResource("cronjobs")
)

// job is a manifest of a Job whose container runs the test program.
func job(name, spec, command string) string {
	return fmt.Sprintf(`apiVersion: batch/v1
kind: Job
metadata: {name: %s}
spec: {%s, template: {spec: %s}}
`, name, strings.TrimSuffix(spec, ", "), once(command))
}

func once(command string) string {
	return fmt.Sprintf(`{restartPolicy: Never, terminationGracePeriodSeconds: 1, containers: [{name: c, image: "gitk8s.local/test/web:v1", command: [/server, %s]}]}`, command)
}

// jobHas says whether a condition of a Job is true, and why.
func jobHas(j *batchv1.Job, t batchv1.JobConditionType) (reason string, ok bool) {
	for _, c := range j.Status.Conditions {
		if c.Type == t && c.Status == corev1.ConditionTrue {
			return c.Reason, true
		}
	}
	return "", false
}

func complete(j *batchv1.Job) bool {
	_, ok := jobHas(j, batchv1.JobComplete)
	return ok
}

func failed(j *batchv1.Job) bool {
	_, ok := jobHas(j, batchv1.JobFailed)
	return ok
}

// TestJobs runs Jobs of all kinds to their end.
func TestJobs(t *testing.T) {
	t.Parallel()
	c := suite.shared
	for name, test := range map[string]func(*testing.T, *cluster, string){
		"completions": jobCompletions, "indexed": jobIndexed, "backoff": jobBackoff, "policy": jobPolicy, "disrupted": jobDisrupted,
		"per-index": jobPerIndex, "success": jobSuccess, "restarts": jobRestarts,
		"replacement": jobReplacement, "suspend": jobSuspend, "ttl": jobTTL, "deadline": jobDeadline,
		"cron": cronJob, "cron-policies": cronPolicies,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, c, c.namespace(t, "jobs-"+name))
		})
	}
}

func jobCompletions(t *testing.T, c *cluster, ns string) {
	k := kubectls(c)["own"].in(ns)
	c.apply(t, ns, job("three", "completions: 3, parallelism: 2", "env"))
	k.run(t, "wait", "--for=condition=complete", "job/three", "--timeout=60s")
	j := await(t, c, jobsGVR, ns, "three", "it is complete", complete)
	if j.Status.Succeeded != 3 || j.Status.Failed != 0 || j.Status.Active != 0 || j.Status.CompletionTime == nil {
		t.Errorf("status %+v", j.Status)
	}
	contains(t, k.run(t, "get", "jobs"), "STATUS", "COMPLETIONS", "three   Complete   3/3")
	contains(t, k.run(t, "describe", "job", "three"), "SuccessfulCreate", "Completed", "3 Succeeded")
	contains(t, k.run(t, "logs", "job/three"), "VERSION=v1")
	pods := c.awaitPods(t, ns, "job-name=three", "they are counted", func(pods []*corev1.Pod) bool {
		return len(pods) == 3 && !slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return len(p.Finalizers) > 0 })
	})
	for _, p := range pods {
		if p.Status.Phase != corev1.PodSucceeded {
			t.Errorf("%s is %s", p.Name, p.Status.Phase)
		}
	}
	if r := k.try("", "patch", "job", "three", "-p", `{"spec":{"template":{"spec":{"containers":[{"name":"c","image":"gitk8s.local/test/web:v2"}]}}}}`); !strings.Contains(r.stderr, "field is immutable") {
		t.Errorf("the template of a Job was changed: %s", r)
	}
	k.run(t, "delete", "job", "three")
	c.awaitPods(t, ns, "job-name=three", "all are gone", func(pods []*corev1.Pod) bool { return len(pods) == 0 })

	// A Job that is deleted while it runs leaves no pod behind its finalizer, and none
	// that it leaves has one.
	for _, cascade := range []string{"background", "foreground", "orphan"} {
		c.apply(t, ns, job(cascade, "completions: 2, parallelism: 2", "sleep, 1h"))
		c.awaitPods(t, ns, "job-name="+cascade, "they run", func(pods []*corev1.Pod) bool { return len(pods) == 2 && allReady(pods) })
		k.run(t, "delete", "job", cascade, "--cascade="+cascade, "--timeout=60s")
	}
	for _, cascade := range []string{"background", "foreground"} {
		c.awaitPods(t, ns, "job-name="+cascade, "all are gone", func(pods []*corev1.Pod) bool { return len(pods) == 0 })
	}
	c.awaitPods(t, ns, "job-name=orphan", "they are free", func(pods []*corev1.Pod) bool {
		free := func(p *corev1.Pod) bool { return len(p.Finalizers)+len(p.OwnerReferences) == 0 }
		return len(pods) == 2 && allReady(pods) && free(pods[0]) && free(pods[1])
	})
}

func jobIndexed(t *testing.T, c *cluster, ns string) {
	k := kubectls(c)["own"].in(ns)
	c.apply(t, ns, job("idx", "completions: 4, parallelism: 3, completionMode: Indexed", "env"))
	k.run(t, "wait", "--for=condition=complete", "job/idx", "--timeout=60s")
	j := await(t, c, jobsGVR, ns, "idx", "it is complete", complete)
	if j.Status.CompletedIndexes != "0-3" || j.Status.Succeeded != 4 {
		t.Errorf("status %+v", j.Status)
	}
	seen := map[string]bool{}
	for _, p := range c.awaitPods(t, ns, "job-name=idx", "there are four", func(pods []*corev1.Pod) bool { return len(pods) == 4 }) {
		index := p.Annotations[batchv1.JobCompletionIndexAnnotation]
		if index != p.Labels[batchv1.JobCompletionIndexAnnotation] || !strings.HasPrefix(p.Name, "idx-"+index+"-") || p.Spec.Hostname != "idx-"+index || seen[index] {
			t.Errorf("%s of index %q, host %s", p.Name, index, p.Spec.Hostname)
		}
		seen[index] = true
		contains(t, k.run(t, "logs", p.Name), "JOB_COMPLETION_INDEX="+index, "HOSTNAME=idx-"+index)
	}
}

func jobBackoff(t *testing.T, c *cluster, ns string) {
	k := kubectls(c)["own"].in(ns)
	c.apply(t, ns, job("bad", "backoffLimit: 1", "exit, '3'"))
	k.run(t, "wait", "--for=condition=failed", "job/bad", "--timeout=60s")
	j := await(t, c, jobsGVR, ns, "bad", "it has failed", failed)
	if reason, _ := jobHas(j, batchv1.JobFailed); reason != batchv1.JobReasonBackoffLimitExceeded || j.Status.Failed != 2 {
		t.Errorf("%s, status %+v", reason, j.Status)
	}
	pods := c.awaitPods(t, ns, "job-name=bad", "there are two", func(pods []*corev1.Pod) bool { return len(pods) == 2 })
	if d := pods[0].CreationTimestamp.Sub(pods[1].CreationTimestamp.Time).Abs(); d < 9*time.Second {
		t.Errorf("tried again after %s", d)
	}
	contains(t, k.run(t, "describe", "job", "bad"), "BackoffLimitExceeded", "Job has reached the specified backoff limit")
}

// jobPerIndex: an index that fails does not keep the others from succeeding.
func jobPerIndex(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, job("each", "completions: 3, parallelism: 3, completionMode: Indexed, backoffLimitPerIndex: 0", "exit, $(JOB_COMPLETION_INDEX)"))
	j := await(t, c, jobsGVR, ns, "each", "it has failed", failed)
	if reason, _ := jobHas(j, batchv1.JobFailed); reason != batchv1.JobReasonFailedIndexes || j.Status.CompletedIndexes != "0" || *j.Status.FailedIndexes != "1,2" {
		t.Errorf("%s, status %+v", reason, j.Status)
	}
}

// jobSuccess: an index may be enough, and the others are stopped.
func jobSuccess(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, job("first", "completions: 3, parallelism: 3, completionMode: Indexed, successPolicy: {rules: [{succeededIndexes: '0'}]}", "sleep, $(JOB_COMPLETION_INDEX)h"))
	j := await(t, c, jobsGVR, ns, "first", "it is complete", complete)
	if reason, _ := jobHas(j, batchv1.JobComplete); reason != batchv1.JobReasonSuccessPolicy || j.Status.CompletedIndexes != "0" || j.Status.Active+*j.Status.Terminating > 0 {
		t.Errorf("%s, status %+v", reason, j.Status)
	}
}

// jobRestarts: what its node restarts counts against the limit, too.
func jobRestarts(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, strings.Replace(job("again", "backoffLimit: 1", "exit, '3'"), "restartPolicy: Never", "restartPolicy: OnFailure", 1))
	j := await(t, c, jobsGVR, ns, "again", "it has failed", failed)
	if reason, _ := jobHas(j, batchv1.JobFailed); reason != batchv1.JobReasonBackoffLimitExceeded || j.Status.Failed != 1 {
		t.Errorf("%s, status %+v", reason, j.Status)
	}
}

func jobPolicy(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, job("picky", `completions: 2, podFailurePolicy: {rules: [{action: FailJob, onExitCodes: {containerName: c, operator: In, values: [42]}}]}`, "exit, '42'"))
	j := await(t, c, jobsGVR, ns, "picky", "it has failed", failed)
	if reason, _ := jobHas(j, batchv1.JobFailed); reason != batchv1.JobReasonPodFailurePolicy || j.Status.Failed != 1 {
		t.Errorf("%s, status %+v", reason, j.Status)
	}
	contains(t, j.Status.Conditions[len(j.Status.Conditions)-1].Message, "Container c for pod "+ns+"/picky-", "failed with exit code 42 matching FailJob rule at index 0")
}

// jobDisrupted: an eviction is no failure, if the policy says so.
func jobDisrupted(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, job("calm", `backoffLimit: 0, podFailurePolicy: {rules: [{action: Ignore, onPodConditions: [{type: DisruptionTarget}]}]}`, "sleep, 1h"))
	first := c.awaitPods(t, ns, "job-name=calm", "it runs", func(pods []*corev1.Pod) bool { return len(pods) == 1 && ready(pods[0]) })[0]
	if err := c.k.CoreV1().Pods(ns).EvictV1(t.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: first.Name}}); err != nil {
		t.Fatal(err)
	}
	c.awaitPods(t, ns, "job-name=calm", "another runs", func(pods []*corev1.Pod) bool {
		return len(pods) == 1 && pods[0].Name != first.Name && ready(pods[0])
	})
	j := await(t, c, jobsGVR, ns, "calm", "it counts one pod", func(j *batchv1.Job) bool { return j.Status.Active == 1 && *j.Status.Terminating == 0 })
	if j.Status.Failed != 0 || len(j.Status.Conditions) > 0 {
		t.Errorf("status %+v", j.Status)
	}
}

// jobReplacement: a pod that was deleted is replaced when it has stopped, if that
// is asked for.
func jobReplacement(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, job("careful", "podReplacementPolicy: Failed", "sleep, 1h"))
	first := c.awaitPods(t, ns, "job-name=careful", "it runs", func(pods []*corev1.Pod) bool { return len(pods) == 1 && ready(pods[0]) })[0]
	c.kubectl(t, "-n", ns, "delete", "pod", first.Name, "--wait=false")
	await(t, c, jobsGVR, ns, "careful", "the pod has failed", func(j *batchv1.Job) bool { return j.Status.Failed == 1 && *j.Status.Terminating == 0 })
	c.awaitPods(t, ns, "job-name=careful", "another runs", func(pods []*corev1.Pod) bool {
		return len(pods) == 1 && pods[0].Name != first.Name && ready(pods[0])
	})
}

func jobSuspend(t *testing.T, c *cluster, ns string) {
	k := kubectls(c)["own"].in(ns)
	c.apply(t, ns, job("paused", "suspend: true, parallelism: 2, completions: 2", "sleep, 1h"))
	suspended := func(j *batchv1.Job) bool {
		_, ok := jobHas(j, batchv1.JobSuspended)
		return ok && j.Status.Active == 0
	}
	if j := await(t, c, jobsGVR, ns, "paused", "it is suspended", suspended); j.Status.StartTime != nil {
		t.Errorf("started at %s", j.Status.StartTime)
	}
	contains(t, k.run(t, "get", "job", "paused"), "Suspended")
	k.run(t, "patch", "job", "paused", "-p", `{"spec":{"suspend":false}}`)
	await(t, c, jobsGVR, ns, "paused", "it runs", func(j *batchv1.Job) bool { return j.Status.Ready != nil && *j.Status.Ready == 2 })
	k.run(t, "patch", "job", "paused", "-p", `{"spec":{"suspend":true}}`)
	c.awaitPods(t, ns, "job-name=paused", "all are gone", func(pods []*corev1.Pod) bool { return len(pods) == 0 })
	j := await(t, c, jobsGVR, ns, "paused", "it is suspended again", func(j *batchv1.Job) bool { return suspended(j) && *j.Status.Terminating == 0 })
	if j.Status.Failed != 0 {
		t.Errorf("%d pods failed by being suspended", j.Status.Failed)
	}
	contains(t, k.run(t, "describe", "job", "paused"), "Suspended", "Resumed", "SuccessfulDelete")
}

func jobTTL(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, job("brief", "ttlSecondsAfterFinished: 1", "env"))
	await(t, c, jobsGVR, ns, "brief", "it is complete", complete)
	awaitGone(t, c, jobsGVR, ns, "brief")
	c.awaitPods(t, ns, "job-name=brief", "all are gone", func(pods []*corev1.Pod) bool { return len(pods) == 0 })
}

func jobDeadline(t *testing.T, c *cluster, ns string) {
	k := kubectls(c)["own"].in(ns)
	c.apply(t, ns, job("late", "activeDeadlineSeconds: 1", "sleep, 1h"))
	k.run(t, "wait", "--for=condition=failed", "job/late", "--timeout=60s")
	contains(t, k.run(t, "describe", "job", "late"), "DeadlineExceeded", "Job was active longer than specified deadline")
	c.awaitPods(t, ns, "job-name=late", "none runs", func(pods []*corev1.Pod) bool { return len(pods) == 0 })
}

// cronPolicies: whether a run that was missed is made up for, and what becomes of the
// one before it. That two were missed is written into the status: nobody waits for a
// minute to pass.
func cronPolicies(t *testing.T, c *cluster, ns string) {
	k := kubectls(c)["own"].in(ns)
	// Two minutes that have passed, however long this test takes.
	now := time.Now().UTC().Truncate(time.Minute)
	first, second := now.Add(-3*time.Minute), now.Add(-2*time.Minute)
	command := map[string]string{"Allow": "env", "Forbid": "sleep, 1h", "Replace": "sleep, 1h", "late": "env"}
	for name, command := range command {
		policy, deadline := name, ""
		if name == "late" {
			policy, deadline = "Allow", "startingDeadlineSeconds: 20, "
		}
		name = strings.ToLower(name)
		c.apply(t, ns, fmt.Sprintf(`apiVersion: batch/v1
kind: CronJob
metadata: {name: %s}
spec: {schedule: "%d * * * *", timeZone: Etc/UTC, suspend: true, successfulJobsHistoryLimit: 1, concurrencyPolicy: %s, %sjobTemplate: {spec: {template: {spec: %s}}}}
`, name, first.Minute(), policy, deadline, once(command)))
		k.run(t, "patch", "cronjob", name, "--subresource=status", "-p", `{"status":{"lastScheduleTime":"`+first.Add(-time.Minute).Format(time.RFC3339)+`"}}`)
		k.run(t, "patch", "cronjob", name, "-p", `{"spec":{"suspend":false}}`)
	}
	// The minute and the hour are those of a place half an hour off.
	india, err := time.LoadLocation("Asia/Kolkata")
	if err != nil {
		t.Fatal(err)
	}
	c.apply(t, ns, fmt.Sprintf(`apiVersion: batch/v1
kind: CronJob
metadata: {name: zoned}
spec: {schedule: "%d %d * * *", timeZone: Asia/Kolkata, suspend: true, jobTemplate: {spec: {template: {spec: %s}}}}
`, first.In(india).Minute(), first.In(india).Hour(), once("env")))
	k.run(t, "patch", "cronjob", "zoned", "--subresource=status", "-p", `{"status":{"lastScheduleTime":"`+first.Add(-time.Minute).Format(time.RFC3339)+`"}}`)
	k.run(t, "patch", "cronjob", "zoned", "-p", `{"spec":{"suspend":false}}`)
	c.apply(t, ns, fmt.Sprintf(`apiVersion: batch/v1
kind: CronJob
metadata: {name: fails}
spec: {schedule: "%d * * * *", timeZone: Etc/UTC, suspend: true, failedJobsHistoryLimit: 0, jobTemplate: {spec: {backoffLimit: 0, template: {spec: %s}}}}
`, first.Minute(), once(`exit, "1"`)))
	k.run(t, "patch", "cronjob", "fails", "--subresource=status", "-p", `{"status":{"lastScheduleTime":"`+first.Add(-time.Minute).Format(time.RFC3339)+`"}}`)
	k.run(t, "patch", "cronjob", "fails", "-p", `{"spec":{"suspend":false}}`)
	ran := func(name string, at time.Time, what string, cond func(*batchv1.Job) bool) {
		t.Helper()
		await(t, c, jobsGVR, ns, fmt.Sprintf("%s-%d", name, at.Unix()/60), what, cond)
	}
	active := func(j *batchv1.Job) bool { return j.Status.Active == 1 }
	eventually(t, "the failed run is forgotten", func() error {
		if out := k.run(t, "describe", "cronjob", "fails"); !strings.Contains(out, "SawCompletedJob") || !strings.Contains(out, "SuccessfulDelete") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	awaitGone(t, c, jobsGVR, ns, fmt.Sprintf("fails-%d", first.Unix()/60))
	ran("zoned", first, "it is complete", complete)
	ran("allow", first, "it is complete", complete)
	ran("forbid", first, "it runs", active)
	ran("replace", first, "it runs", active)
	for name := range command {
		k.run(t, "patch", "cronjob", strings.ToLower(name), "-p", fmt.Sprintf(`{"spec":{"schedule":"%d * * * *"}}`, second.Minute()))
	}
	ran("allow", second, "it is complete", complete)
	awaitGone(t, c, jobsGVR, ns, fmt.Sprintf("allow-%d", first.Unix()/60)) // one of the history is enough
	ran("replace", second, "it runs", active)
	awaitGone(t, c, jobsGVR, ns, fmt.Sprintf("replace-%d", first.Unix()/60))
	for name, reason := range map[string]string{"forbid": "JobAlreadyActive", "late": "MissSchedule"} {
		eventually(t, name+" says "+reason, func() error {
			if out := k.run(t, "describe", "cronjob", name); !strings.Contains(out, reason) {
				return fmt.Errorf("%s", out)
			}
			return nil
		})
	}
	jobs := k.run(t, "get", "jobs")
	contains(t, jobs, fmt.Sprintf("forbid-%d ", first.Unix()/60))
	lacks(t, jobs, "late-", fmt.Sprintf("forbid-%d ", second.Unix()/60))
}

func cronJob(t *testing.T, c *cluster, ns string) {
	k := kubectls(c)["own"].in(ns)
	c.apply(t, ns, fmt.Sprintf(`apiVersion: batch/v1
kind: CronJob
metadata: {name: tick}
spec: {schedule: "* * * * *", timeZone: Europe/Vienna, concurrencyPolicy: Forbid, jobTemplate: {metadata: {labels: {by: tick}}, spec: {template: {spec: %s}}}}
`, once("env")))
	contains(t, k.run(t, "get", "cronjobs"), "TIMEZONE", "LAST SCHEDULE", "* * * * *   Europe/Vienna   False")
	contains(t, k.run(t, "explain", "cronjob.spec.jobTemplate.spec.podFailurePolicy"), "handling failed pods")
	k.run(t, "create", "job", "by-hand", "--from=cronjob/tick")
	k.run(t, "wait", "--for=condition=complete", "job/by-hand", "--timeout=60s")
	cron := await(t, c, cronJobsGVR, ns, "tick", "it has run", func(cron *batchv1.CronJob) bool {
		at, ok := cron.Status.LastScheduleTime, cron.Status.LastSuccessfulTime
		return at != nil && ok != nil && len(cron.Status.Active) == 0 && !ok.Before(at)
	})
	name := fmt.Sprintf("tick-%d", cron.Status.LastScheduleTime.Unix()/60)
	j := await(t, c, jobsGVR, ns, name, "it is complete", complete)
	at, err := time.Parse(time.RFC3339, j.Annotations[batchv1.CronJobScheduledTimestampAnnotation])
	if err != nil || !at.Equal(cron.Status.LastScheduleTime.Time) || j.Labels["by"] != "tick" || !metav1.IsControlledBy(j, cron) {
		t.Errorf("%s, %v, %v", j.Annotations, j.Labels, err)
	}
	k.run(t, "patch", "cronjob", "tick", "-p", `{"spec":{"suspend":true}}`)
	contains(t, k.run(t, "describe", "cronjob", "tick"), "SuccessfulCreate", "SawCompletedJob")
	k.run(t, "delete", "cronjob", "tick")
	awaitGone(t, c, jobsGVR, ns, name)
}

// TestJobKill kills everything while a Job runs, again and again: no pod is lost,
// none is counted twice. A Job from Git that has removed itself stays so.
func TestJobKill(t *testing.T) {
	t.Parallel()
	c := ownCluster(t)
	ns := c.namespace(t, "jobkill")
	r := newRepo(t, c)
	r.add(ns, "shop")
	r.commit("first", map[string]string{
		"brief.yaml": gitJob("brief", "", "ttlSecondsAfterFinished: 0", "test/web:v1", "env"),
		"cfg.yaml":   "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cfg}\ndata: {a: one}\n",
	})
	r.deploy()
	awaitGone(t, c, jobsGVR, ns, "brief")
	c.apply(t, ns, job("many", "completions: 12, parallelism: 4", "sleep, 500ms"))
	for n := range int32(3) {
		await(t, c, jobsGVR, ns, "many", "some have succeeded", func(j *batchv1.Job) bool { return j.Status.Succeeded > n })
		c.kill()
		if err := c.start(); err != nil {
			t.Fatal(err)
		}
	}
	j := await(t, c, jobsGVR, ns, "many", "it is complete", complete)
	pods := c.awaitPods(t, ns, "job-name=many", "they are counted", func(pods []*corev1.Pod) bool {
		return !slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return len(p.Finalizers) > 0 })
	})
	count := map[corev1.PodPhase]int32{}
	for _, p := range pods {
		count[p.Status.Phase]++
	}
	c.kubectl(t, "-n", ns, "patch", "configmap", "cfg", "-p", `{"data":{"a":"tampered"}}`)
	await(t, c, configMapsGVR, ns, "cfg", "the patch is undone", func(m *corev1.ConfigMap) bool { return m.Data["a"] == "one" })
	if _, err := c.k.BatchV1().Jobs(ns).Get(t.Context(), "brief", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the Job is made again: %v", err)
	}
	if j.Status.Succeeded != 12 || count[corev1.PodSucceeded] != 12 || j.Status.Failed != count[corev1.PodFailed] {
		t.Errorf("pods %v, status %+v", count, j.Status)
	}
}
