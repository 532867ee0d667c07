package job

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

var start = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func newJob(t *testing.T, spec, status string) *batchv1.Job {
	t.Helper()
	job := &batchv1.Job{}
	const text = "metadata: {name: j, namespace: d, uid: job}\nspec: {%s}\nstatus: {%s}"
	if err := yaml.UnmarshalStrict(fmt.Appendf(nil, text, spec, status), job); err != nil {
		t.Fatal(err)
	}
	if job.Spec.Parallelism == nil {
		job.Spec.Parallelism = new(int32)
		*job.Spec.Parallelism = 2
	}
	if job.Spec.BackoffLimit == nil {
		job.Spec.BackoffLimit = new(int32)
		*job.Spec.BackoffLimit = 6
	}
	return job
}

// pod reads a pod like "a1 run idx=3 fails=1": its name, and what it is.
func pod(t *testing.T, text string) *corev1.Pod {
	t.Helper()
	words := strings.Fields(text)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: words[0], UID: types.UID(words[0]), Namespace: "d", Finalizers: []string{finalizer},
		CreationTimestamp: metav1.NewTime(start.Add(time.Duration(words[0][0]-'a') * time.Second)), Annotations: map[string]string{},
	}, Spec: corev1.PodSpec{NodeName: "n"}}
	ended := func(phase corev1.PodPhase, code int32) {
		p.Status.Phase = phase
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: code, FinishedAt: metav1.NewTime(start),
		}}}}
	}
	for _, w := range words[1:] {
		word, value, _ := strings.Cut(w, "=")
		var n int32
		fmt.Sscan(value, &n)
		switch word {
		case "new":
			p.Status.Phase, p.Spec.NodeName = corev1.PodPending, ""
		case "run":
			p.Status.Phase = corev1.PodRunning
		case "ready":
			p.Status.Phase = corev1.PodRunning
			p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue})
		case "ok":
			ended(corev1.PodSucceeded, 0)
		case "bad":
			ended(corev1.PodFailed, max(n, 1))
		case "stop":
			p.DeletionTimestamp = &metav1.Time{Time: start}
		case "free":
			p.Finalizers = nil
		case "disrupted":
			p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue})
		case "restarts":
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: n}}
		case "idx":
			p.Annotations[batchv1.JobCompletionIndexAnnotation] = value
		case "fails":
			p.Annotations[batchv1.JobIndexFailureCountAnnotation] = value
		default:
			t.Fatalf("unknown word %q", w)
		}
	}
	return p
}

// summary is a decision as text: "create 0 1; remove a; stop b; release c; wait 10s".
func summary(d Decision) string {
	var parts []string
	add := func(verb string, names []string) {
		if len(names) > 0 {
			parts = append(parts, verb+" "+strings.Join(names, " "))
		}
	}
	names := func(pods []*corev1.Pod) (out []string) {
		for _, p := range pods {
			out = append(out, p.Name)
		}
		slices.Sort(out)
		return out
	}
	var create []string
	for _, w := range d.Create {
		name := fmt.Sprint(w.Index)
		if w.history != (history{}) {
			name += fmt.Sprint(w.history)
		}
		create = append(create, name)
	}
	add("create", create)
	add("remove", names(d.Remove))
	add("stop", names(d.Stop))
	add("release", names(d.Release))
	if d.Recheck > 0 {
		parts = append(parts, "wait "+d.Recheck.String())
	}
	return strings.Join(parts, "; ")
}

// state is a status as text.
func state(s *batchv1.JobStatus) string {
	out := fmt.Sprintf("active %d succeeded %d failed %d", s.Active, s.Succeeded, s.Failed)
	if u := s.UncountedTerminatedPods; u != nil && len(u.Succeeded)+len(u.Failed) > 0 {
		out += fmt.Sprintf(" uncounted %v%v", u.Succeeded, u.Failed)
	}
	if s.Terminating != nil && *s.Terminating > 0 {
		out += fmt.Sprintf(" terminating %d", *s.Terminating)
	}
	if s.CompletedIndexes != "" {
		out += " done " + s.CompletedIndexes
	}
	if s.FailedIndexes != nil && *s.FailedIndexes != "" {
		out += " broken " + *s.FailedIndexes
	}
	for _, c := range s.Conditions {
		if c.Status == corev1.ConditionTrue {
			out += fmt.Sprintf(" %s(%s)", c.Type, c.Reason)
		}
	}
	return out
}

