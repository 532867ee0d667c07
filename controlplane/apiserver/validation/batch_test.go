package validation

import (
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/controlplane/apiserver/defaults"
)

const (
	once    = "restartPolicy: Never, containers: [{" + good + "}]"
	indexes = "completionMode: Indexed, completions: 5"
)

// job reads a Job as the API server has it when it validates: with defaults and a
// generated selector.
func job(t *testing.T, extra string) *batchv1.Job {
	t.Helper()
	if !strings.Contains(extra, "template:") {
		extra = strings.TrimSuffix("template: {spec: {"+once+"}}, "+extra, ", ")
	}
	j := read[batchv1.Job](t, "{metadata: {name: j, uid: u}, spec: {"+extra+"}}")
	defaults.Job(j)
	j.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{batchv1.ControllerUidLabel: "u"}}
	j.Spec.Template.Labels = JobLabels(j)
	return j
}

func TestJob(t *testing.T) {
	const rules = "podFailurePolicy: {rules: ["
	for extra, want := range map[string][]string{
		"":                            nil,
		"completions: -1":             {"spec.completions: Invalid value: -1: must be greater than or equal to 0"},
		"parallelism: -1":             {"spec.parallelism: Invalid value: -1"},
		"activeDeadlineSeconds: -1":   {"spec.activeDeadlineSeconds: Invalid value: -1"},
		"backoffLimit: -1":            {"spec.backoffLimit: Invalid value: -1"},
		"ttlSecondsAfterFinished: -1": {"spec.ttlSecondsAfterFinished: Invalid value: -1"},
		"completionMode: Wild":        {`spec.completionMode: Unsupported value: "Wild"`},
		"managedBy: me":               {"spec.managedBy: Invalid value"},
		"managedBy: example.com/me":   nil,
		"template: {spec: {containers: [{" + good + "}]}}":                           {`spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"`},
		"template: {spec: {restartPolicy: Sometimes, containers: [{" + good + "}]}}": {`spec.template.spec.restartPolicy: Unsupported value: "Sometimes"`},
		"completionMode: Indexed, parallelism: 2":                                    {"spec.completions: Required value: when completion mode is Indexed"},
		indexes + ", parallelism: 100001":                                            {"spec.parallelism: Invalid value: 100001: must be less than or equal to 100000 when completion mode is Indexed"},
		indexes + ", backoffLimitPerIndex: 1, maxFailedIndexes: 5":                   nil,
		indexes + ", backoffLimitPerIndex: 1, maxFailedIndexes: 6":                   {"spec.maxFailedIndexes: Invalid value: 6: must be less than or equal to completions"},
		indexes + ", maxFailedIndexes: 1":                                            {"spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified"},
		"backoffLimitPerIndex: 1":                                                    {"spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode"},
		"completionMode: Indexed, completions: 200000, backoffLimitPerIndex: 1":      {"spec.maxFailedIndexes: Required value: must be specified when completions is above 100000"},
		"podReplacementPolicy: Never":                                                {`spec.podReplacementPolicy: Unsupported value: "Never"`},

		rules + "{action: FailJob, onExitCodes: {operator: In, values: [1, 42]}}]}":                                        nil,
		rules + "{action: FailJob, onExitCodes: {operator: In, values: [1]}}]}, podReplacementPolicy: TerminatingOrFailed": {`spec.podReplacementPolicy: Unsupported value: "TerminatingOrFailed": supported values: "Failed"`},
		rules + "{action: FailIndex, onExitCodes: {operator: In, values: [1]}}]}":                                          {`spec.podFailurePolicy.rules[0].action: Invalid value: "FailIndex": requires the backoffLimitPerIndex to be set`},
		rules + "{action: Cry, onExitCodes: {operator: In, values: [1]}}]}":                                                {`spec.podFailurePolicy.rules[0].action: Unsupported value: "Cry"`},
		rules + "{onExitCodes: {operator: In, values: [1]}}]}":                                                             {`spec.podFailurePolicy.rules[0].action: Required value: valid values: ["Count" "FailIndex" "FailJob" "Ignore"]`},
		rules + "{action: Ignore}]}": {"spec.podFailurePolicy.rules[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required"},
		rules + "{action: Ignore, onExitCodes: {operator: In, values: [1]}, onPodConditions: [{type: DisruptionTarget}]}]}":                         {"spec.podFailurePolicy.rules[0]: Invalid value: specifying both OnExitCodes and OnPodConditions is not supported"},
		rules + "{action: Ignore, onExitCodes: {operator: In, values: [2, 0, 2], containerName: z}}]}":                                              {"spec.podFailurePolicy.rules[0].onExitCodes.containerName: Invalid value", "spec.podFailurePolicy.rules[0].onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In operator", "spec.podFailurePolicy.rules[0].onExitCodes.values[2]: Duplicate value: 2", "spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [2,0,2]: must be ordered"},
		rules + "{action: Ignore, onExitCodes: {operator: NotIn, values: []}}]}":                                                                    {"spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: []: at least one value is required"},
		rules + "{action: Ignore, onPodConditions: [{type: 'a b', status: Maybe}]}]}":                                                               {"spec.podFailurePolicy.rules[0].onPodConditions[0].type: Invalid value", `spec.podFailurePolicy.rules[0].onPodConditions[0].status: Unsupported value: "Maybe"`},
		"template: {spec: {restartPolicy: OnFailure, containers: [{" + good + "}]}}, " + rules + "{action: Ignore, onPodConditions: [{type: X}]}]}": {`spec.template.spec.restartPolicy: Invalid value: "OnFailure": only "Never" is supported when podFailurePolicy is specified`},

		"successPolicy: {rules: [{succeededCount: 1}]}":                                        {"spec.successPolicy: Invalid value"},
		indexes + ", successPolicy: {rules: []}":                                               {"spec.successPolicy.rules: Required value"},
		indexes + ", successPolicy: {rules: [{}]}":                                             {"spec.successPolicy.rules[0]: Required value: at least one of succeededCount or succeededIndexes must be specified"},
		indexes + ", successPolicy: {rules: [{succeededIndexes: '0,2-4', succeededCount: 4}]}": nil,
		indexes + ", successPolicy: {rules: [{succeededIndexes: '0,2-4', succeededCount: 5}]}": {"spec.successPolicy.rules[0].succeededCount: Invalid value: 5: must be less than or equal to 4 (the number of indexes in the specified succeededIndexes field)"},
		indexes + ", successPolicy: {rules: [{succeededIndexes: '2-5'}]}":                      {`spec.successPolicy.rules[0].succeededIndexes: Invalid value: "2-5": error parsing succeededIndexes: too large index: "5"`},
		indexes + ", successPolicy: {rules: [{succeededIndexes: '2,1'}]}":                      {`spec.successPolicy.rules[0].succeededIndexes: Invalid value: "2,1": error parsing succeededIndexes: non-increasing order, previous: 2, current: 1`},
		indexes + ", successPolicy: {rules: [{succeededIndexes: 'a'}]}":                        {`spec.successPolicy.rules[0].succeededIndexes: Invalid value: "a": error parsing succeededIndexes: cannot convert string to integer for index: "a"`},
		indexes + ", successPolicy: {rules: [{succeededCount: 6}]}":                            {"spec.successPolicy.rules[0].succeededCount: Invalid value: 6: must be less than or equal to 5"},
	} {
		t.Run(extra, func(t *testing.T) { match(t, Job(job(t, extra), nil), want...) })
	}
	long := job(t, indexes)
	long.Name = strings.Repeat("n", 62)
	long.Spec.Template.Labels = JobLabels(long)
	match(t, Job(long, nil), "metadata.name: Invalid value")
}

