package defaults

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

// read makes an object of YAML, as a client would send it.
func read[T any](t *testing.T, text string) *T {
	t.Helper()
	out := new(T)
	if err := yaml.UnmarshalStrict([]byte(text), out); err != nil {
		t.Fatal(err)
	}
	return out
}

// expect compares an object after its defaults, twice applied, with YAML.
func expect[T any, P interface {
	*T
	runtime.Object
}](t *testing.T, f func(P), in, want string,
) {
	t.Helper()
	got, wanted := read[T](t, in), read[T](t, want)
	f(got)
	once := P(got).DeepCopyObject()
	f(got)
	if !equality.Semantic.DeepEqual(once, P(got)) {
		t.Error("the defaults are not idempotent")
	}
	if !equality.Semantic.DeepEqual(got, wanted) {
		have, err := yaml.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		t.Errorf("got\n%s\nwant\n%s", have, want)
	}
}

func TestPod(t *testing.T) {
	expect(t, Pod, `
spec:
  hostNetwork: true
  containers:
  - name: a
    image: registry:5000/a
    ports: [{containerPort: 80}]
    env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
    livenessProbe: {httpGet: {port: 80}}
    readinessProbe: {grpc: {port: 90}, periodSeconds: 1}
    lifecycle: {preStop: {httpGet: {port: 80}}}
    resources: {limits: {memory: 64Mi, cpu: "1"}, requests: {cpu: 100m}}
  volumes:
  - {name: e}
  - {name: s, secret: {secretName: s}}
  - {name: c, configMap: {name: c}}
  - {name: d, downwardAPI: {items: [{path: p, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: h, hostPath: {path: /x}}
  - {name: p, projected: {sources: [{downwardAPI: {items: [{path: p, fieldRef: {fieldPath: metadata.name}}]}}]}}
`, `
spec:
  hostNetwork: true
  enableServiceLinks: true
  dnsPolicy: ClusterFirst
  restartPolicy: Always
  schedulerName: default-scheduler
  securityContext: {}
  terminationGracePeriodSeconds: 30
  containers:
  - name: a
    image: registry:5000/a
    imagePullPolicy: Always
    terminationMessagePath: /dev/termination-log
    terminationMessagePolicy: File
    ports: [{containerPort: 80, hostPort: 80, protocol: TCP}]
    env: [{name: IP, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: status.podIP}}}]
    livenessProbe: {httpGet: {port: 80, path: /, scheme: HTTP}, timeoutSeconds: 1, periodSeconds: 10, successThreshold: 1, failureThreshold: 3}
    readinessProbe: {grpc: {port: 90, service: ""}, timeoutSeconds: 1, periodSeconds: 1, successThreshold: 1, failureThreshold: 3}
    lifecycle: {preStop: {httpGet: {port: 80, path: /, scheme: HTTP}}}
    resources: {limits: {memory: 64Mi, cpu: "1"}, requests: {cpu: 100m, memory: 64Mi}}
  volumes:
  - {name: e, emptyDir: {}}
  - {name: s, secret: {secretName: s, defaultMode: 420}}
  - {name: c, configMap: {name: c, defaultMode: 420}}
  - {name: d, downwardAPI: {defaultMode: 420, items: [{path: p, fieldRef: {apiVersion: v1, fieldPath: metadata.labels}}]}}
  - {name: h, hostPath: {path: /x, type: ""}}
  - {name: p, projected: {defaultMode: 420, sources: [{downwardAPI: {items: [{path: p, fieldRef: {apiVersion: v1, fieldPath: metadata.name}}]}}]}}
`)
}

func TestPullPolicy(t *testing.T) {
	for image, want := range map[string]corev1.PullPolicy{
		"a": corev1.PullAlways, "a:latest": corev1.PullAlways, "host:5000/a": corev1.PullAlways, "a:latest@sha256:00": corev1.PullAlways,
		"a:v1": corev1.PullIfNotPresent, "host:5000/a:v1": corev1.PullIfNotPresent, "a@sha256:00": corev1.PullIfNotPresent,
	} {
		if got := pullPolicy(image); got != want {
			t.Errorf("%s: %s", image, got)
		}
	}
}

const templateDefaults = `{restartPolicy: Always, dnsPolicy: ClusterFirst, schedulerName: default-scheduler, securityContext: {}, terminationGracePeriodSeconds: 30,
      serviceAccountName: robot, serviceAccount: robot,
      containers: [{name: a, image: "a:v1", imagePullPolicy: IfNotPresent, terminationMessagePath: /dev/termination-log, terminationMessagePolicy: File,
        resources: {limits: {cpu: "1"}}}]}`