func TestDecide(t *testing.T) {
	const (
		idx      = "completionMode: Indexed, "
		started  = "startTime: '2026-01-01T12:00:00Z', "
		target   = started + "conditions: [{type: FailureTarget, status: 'True', reason: BackoffLimitExceeded}], "
		criteria = started + "conditions: [{type: SuccessCriteriaMet, status: 'True', reason: CompletionsReached}], "
		policy   = "podReplacementPolicy: Failed, podFailurePolicy: {rules: [{action: Ignore, onPodConditions: [{type: DisruptionTarget, status: 'True'}]}, " +
			"{action: FailJob, onExitCodes: {operator: In, values: [42]}}, {action: Count, onExitCodes: {operator: NotIn, values: [1]}}]}, "
	)
	for _, c := range []struct {
		name, spec, status string
		pods               []string
		behind             bool
		after              time.Duration
		want, then         string
	}{
		{name: "starts", spec: "completions: 3", want: "create -1 -1", then: "active 0 succeeded 0 failed 0"},
		{name: "no more than are to succeed", spec: "completions: 3", status: "succeeded: 2, " + started, want: "create -1", then: "active 0 succeeded 2 failed 0"},
		{name: "a success is recorded first", spec: "completions: 3", status: started, pods: []string{"a ok", "b run"}, want: "create -1; release a", then: "active 1 succeeded 0 failed 0 uncounted [a][]"},
		{name: "and counted when its finalizer is gone", spec: "completions: 3", status: started + "uncountedTerminatedPods: {succeeded: [a]}", pods: []string{"a ok free", "b run"}, want: "create -1", then: "active 1 succeeded 1 failed 0"},
		{name: "or the pod is", spec: "completions: 3", status: started + "uncountedTerminatedPods: {succeeded: [a]}", pods: []string{"b run", "c run"}, then: "active 2 succeeded 1 failed 0"},
		{name: "a finalizer that is still there is removed again", spec: "completions: 3", status: started + "uncountedTerminatedPods: {failed: [a]}", pods: []string{"a bad", "b run", "c run"}, want: "release a", then: "active 2 succeeded 0 failed 0 uncounted [][a]"},
		{name: "what was counted does not count again", spec: "completions: 3", status: started + "succeeded: 1", pods: []string{"a ok free", "b run", "c run"}, then: "active 2 succeeded 1 failed 0"},
		{name: "too many", spec: "completions: 3", status: started + "succeeded: 2", pods: []string{"a run", "b ready", "c new"}, want: "remove a c", then: "active 3 succeeded 2 failed 0"},
		{name: "one that nobody can count", spec: "completions: 3", status: started, pods: []string{"a run free", "b run"}, want: "remove a", then: "active 2 succeeded 0 failed 0"},
		{name: "work queue", spec: "", status: started, want: "create -1 -1", then: "active 0 succeeded 0 failed 0"},
		{name: "work queue with a success", spec: "", status: started, pods: []string{"a ok", "b run"}, want: "release a", then: "active 1 succeeded 0 failed 0 uncounted [a][]"},
		{name: "work queue at its end", spec: "", status: started + "succeeded: 2", then: "active 0 succeeded 2 failed 0 SuccessCriteriaMet(CompletionsReached) Complete(CompletionsReached)"},
		{name: "nothing to do", spec: "completions: 0", then: "active 0 succeeded 0 failed 0 SuccessCriteriaMet(CompletionsReached) Complete(CompletionsReached)"},
		{name: "complete", spec: "completions: 2", status: started + "succeeded: 2", then: "active 0 succeeded 2 failed 0 SuccessCriteriaMet(CompletionsReached) Complete(CompletionsReached)"},
		{name: "not before all are counted", spec: "completions: 2", status: started + "succeeded: 1", pods: []string{"a ok"}, want: "release a", then: "active 0 succeeded 1 failed 0 uncounted [a][] SuccessCriteriaMet(CompletionsReached)"},
		{name: "nor before all have stopped", spec: "completions: 2", status: criteria + "succeeded: 2", pods: []string{"a run stop free"}, then: "active 0 succeeded 2 failed 0 terminating 1 SuccessCriteriaMet(CompletionsReached)"},

		{name: "back-off", spec: "completions: 2", status: started + "failed: 1", pods: []string{"a bad free"}, after: 4 * time.Second, want: "wait 6s", then: "active 0 succeeded 0 failed 1"},
		{name: "back-off is over", spec: "completions: 2", status: started + "failed: 1", pods: []string{"a bad free"}, after: 10 * time.Second, want: "create -1 -1", then: "active 0 succeeded 0 failed 1"},
		{name: "back-off doubles", spec: "completions: 2", status: started + "failed: 3", pods: []string{"a bad free", "b bad free", "c bad free"}, after: 10 * time.Second, want: "wait 30s", then: "active 0 succeeded 0 failed 3"},
		{name: "limit", spec: "completions: 3, backoffLimit: 1", status: started + "failed: 1", pods: []string{"a bad", "b run"}, want: "stop b; release a", then: "active 1 succeeded 0 failed 1 uncounted [][a] FailureTarget(BackoffLimitExceeded)"},
		{name: "restarts count too", spec: "completions: 3, backoffLimit: 2, template: {spec: {restartPolicy: OnFailure}}", status: started, pods: []string{"a run restarts=1", "b run restarts=1"}, want: "stop a b", then: "active 2 succeeded 0 failed 0 FailureTarget(BackoffLimitExceeded)"},
		{name: "stopped pods have failed", spec: "completions: 3", status: target, pods: []string{"a run stop"}, want: "release a", then: "active 0 succeeded 0 failed 0 uncounted [][a] terminating 1 FailureTarget(BackoffLimitExceeded)"},
		{name: "failed when the last has stopped", spec: "completions: 3", status: target + "uncountedTerminatedPods: {failed: [a]}", then: "active 0 succeeded 0 failed 1 FailureTarget(BackoffLimitExceeded) Failed(BackoffLimitExceeded)"},
		{name: "finished: finalizers go", spec: "completions: 3", status: "conditions: [{type: Failed, status: 'True'}]", pods: []string{"a run", "b ok free"}, want: "release a", then: "active 0 succeeded 0 failed 0 Failed()"},
		{name: "deadline to come", spec: "completions: 1, activeDeadlineSeconds: 60", status: started, pods: []string{"a run"}, after: 20 * time.Second, want: "wait 40s", then: "active 1 succeeded 0 failed 0"},
		{name: "deadline", spec: "completions: 1, activeDeadlineSeconds: 60", status: started, pods: []string{"a run"}, after: time.Minute, want: "stop a", then: "active 1 succeeded 0 failed 0 FailureTarget(DeadlineExceeded)"},
		{name: "deadline before the pod is seen", spec: "completions: 1, activeDeadlineSeconds: 60", status: started, behind: true, after: time.Minute, want: "", then: "active 0 succeeded 0 failed 0 FailureTarget(DeadlineExceeded)"},
		{name: "no more pods before those created are seen", spec: "completions: 3", status: started, behind: true, pods: []string{"a ok", "b run"}, want: "release a", then: "active 1 succeeded 0 failed 0 uncounted [a][]"},
		{name: "work queue with a pod that is not seen", status: started + "succeeded: 1", behind: true, want: "", then: "active 0 succeeded 1 failed 0"},

		{name: "suspended", spec: "completions: 2, suspend: true", status: started, pods: []string{"a run", "b ok"}, want: "remove a; release b", then: "active 1 succeeded 0 failed 0 uncounted [b][] Suspended(JobSuspended)"},
		{name: "suspended past its deadline", spec: "completions: 2, suspend: true, activeDeadlineSeconds: 1", status: started, after: time.Hour, then: "active 0 succeeded 0 failed 0 Suspended(JobSuspended)"},
		{name: "resumed, with a deadline of its own", spec: "completions: 1, activeDeadlineSeconds: 60", status: started + "conditions: [{type: Suspended, status: 'True'}]", after: time.Hour, want: "create -1; wait 1m0s", then: "active 0 succeeded 0 failed 0"},

		{name: "a stopping pod is replaced", spec: "completions: 2", status: started, pods: []string{"a run stop", "b run"}, after: time.Minute, want: "create -1; release a", then: "active 1 succeeded 0 failed 0 uncounted [][a] terminating 1"},
		{name: "or not before it has stopped", spec: "completions: 2, podReplacementPolicy: Failed", status: started, pods: []string{"a run stop", "b run"}, after: time.Minute, then: "active 1 succeeded 0 failed 0 terminating 1"},
		{name: "one without a node never runs", spec: "completions: 2, podReplacementPolicy: Failed", status: started, pods: []string{"a new stop", "b run"}, after: time.Minute, want: "create -1; release a", then: "active 1 succeeded 0 failed 0 uncounted [][a]"},

		{name: "policy: ignored", spec: policy + "completions: 2, backoffLimit: 0", status: started, pods: []string{"a bad=42 disrupted", "b run"}, after: time.Minute, want: "create -1; release a", then: "active 1 succeeded 0 failed 0"},
		{name: "policy: fails the Job", spec: policy + "completions: 2", status: started, pods: []string{"a bad=42", "b run"}, want: "stop b; release a", then: "active 1 succeeded 0 failed 0 uncounted [][a] FailureTarget(PodFailurePolicy)"},
		{name: "policy: counts", spec: policy + "completions: 2", status: started, pods: []string{"a bad=7", "b run"}, after: time.Minute, want: "create -1; release a", then: "active 1 succeeded 0 failed 0 uncounted [][a]"},

		{name: "indexes", spec: idx + "completions: 4", status: started + "completedIndexes: '1'", pods: []string{"a run idx=0"}, want: "create 2", then: "active 1 succeeded 1 failed 0 done 1"},
		{name: "an index that has succeeded", spec: idx + "completions: 4", status: started + "completedIndexes: '0,2'", pods: []string{"a ok idx=1", "b run idx=3"}, want: "release a", then: "active 1 succeeded 3 failed 0 done 0-2"},
		{name: "an index run twice, one out of range, one done", spec: idx + "parallelism: 5, completions: 3", status: started + "completedIndexes: '1'", pods: []string{"a run idx=0", "b ready idx=0", "c run idx=3", "d run idx=1"}, want: "remove a c d", then: "active 4 succeeded 1 failed 0 done 1"},
		{name: "fewer completions", spec: idx + "completions: 2", status: started + "completedIndexes: '0-4', succeeded: 5", then: "active 0 succeeded 2 failed 0 done 0,1 SuccessCriteriaMet(CompletionsReached) Complete(CompletionsReached)"},
		{name: "limit per index: kept until replaced", spec: idx + "completions: 2, backoffLimitPerIndex: 1", status: started, pods: []string{"a bad idx=0", "b run idx=1"}, after: 3 * time.Second, want: "wait 7s", then: "active 1 succeeded 0 failed 0"},
		{name: "limit per index: the next one knows", spec: idx + "completions: 2, backoffLimitPerIndex: 1", status: started, pods: []string{"a bad idx=0", "b run idx=1"}, after: 10 * time.Second, want: "create 0{1 0}", then: "active 1 succeeded 0 failed 0"},
		{name: "limit per index: replaced", spec: idx + "completions: 2, backoffLimitPerIndex: 1", status: started, pods: []string{"a bad idx=0", "b run idx=0 fails=1", "c run idx=1"}, want: "release a", then: "active 2 succeeded 0 failed 0 uncounted [][a]"},
		{name: "limit per index: given up, others go on", spec: idx + "completions: 3, backoffLimitPerIndex: 1", status: started, pods: []string{"a bad idx=0 fails=1", "b run idx=1"}, want: "create 2; release a", then: "active 1 succeeded 0 failed 0 uncounted [][a] broken 0"},
		{name: "limit per index: over", spec: idx + "completions: 2, backoffLimitPerIndex: 0", status: started + "completedIndexes: '1', failedIndexes: '0', failed: 1", then: "active 0 succeeded 1 failed 1 done 1 broken 0 FailureTarget(FailedIndexes) Failed(FailedIndexes)"},
		{name: "too many failed indexes", spec: idx + "completions: 4, backoffLimitPerIndex: 0, maxFailedIndexes: 1", status: started + "failedIndexes: '0'", pods: []string{"a bad idx=1", "b run idx=2"}, want: "stop b; release a", then: "active 1 succeeded 0 failed 0 uncounted [][a] broken 0,1 FailureTarget(MaxFailedIndexesExceeded)"},
		{name: "policy: fails the index", spec: idx + "completions: 2, backoffLimitPerIndex: 5, podReplacementPolicy: Failed, podFailurePolicy: {rules: [{action: FailIndex, onExitCodes: {operator: In, values: [42]}}]}", status: started, pods: []string{"a bad=42 idx=0", "b run idx=1"}, want: "release a", then: "active 1 succeeded 0 failed 0 uncounted [][a] broken 0"},
		{name: "success policy", spec: idx + "completions: 4, successPolicy: {rules: [{succeededIndexes: '3'}, {succeededIndexes: '0-2', succeededCount: 2}]}", status: started + "completedIndexes: '0'", pods: []string{"a ok idx=2", "b run idx=1"}, want: "stop b; release a", then: "active 1 succeeded 2 failed 0 done 0,2 SuccessCriteriaMet(SuccessPolicy)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := Snapshot{Job: newJob(t, c.spec, c.status), Behind: c.behind}
			for _, text := range c.pods {
				s.Pods = append(s.Pods, pod(t, text))
			}
			d := Decide(s, start.Add(c.after))
			if got := summary(d); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if got := state(&d.Status); got != c.then {
				t.Errorf("got  %q\nwant %q", got, c.then)
			}
		})
	}
}

