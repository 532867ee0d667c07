package printers

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const created = `{name: x, creationTimestamp: "2026-01-02T03:00:05Z"}`

// row prints an object given as YAML.
func row[T any, P interface {
	*T
	runtime.Object
}](t *testing.T, table Table, text string,
) string {
	t.Helper()
	obj := P(new(T))
	if err := yaml.UnmarshalStrict([]byte("metadata: "+created+"\n"+text), obj); err != nil {
		t.Fatal(err)
	}
	convertor := NewConvertor(schema.GroupResource{Resource: "things"}, table, func() time.Time { return now })
	out, err := convertor.ConvertToTable(t.Context(), obj, nil)
	if err != nil {
		t.Fatal(err)
	}
	var cells []string
	for _, c := range out.Rows[0].Cells {
		cells = append(cells, fmt.Sprint(c))
	}
	return strings.Join(cells, "|")
}

func TestPodStatus(t *testing.T) {
	const two = "spec: {containers: [{name: a}, {name: b}], initContainers: [{name: i}]}\n"
	tests := map[string]struct{ text, want string }{
		"pending":     {two + "status: {phase: Pending}", "0/2|Pending|0"},
		"running":     {two + "status: {phase: Running, containerStatuses: [{ready: true, state: {running: {}}}, {ready: true, restartCount: 2, state: {running: {}}, lastState: {terminated: {finishedAt: \"2026-01-02T03:03:05Z\"}}}]}", "2/2|Running|2 (60s ago)"},
		"crash loop":  {two + "status: {phase: Running, containerStatuses: [{ready: true, state: {running: {}}}, {restartCount: 1, state: {waiting: {reason: CrashLoopBackOff}}}]}", "1/2|CrashLoopBackOff|1"},
		"image":       {two + "status: {phase: Pending, containerStatuses: [{state: {waiting: {reason: ErrImagePull}}}]}", "0/2|ErrImagePull|0"},
		"init":        {two + "status: {phase: Pending, initContainerStatuses: [{state: {running: {}}}], containerStatuses: [{state: {waiting: {reason: PodInitializing}}}]}", "0/2|Init:0/1|0"},
		"init failed": {two + "status: {phase: Pending, initContainerStatuses: [{restartCount: 3, state: {terminated: {exitCode: 2}}}]}", "0/2|Init:ExitCode:2|3"},
		"init waits":  {two + "status: {phase: Pending, initContainerStatuses: [{state: {waiting: {reason: CrashLoopBackOff}}}]}", "0/2|Init:CrashLoopBackOff|0"},
		"completed":   {two + "status: {phase: Succeeded, containerStatuses: [{state: {terminated: {reason: Completed}}}, {state: {terminated: {reason: Completed}}}]}", "0/2|Completed|0"},
		"one ended":   {two + "status: {phase: Running, containerStatuses: [{state: {terminated: {reason: Completed}}}, {ready: true, state: {running: {}}}]}", "1/2|NotReady|0"},
		"error":       {two + "status: {phase: Failed, containerStatuses: [{state: {terminated: {exitCode: 1, reason: Error}}}]}", "0/2|Error|0"},
		"signal":      {two + "status: {phase: Failed, containerStatuses: [{state: {terminated: {signal: 9}}}]}", "0/2|Signal:9|0"},
		"evicted":     {two + "status: {phase: Failed, reason: Evicted}", "0/2|Evicted|0"},
		"gated":       {two + "status: {phase: Pending, conditions: [{type: PodScheduled, status: \"False\", reason: SchedulingGated}]}", "0/2|SchedulingGated|0"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := row[corev1.Pod](t, Pods, tt.text)
			if !strings.HasPrefix(got, "x|"+tt.want+"|4m|") {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
	var pod corev1.Pod
	if err := yaml.Unmarshal([]byte(`{metadata: {name: x, deletionTimestamp: "2026-01-02T03:00:05Z"}, status: {phase: Running}}`), &pod); err != nil {
		t.Fatal(err)
	}
	if got := summarize(&pod).status; got != "Terminating" {
		t.Errorf("a pod being deleted is %s", got)
	}
}

func TestRows(t *testing.T) {
	tests := map[string]struct{ got, want string }{
		"deployment": {
			row[appsv1.Deployment](t, Deployments, "spec: {replicas: 3, selector: {matchLabels: {app: a}}, template: {spec: {containers: [{name: c, image: i}]}}}\nstatus: {readyReplicas: 1, updatedReplicas: 2, availableReplicas: 1}"),
			"x|1/3|2|1|4m|c|i|app=a",
		},
		"replicaset": {row[appsv1.ReplicaSet](t, ReplicaSets, "spec: {replicas: 3}\nstatus: {replicas: 2, readyReplicas: 1}"), "x|3|2|1|4m|||<none>"},
		"node": {
			row[corev1.Node](t, Nodes, "spec: {unschedulable: true}\nstatus: {conditions: [{type: Ready, status: \"True\"}], addresses: [{type: InternalIP, address: 10.41.0.11}], nodeInfo: {kubeletVersion: v1}}"),
			"x|Ready,SchedulingDisabled|<none>|4m|v1|10.41.0.11|<none>|<unknown>|<unknown>|<unknown>",
		},
		"service":  {row[corev1.Service](t, Services, "spec: {type: ClusterIP, clusterIP: 10.43.0.9, ports: [{port: 80, protocol: TCP}], selector: {app: a}}"), "x|ClusterIP|10.43.0.9|<none>|80/TCP|4m|app=a"},
		"pending":  {row[corev1.Service](t, Services, "spec: {type: LoadBalancer, clusterIP: None, ports: [{port: 80, nodePort: 30080, protocol: TCP}]}"), "x|LoadBalancer|None|<pending>|80:30080/TCP|4m|<none>"},
		"endpoint": {row[corev1.Endpoints](t, Endpoints, "subsets: [{addresses: [{ip: 1.1.1.1}, {ip: 1.1.1.2}], ports: [{port: 80}, {port: 81}]}]"), "x|1.1.1.1:80,1.1.1.1:81,1.1.1.2:80 + 1 more...|4m"},
		"slice":    {row[discoveryv1.EndpointSlice](t, EndpointSlices, "addressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [1.1.1.1]}]"), "x|IPv4|80|1.1.1.1|4m"},
		"secret":   {row[corev1.Secret](t, Secrets, "type: Opaque\ndata: {a: MQ==}"), "x|Opaque|1|4m"},
		"event": {
			row[corev1.Event](t, Events, "type: Normal\nreason: Pulled\nmessage: done\ninvolvedObject: {kind: Pod, name: p}\ncount: 2\nfirstTimestamp: \"2026-01-02T03:00:05Z\"\nlastTimestamp: \"2026-01-02T03:04:00Z\""),
			"5s|Normal|Pulled|pod/p|||done|4m|2|x",
		},
		"application": {
			row[v1alpha1.Application](t, Applications, "status: {deployedCommit: 0123456789abcdef, phase: Ready, objects: 3/4, heldAt: {reason: Rollback}, message: fine}"),
			"x|0123456789|Ready|3/4|Rollback|4m|fine",
		},
		"new application": {row[v1alpha1.Application](t, Applications, "{}"[:0]), "x|<none>|Pending|<none>||4m|"},
		"revision": {
			row[v1alpha1.Revision](t, Revisions, "spec: {application: a, number: 7, commit: 0123456789abcdef, subject: fix it, author: A}\nstatus: {outcome: Succeeded, trigger: push}"),
			"x|7|0123456789|fix it|push|Succeeded|4m|A|",
		},
	}
	for name, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("%s: got %s, want %s", name, tt.got, tt.want)
		}
	}
}

// Every table gives a cell to each of its columns, also for an empty object.
func TestColumns(t *testing.T) {
	for obj, table := range map[runtime.Object]Table{
		&corev1.Namespace{}: Namespaces, &corev1.ServiceAccount{}: ServiceAccounts, &corev1.ConfigMap{}: ConfigMaps,
		&appsv1.ControllerRevision{}: ControllerRevisions, &corev1.Event{}: Events, &corev1.Node{}: Nodes,
	} {
		cells := table.Row(obj, now)
		if len(cells) != len(table.Columns) || slices.Contains(cells, nil) {
			t.Errorf("%T: %v", obj, cells)
		}
	}
}