func TestJobSelector(t *testing.T) {
	other := job(t, "")
	other.Spec.Template.Labels[batchv1.ControllerUidLabel] = "another"
	match(t, Job(other, nil), "spec.template.metadata.labels[batch.kubernetes.io/controller-uid]: Invalid value", "spec.template.metadata.labels: Invalid value")
	foreign := job(t, "")
	foreign.Spec.Selector.MatchLabels = map[string]string{"app": "x"}
	match(t, Job(foreign, nil), "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"x\"}}: `selector` not auto-generated", "spec.template.metadata.labels: Invalid value")
	manual := job(t, "manualSelector: true")
	manual.Spec.Selector.MatchLabels = map[string]string{"app": "x"}
	manual.Spec.Template.Labels = map[string]string{"app": "x"}
	match(t, Job(manual, nil))
	manual.Spec.Selector = nil
	match(t, Job(manual, nil), "spec.selector: Required value", "spec.template.metadata.labels: Invalid value")
}

func TestJobUpdate(t *testing.T) {
	plain, withIndexes := job(t, ""), job(t, indexes+", parallelism: 5")
	match(t, Job(job(t, "parallelism: 3, completions: 1, backoffLimit: 1, activeDeadlineSeconds: 5, suspend: true, ttlSecondsAfterFinished: 3"), plain))
	match(t, Job(job(t, "completions: 2"), plain), "spec.completions: Invalid value: 2: field is immutable")
	match(t, Job(job(t, indexes), plain), "spec.completions: Invalid value: 5: can only be modified in tandem with spec.parallelism", "spec.completionMode: Invalid value")
	match(t, Job(job(t, "completionMode: Indexed, completions: 3, parallelism: 3"), withIndexes))
	match(t, Job(job(t, "completionMode: Indexed, completions: 3, parallelism: 2"), withIndexes), "spec.completions: Invalid value: 3: can only be modified in tandem with spec.parallelism")
	match(t, Job(job(t, "managedBy: example.com/me"), plain), "spec.managedBy: Invalid value")

	moved := job(t, "template: {spec: {"+once+", nodeSelector: {disk: ssd}, tolerations: [{operator: Exists}], affinity: {nodeAffinity: {}}}}")
	moved.Spec.Template.Spec.Containers[0].Resources = read[batchv1.Job](t, "spec: {template: {spec: {containers: [{resources: {limits: {cpu: 2}, requests: {cpu: 2}}}]}}}").Spec.Template.Spec.Containers[0].Resources
	match(t, Job(moved, plain), "spec.template: Invalid value")
	suspended := job(t, "suspend: true")
	match(t, Job(moved, suspended))
	suspended.Status.StartTime = &metav1.Time{}
	match(t, Job(moved, suspended), "spec.template: Invalid value")
	suspended.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobSuspended, Status: "True"}}
	match(t, Job(moved, suspended))
	match(t, Job(job(t, "template: {spec: {restartPolicy: Never, containers: [{name: a, image: other}]}}"), suspended), "spec.template: Invalid value")
}