func TestMessages(t *testing.T) {
	for _, c := range []struct{ spec, status, pod, want string }{
		{"completions: 1, podFailurePolicy: {rules: [{action: FailJob, onExitCodes: {operator: In, values: [42]}}]}", "", "a bad=42",
			"Container c for pod d/a failed with exit code 42 matching FailJob rule at index 0"},
		{"completions: 1, podFailurePolicy: {rules: [{action: FailJob, onPodConditions: [{type: DisruptionTarget}]}]}", "", "a bad disrupted",
			"Pod d/a has condition DisruptionTarget matching FailJob rule at index 0"},
		{"completions: 1, backoffLimit: 0", "", "a bad", "Job has reached the specified backoff limit"},
		{"completionMode: Indexed, completions: 2, successPolicy: {rules: [{succeededIndexes: '1'}, {succeededCount: 1}]}", "", "a ok idx=0", "Matched rules at index 1"},
	} {
		d := Decide(Snapshot{Job: newJob(t, c.spec, c.status), Pods: []*corev1.Pod{pod(t, c.pod)}}, start)
		if len(d.Status.Conditions) == 0 || d.Status.Conditions[0].Message != c.want {
			t.Errorf("%s: %+v, want %q", c.spec, d.Status.Conditions, c.want)
		}
	}
}

