package printers

import (
	"testing"

	batchv1 "k8s.io/api/batch/v1"
)

func TestBatch(t *testing.T) {
	const spec = "selector: {matchLabels: {app: x}}, template: {spec: {containers: [{name: a, image: i}]}}"
	for _, c := range []struct{ got, want string }{
		{row[batchv1.Job](t, Jobs, "spec: {completions: 3, "+spec+"}\nstatus: {succeeded: 1, startTime: '2026-01-02T03:02:05Z'}"), "x|Running|1/3|2m|4m|a|i|app=x"},
		{row[batchv1.Job](t, Jobs, "spec: {parallelism: 2}\nstatus: {conditions: [{type: Suspended, status: 'True'}]}"), "x|Suspended|0/1 of 2||4m|||<none>"},
		{row[batchv1.Job](t, Jobs, "spec: {parallelism: 1}\nstatus: {succeeded: 1, startTime: '2026-01-02T03:01:10Z', completionTime: '2026-01-02T03:01:20Z', conditions: [{type: SuccessCriteriaMet, status: 'True'}, {type: Complete, status: 'True'}]}"), "x|Complete|1/1|10s|4m|||<none>"},
		{row[batchv1.Job](t, Jobs, "spec: {completions: 1}\nstatus: {conditions: [{type: FailureTarget, status: 'True'}]}"), "x|FailureTarget|0/1||4m|||<none>"},
		{row[batchv1.Job](t, Jobs, "spec: {completions: 1}\nstatus: {conditions: [{type: FailureTarget, status: 'True'}, {type: Failed, status: 'True'}]}"), "x|Failed|0/1||4m|||<none>"},
		{row[batchv1.CronJob](t, CronJobs, "spec: {schedule: '*/5 * * * *', suspend: false, jobTemplate: {spec: {template: {spec: {containers: [{name: a, image: i}]}}}}}"), "x|*/5 * * * *|<none>|False|0|<none>|4m|a|i|<none>"},
		{row[batchv1.CronJob](t, CronJobs, "spec: {schedule: '@daily', timeZone: Etc/UTC, suspend: true}\nstatus: {active: [{name: j}], lastScheduleTime: '2026-01-02T03:03:05Z'}"), "x|@daily|Etc/UTC|True|1|60s|4m|||<none>"},
	} {
		if c.got != c.want {
			t.Errorf("got  %s\nwant %s", c.got, c.want)
		}
	}
}