func TestJobStatus(t *testing.T) {
	const condition = "{type: %, status: 'True'}"
	conditions := func(types ...string) string {
		var list []string
		for _, c := range types {
			list = append(list, strings.Replace(condition, "%", c, 1))
		}
		return "conditions: [" + strings.Join(list, ", ") + "]"
	}
	const done = "startTime: '2026-01-01T00:00:00Z', completionTime: '2026-01-01T00:01:00Z', "
	for _, c := range []struct {
		now, was string
		want     []string
	}{
		{"active: 2, ready: 1, succeeded: 1, uncountedTerminatedPods: {failed: [a], succeeded: [b]}", "", nil},
		{"active: 2, ready: 3", "", []string{"status.ready: Invalid value: 3: cannot set more ready pods than active"}},
		{"active: -1, terminating: -1", "", []string{"status.active: Invalid value: -1", "status.terminating: Invalid value: -1"}},
		{"failed: 1", "failed: 2", []string{"status.failed: Invalid value: 1: cannot decrease the failed counter"}},
		{"succeeded: 1", "succeeded: 2", []string{"status.succeeded: Invalid value: 1: cannot decrease the succeeded counter"}},
		{done + conditions("SuccessCriteriaMet", "Complete"), conditions("SuccessCriteriaMet"), nil},
		{done + conditions("Complete"), "", []string{"status.conditions: Invalid value: cannot set Complete=True condition without the SuccessCriteriaMet=true condition"}},
		{"startTime: '2026-01-01T00:00:00Z', " + conditions("SuccessCriteriaMet", "Complete"), "", []string{"status.completionTime: Required value"}},
		{done, "", []string{"status.completionTime: Invalid value"}},
		{"startTime: '2026-01-01T00:00:00Z', " + conditions("FailureTarget", "Failed"), "", nil},
		{"startTime: '2026-01-01T00:00:00Z', active: 1, terminating: 1, uncountedTerminatedPods: {failed: [a]}, " + conditions("FailureTarget", "Failed"), "",
			[]string{"status.active: Invalid value: 1: active>0 is invalid for finished job", "status.terminating: Invalid value: 1", "status.uncountedTerminatedPods: Invalid value"}},
		{conditions("Failed"), "", []string{"status.conditions: Invalid value: cannot set Failed=True condition without the FailureTarget=true condition", "status.startTime: Required value"}},
		{"", conditions("FailureTarget"), []string{"status.conditions: Invalid value: cannot disable the terminal FailureTarget=True condition"}},
		{"uncountedTerminatedPods: {failed: [a, a]}", "", []string{"status.uncountedTerminatedPods.failed[1]: Duplicate value"}},
		{"completedIndexes: '1'", "", []string{"status.completedIndexes: Invalid value: \"1\": cannot set non-empty completedIndexes", "status.completedIndexes: Invalid value: \"1\": error parsing"}},
		{"", "startTime: '2026-01-01T00:00:00Z'", []string{"status.startTime: Required value: startTime cannot be removed for unsuspended job"}},
	} {
		now, old := job(t, ""), job(t, "")
		now.Status, old.Status = *read[batchv1.JobStatus](t, "{"+c.now+"}"), *read[batchv1.JobStatus](t, "{"+c.was+"}")
		t.Run(c.now, func(t *testing.T) { match(t, JobStatus(now, old), c.want...) })
	}
}

