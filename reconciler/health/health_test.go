package health

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

func TestOf(t *testing.T) {
	for _, c := range []struct {
		name, object string
		want         Status
		message      string
	}{
		{"configmap", "{apiVersion: v1, kind: ConfigMap}", Current, ""},
		{"being deleted", "{apiVersion: v1, kind: ConfigMap, metadata: {deletionTimestamp: '2026-01-01T00:00:00Z'}}", Terminating, ""},
		{"deployment not looked at", "{apiVersion: apps/v1, kind: Deployment, spec: {replicas: 2}}", InProgress, "has not been looked at"},
		{"deployment of an older spec", "{apiVersion: apps/v1, kind: Deployment, metadata: {generation: 2}, status: {observedGeneration: 1}}", InProgress, "newest spec"},
		{"deployment updating", "{apiVersion: apps/v1, kind: Deployment, spec: {replicas: 2}, status: {observedGeneration: 1, replicas: 3, updatedReplicas: 1}}", InProgress, "1 of 2 pods updated"},
		{"deployment with old pods", "{apiVersion: apps/v1, kind: Deployment, spec: {replicas: 2}, status: {observedGeneration: 1, replicas: 3, updatedReplicas: 2, readyReplicas: 3, availableReplicas: 3}}", InProgress, "1 old pods still to end"},
		{"deployment available", "{apiVersion: apps/v1, kind: Deployment, spec: {replicas: 2}, status: {observedGeneration: 1, replicas: 2, updatedReplicas: 2, readyReplicas: 2, availableReplicas: 2}}", Current, "2 of 2"},
		{"deployment scaled to nothing", "{apiVersion: apps/v1, kind: Deployment, spec: {replicas: 0}, status: {observedGeneration: 1}}", Current, ""},
		{"deployment past its deadline", "{apiVersion: apps/v1, kind: Deployment, spec: {replicas: 2, progressDeadlineSeconds: 10}, status: {observedGeneration: 1, updatedReplicas: 1, conditions: [{type: Progressing, status: 'False', reason: ProgressDeadlineExceeded}]}}", Failed, "deadline of 10s"},
		{"stateful set not looked at", "{apiVersion: apps/v1, kind: StatefulSet, spec: {replicas: 2}}", InProgress, "has not been looked at"},
		{"stateful set starting", "{apiVersion: apps/v1, kind: StatefulSet, spec: {replicas: 3}, status: {observedGeneration: 1, replicas: 2, readyReplicas: 1, updatedReplicas: 2}}", InProgress, "2 of 3 pods created"},
		{"stateful set updating", "{apiVersion: apps/v1, kind: StatefulSet, spec: {replicas: 3}, status: {observedGeneration: 1, replicas: 3, readyReplicas: 3, availableReplicas: 3, updatedReplicas: 1}}", InProgress, "1 of 3 pods updated"},
		{"stateful set updated down to its partition", "{apiVersion: apps/v1, kind: StatefulSet, spec: {replicas: 3, updateStrategy: {type: RollingUpdate, rollingUpdate: {partition: 2}}}, status: {observedGeneration: 1, replicas: 3, readyReplicas: 3, availableReplicas: 3, updatedReplicas: 1, currentRevision: a, updateRevision: b}}", Current, "3 of 3"},
		{"stateful set updated by hand", "{apiVersion: apps/v1, kind: StatefulSet, spec: {replicas: 3, updateStrategy: {type: OnDelete}}, status: {observedGeneration: 1, replicas: 3, readyReplicas: 3, availableReplicas: 3}}", Current, ""},
		{"stateful set scaled down", "{apiVersion: apps/v1, kind: StatefulSet, spec: {replicas: 1}, status: {observedGeneration: 1, replicas: 2, readyReplicas: 2, availableReplicas: 2, updatedReplicas: 2}}", InProgress, "1 pods still to end"},
		{"daemon set on its way", "{apiVersion: apps/v1, kind: DaemonSet, status: {observedGeneration: 1, desiredNumberScheduled: 2, currentNumberScheduled: 1}}", InProgress, "1 of 2 nodes"},
		{"daemon set updating", "{apiVersion: apps/v1, kind: DaemonSet, status: {observedGeneration: 1, desiredNumberScheduled: 2, currentNumberScheduled: 2, updatedNumberScheduled: 1, numberReady: 2, numberAvailable: 2}}", InProgress, "1 of 2 pods updated"},
		{"daemon set everywhere", "{apiVersion: apps/v1, kind: DaemonSet, status: {observedGeneration: 1, desiredNumberScheduled: 2, currentNumberScheduled: 2, updatedNumberScheduled: 2, numberReady: 2, numberAvailable: 2}}", Current, "2 of 2"},
		{"daemon set on no node", "{apiVersion: apps/v1, kind: DaemonSet, status: {observedGeneration: 1}}", Current, ""},
		{"pod ready", "{apiVersion: v1, kind: Pod, status: {phase: Running, conditions: [{type: Ready, status: 'True'}]}}", Current, ""},
		{"pod that fits nowhere", "{apiVersion: v1, kind: Pod, status: {phase: Pending, conditions: [{type: PodScheduled, status: 'False', message: too big}]}}", InProgress, "too big"},
		{"pod failed", "{apiVersion: v1, kind: Pod, status: {phase: Failed, message: oops}}", Failed, "oops"},
		{"job failed", "{apiVersion: batch/v1, kind: Job, status: {conditions: [{type: Failed, status: 'True', message: oops}]}}", Failed, "oops"},
		{"claim that waits for its first pod", "{apiVersion: v1, kind: PersistentVolumeClaim, status: {phase: Pending}}", Current, "Pending"},
		{"claim", "{apiVersion: v1, kind: PersistentVolumeClaim, status: {phase: Bound}}", Current, ""},
		{"claim without its volume", "{apiVersion: v1, kind: PersistentVolumeClaim, status: {phase: Lost}}", Failed, "lost its volume"},
		{"job not started", "{apiVersion: batch/v1, kind: Job, spec: {completions: 3}}", InProgress, "0 of 3 pods succeeded"},
		{"job running", "{apiVersion: batch/v1, kind: Job, spec: {completions: 3}, status: {startTime: '2026-01-01T00:00:00Z', active: 1, succeeded: 2}}", InProgress, "2 of 3 pods succeeded"},
		{"job of a work queue", "{apiVersion: batch/v1, kind: Job, spec: {parallelism: 3}, status: {startTime: '2026-01-01T00:00:00Z', active: 2, succeeded: 1}}", InProgress, "2 pods still to end"},
		{"job complete", "{apiVersion: batch/v1, kind: Job, spec: {completions: 3}, status: {succeeded: 3, conditions: [{type: SuccessCriteriaMet, status: 'True'}, {type: Complete, status: 'True'}]}}", Current, "has completed"},
		{"job about to fail", "{apiVersion: batch/v1, kind: Job, status: {active: 1, conditions: [{type: FailureTarget, status: 'True', message: oops}]}}", InProgress, "oops"},
		{"job suspended", "{apiVersion: batch/v1, kind: Job, spec: {suspend: true}}", Current, "is suspended"},
		{"cron job", "{apiVersion: batch/v1, kind: CronJob, spec: {schedule: '* * * * *'}}", Current, ""},
		{"gateway not looked at", "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {generation: 1}, status: {conditions: [{type: Accepted, status: Unknown, reason: Pending}]}}", InProgress, "newest spec"},
		{"gateway of an older spec", "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {generation: 2}, status: {conditions: [{type: Accepted, status: 'True', observedGeneration: 1}, {type: Programmed, status: 'True', observedGeneration: 1}]}}", InProgress, "newest spec"},
		{"gateway not programmed", "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {generation: 1}, status: {conditions: [{type: Accepted, status: 'True', observedGeneration: 1}, {type: Programmed, status: 'False', observedGeneration: 1, reason: Invalid, message: oops}]}}", InProgress, "is not Programmed: Invalid: oops"},
		{"gateway", "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {generation: 1}, status: {conditions: [{type: Accepted, status: 'True', observedGeneration: 1}, {type: Programmed, status: 'True', observedGeneration: 1}]}}", Current, ""},
		{"route not looked at", "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {generation: 1}, spec: {parentRefs: [{name: front}]}}", InProgress, "parent front"},
		{"route of two parents, one not looked at", "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {generation: 1}, spec: {parentRefs: [{name: front}, {name: front, port: 80}]}, status: {parents: [{parentRef: {name: front}, conditions: [{type: Accepted, status: 'True', observedGeneration: 1}, {type: ResolvedRefs, status: 'True', observedGeneration: 1}]}]}}", InProgress, "parent front"},
		{"route that leads nowhere", "{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {generation: 1}, spec: {parentRefs: [{name: front}]}, status: {parents: [{parentRef: {name: front}, conditions: [{type: Accepted, status: 'True', observedGeneration: 1}, {type: ResolvedRefs, status: 'False', observedGeneration: 1, reason: BackendNotFound, message: gone}]}]}}", InProgress, "BackendNotFound: gone"},
		{"route", "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {generation: 1}, spec: {parentRefs: [{name: front}]}, status: {parents: [{parentRef: {name: front}, conditions: [{type: Accepted, status: 'True', observedGeneration: 1}, {type: ResolvedRefs, status: 'True', observedGeneration: 1}]}]}}", Current, ""},
		{"unknown kind, not Ready", "{apiVersion: x/v1, kind: Thing, status: {conditions: [{type: Ready, status: 'False', message: soon}]}}", InProgress, "soon"},
		{"unknown kind, stalled", "{apiVersion: x/v1, kind: Thing, status: {conditions: [{type: Stalled, status: 'True', message: oops}]}}", Failed, "oops"},
	} {
		j, err := yaml.YAMLToJSON([]byte(c.object))
		if err != nil {
			t.Fatal(err)
		}
		u := &unstructured.Unstructured{}
		if err := u.UnmarshalJSON(j); err != nil {
			t.Fatal(err)
		}
		if got := Of(u); got.Status != c.want || !strings.Contains(got.Message, c.message) {
			t.Errorf("%s: %+v, want %s %q", c.name, got, c.want, c.message)
		}
	}
}