func TestEvents(t *testing.T) {
	for _, c := range []struct{ spec, status, want string }{
		{"completions: 1", "succeeded: 1", "Normal Completed"},
		{"completions: 1", "succeeded: 2", "Warning TooManySucceededPods, Normal Completed"},
		{"completions: 1, backoffLimit: 0", "failed: 1", "Warning BackoffLimitExceeded"},
		{"completions: 1, suspend: true", "", "Normal Suspended"},
		{"completions: 1, suspend: true", "conditions: [{type: Suspended, status: 'True'}]", ""},
		{"completions: 1", "conditions: [{type: Suspended, status: 'True'}]", "Normal Resumed"},
	} {
		var got []string
		for _, e := range Decide(Snapshot{Job: newJob(t, c.spec, c.status)}, start).Events {
			got = append(got, e.Type+" "+e.Reason)
		}
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%s, %s: %q, want %q", c.spec, c.status, got, c.want)
		}
	}
}

// TestRecordsInPortions: a status names no more pods than it has room for.
func TestRecordsInPortions(t *testing.T) {
	s := Snapshot{Job: newJob(t, "completions: 2000, parallelism: 2000", "")}
	for i := range 700 {
		p := pod(t, "a ok")
		p.Name = fmt.Sprintf("a%d", i)
		p.UID = types.UID(p.Name)
		s.Pods = append(s.Pods, p)
	}
	d := Decide(s, start)
	if n := len(d.Status.UncountedTerminatedPods.Succeeded); n != maxUncounted || len(d.Release) != n || len(d.Create) != 1300 {
		t.Errorf("%d recorded, %d released, %d created", n, len(d.Release), len(d.Create))
	}
}