func TestCronJob(t *testing.T) {
	cron := func(extra string) *batchv1.CronJob {
		if !strings.Contains(extra, "schedule:") {
			extra = strings.TrimSuffix("schedule: '*/5 * * * *', "+extra, ", ")
		}
		if !strings.Contains(extra, "jobTemplate:") {
			extra += ", jobTemplate: {spec: {template: {spec: {" + once + "}}}}"
		}
		c := read[batchv1.CronJob](t, "{metadata: {name: c}, spec: {"+extra+"}}")
		defaults.CronJob(c)
		return c
	}
	for extra, want := range map[string][]string{
		"":                              nil,
		"schedule: ''":                  {"spec.schedule: Required value"},
		"schedule: '@hourly'":           nil,
		"schedule: '61 * * * *'":        {`spec.schedule: Invalid value: "61 * * * *"`},
		"schedule: 'TZ=UTC 0 * * * *'":  {`spec.schedule: Invalid value: "TZ=UTC 0 * * * *": cannot use TZ or CRON_TZ in schedule, use timeZone field instead`},
		"timeZone: America/Sao_Paulo":   nil,
		"timeZone: ''":                  {`spec.timeZone: Invalid value: "": timeZone must be nil or non-empty string`},
		"timeZone: local":               {`spec.timeZone: Invalid value: "local": timeZone must be an explicit time zone`},
		"timeZone: Europe/../Atlantis":  {`spec.timeZone: Invalid value: "Europe/../Atlantis": unknown time zone Europe/../Atlantis`},
		"timeZone: Europe/Atlantis":     {`spec.timeZone: Invalid value: "Europe/Atlantis": unknown time zone Europe/Atlantis`},
		"concurrencyPolicy: Sometimes":  {`spec.concurrencyPolicy: Unsupported value: "Sometimes"`},
		"startingDeadlineSeconds: -1":   {"spec.startingDeadlineSeconds: Invalid value: -1"},
		"successfulJobsHistoryLimit: 0": nil,
		"failedJobsHistoryLimit: -1":    {"spec.failedJobsHistoryLimit: Invalid value: -1"},
		"jobTemplate: {spec: {manualSelector: true, selector: {matchLabels: {a: b}}, backoffLimit: -1, template: {spec: {" + once + "}}}}": {"spec.jobTemplate.spec.backoffLimit: Invalid value: -1",
			"spec.jobTemplate.spec.selector: Invalid value", "spec.jobTemplate.spec.manualSelector: Unsupported value: true"},
		"jobTemplate: {spec: {template: {spec: {containers: [{" + good + "}]}}}}": {`spec.jobTemplate.spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"`},
	} {
		t.Run(extra, func(t *testing.T) { match(t, CronJob(cron(extra), nil), want...) })
	}
	long := cron("")
	long.Name = strings.Repeat("n", 53)
	match(t, CronJob(long, nil), "metadata.name: Invalid value")
	match(t, CronJob(long, long))
}
