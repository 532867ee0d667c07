package defaults

import (
	"strings"
	"testing"
)

func TestBatch(t *testing.T) {
	const template = `template: {metadata: {labels: {app: x}}, spec: {restartPolicy: Never, serviceAccountName: robot, containers: [{name: a, image: "a:v1", resources: {limits: {cpu: "1"}}}]}}`
	defaulted := "template: {metadata: {labels: {app: x}}, spec: " + strings.Replace(templateDefaults, "restartPolicy: Always", "restartPolicy: Never", 1) + "}"
	const rest = "completionMode: NonIndexed, suspend: false, manualSelector: false, "
	for in, want := range map[string]string{
		"":               "completions: 1, parallelism: 1, backoffLimit: 6, podReplacementPolicy: TerminatingOrFailed, " + rest,
		"parallelism: 2": "parallelism: 2, backoffLimit: 6, podReplacementPolicy: TerminatingOrFailed, " + rest,
		"completions: 4": "completions: 4, parallelism: 1, backoffLimit: 6, podReplacementPolicy: TerminatingOrFailed, " + rest,
		"completions: 4, completionMode: Indexed, backoffLimitPerIndex: 1": "completions: 4, parallelism: 1, backoffLimit: 2147483647, backoffLimitPerIndex: 1, " +
			"completionMode: Indexed, podReplacementPolicy: TerminatingOrFailed, suspend: false, manualSelector: false, ",
		"podFailurePolicy: {rules: [{action: Ignore, onPodConditions: [{type: DisruptionTarget}]}]}": "completions: 1, parallelism: 1, backoffLimit: 6, podReplacementPolicy: Failed, " +
			"podFailurePolicy: {rules: [{action: Ignore, onPodConditions: [{type: DisruptionTarget, status: 'True'}]}]}, " + rest,
	} {
		if in != "" {
			in += ", "
		}
		expect(t, Job, "spec: {"+in+template+"}", "{metadata: {labels: {app: x}}, spec: {"+want+defaulted+"}}")
	}
	expect(t, CronJob, "spec: {schedule: '@daily', jobTemplate: {spec: {"+template+"}}}",
		"spec: {schedule: '@daily', concurrencyPolicy: Allow, suspend: false, successfulJobsHistoryLimit: 3, failedJobsHistoryLimit: 1, jobTemplate: {spec: {"+defaulted+"}}}")
}