func TestWorkloads(t *testing.T) {
	template := `{template: {spec: {serviceAccountName: robot, containers: [{name: a, image: "a:v1", resources: {limits: {cpu: "1"}}}]}}}`
	expect(t, Deployment, "spec: "+template, `
spec:
  replicas: 1
  revisionHistoryLimit: 10
  progressDeadlineSeconds: 600
  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 25%, maxUnavailable: 25%}}
  template: {spec: `+templateDefaults+"}")
	expect(t, ReplicaSet, "spec: "+template, "spec: {replicas: 1, template: {spec: "+templateDefaults+"}}")
	recreate := read[appsv1.Deployment](t, "spec: {strategy: {type: Recreate}, replicas: 0}")
	Deployment(recreate)
	if recreate.Spec.Strategy.RollingUpdate != nil || *recreate.Spec.Replicas != 0 {
		t.Errorf("recreate: %+v", recreate.Spec)
	}
}

func TestKinds(t *testing.T) {
	expect(t, Service, "spec: {ports: [{port: 80}, {port: 90, targetPort: http}]}", `
spec:
  type: ClusterIP
  sessionAffinity: None
  internalTrafficPolicy: Cluster
  ports: [{port: 80, targetPort: 80, protocol: TCP}, {port: 90, targetPort: http, protocol: TCP}]`)
	expect(t, Service, "spec: {type: NodePort, sessionAffinity: ClientIP}", `
spec:
  type: NodePort
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 10800}}
  internalTrafficPolicy: Cluster
  externalTrafficPolicy: Cluster`)
	expect(t, Service, "spec: {type: ExternalName, externalName: a.example}", "spec: {type: ExternalName, externalName: a.example, sessionAffinity: None}")
	expect(t, Secret, `{data: {a: MQ==}, stringData: {b: "2"}}`, `{type: Opaque, data: {a: MQ==, b: Mg==}}`)
	expect(t, Namespace, "metadata: {name: n}", "metadata: {name: n, labels: {kubernetes.io/metadata.name: n}}")
	expect(t, EndpointSlice, "ports: [{port: 80}]", `ports: [{port: 80, name: "", protocol: TCP}]`)
	expect(t, Node, `status: {capacity: {cpu: "2"}}`, `status: {capacity: {cpu: "2"}, allocatable: {cpu: "2"}}`)
}

func TestApplication(t *testing.T) {
	expect(t, Application, "{}", `
spec:
  source: {ref: main, path: "."}
  sync: {interval: 30s, timeout: 5m, prune: true, selfHeal: true}
  images: {resolve: Digest}
  rollout: {autoRollback: true}
  history: {limit: 50}`)
	off := read[v1alpha1.Application](t, "spec: {sync: {interval: 0s, prune: false}, images: {resolve: \"Off\"}}")
	Application(off)
	if off.Spec.Sync.Interval.Duration != 0 || *off.Spec.Sync.Prune || off.Spec.Images.Resolve != v1alpha1.ResolveOff {
		t.Errorf("what is set was changed: %+v", off.Spec)
	}
}

func TestAdmitPod(t *testing.T) {
	pod := read[corev1.Pod](t, "spec: {tolerations: [{key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 5}]}")
	AdmitPod(pod)
	if len(pod.Spec.Tolerations) != 2 || *pod.Spec.Tolerations[0].TolerationSeconds != 5 || *pod.Spec.Tolerations[1].TolerationSeconds != 300 {
		t.Errorf("tolerations %+v", pod.Spec.Tolerations)
	}
	if pod.Spec.ServiceAccountName != "default" || *pod.Spec.Priority != 0 || *pod.Spec.PreemptionPolicy != corev1.PreemptLowerPriority {
		t.Errorf("admitted %+v", pod.Spec)
	}
}

func TestQOSClass(t *testing.T) {
	for text, want := range map[string]corev1.PodQOSClass{
		"{}":                                  corev1.PodQOSBestEffort,
		"{requests: {cpu: 100m}}":             corev1.PodQOSBurstable,
		"{limits: {memory: 64Mi}}":            corev1.PodQOSBurstable,
		"{limits: {memory: 64Mi, cpu: 100m}}": corev1.PodQOSGuaranteed,
		"{limits: {memory: 64Mi, cpu: 100m}, requests: {cpu: 50m}}": corev1.PodQOSBurstable,
	} {
		pod := read[corev1.Pod](t, "spec: {containers: [{name: a, resources: "+text+"}]}")
		Pod(pod)
		if got := QOSClass(pod); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}