func TestNewPod(t *testing.T) {
	job := newJob(t, "completionMode: Indexed, completions: 20, backoffLimitPerIndex: 3, template: {metadata: {labels: {app: x}, annotations: {a: b}}, "+
		"spec: {initContainers: [{name: i}], containers: [{name: c, env: [{name: JOB_COMPLETION_INDEX, value: mine}]}]}}", "")
	p := newPod(job, Want{Index: 12, history: history{2, 1}})
	if p.GenerateName != "j-12-" || p.Spec.Hostname != "j-12" || p.Labels[batchv1.JobCompletionIndexAnnotation] != "12" || p.Labels["app"] != "x" || !tracked(p) {
		t.Errorf("%+v", p.ObjectMeta)
	}
	if a := p.Annotations; a["a"] != "b" || a[batchv1.JobCompletionIndexAnnotation] != "12" || a[batchv1.JobIndexFailureCountAnnotation] != "2" || a[batchv1.JobIndexIgnoredFailureCountAnnotation] != "1" {
		t.Errorf("%v", a)
	}
	if e := p.Spec.InitContainers[0].Env; len(e) != 1 || e[0].ValueFrom.FieldRef.FieldPath != "metadata.labels['batch.kubernetes.io/job-completion-index']" {
		t.Errorf("%+v", e)
	}
	if e := p.Spec.Containers[0].Env; len(e) != 1 || e[0].Value != "mine" {
		t.Errorf("%+v", e)
	}
	job.Name = strings.Repeat("n", 60)
	if p := newPod(job, Want{Index: 7}); len(p.GenerateName) != longestPrefix || !strings.HasSuffix(p.GenerateName, "-7-") {
		t.Errorf("%q", p.GenerateName)
	}
	if len(job.Spec.Template.Annotations) != 1 || len(job.Spec.Template.Spec.InitContainers[0].Env) != 0 {
		t.Error("the template was changed")
	}
}

func TestIndexText(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "1,3-5,7": "1,3-5,7", "0-1": "0,1", "2-9": "2-7", "8,9": "", "1,2,3": "1-3", "a,2": "2",
	} {
		if got := parseIndexes(in, 8).String(); got != want {
			t.Errorf("%q is read as %q, want %q", in, got, want)
		}
	}
}

func TestBackOff(t *testing.T) {
	for n, want := range []time.Duration{0, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second, 320 * time.Second, 6 * time.Minute, 6 * time.Minute} {
		if got := backOff(n); got != want {
			t.Errorf("after %d failures %s, want %s", n, got, want)
		}
	}
}
