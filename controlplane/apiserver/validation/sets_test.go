package validation

import (
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/controlplane/apiserver/defaults"
)

const setTemplate = "selector: {matchLabels: {app: a}}, template: {metadata: {labels: {app: a}}, spec: {containers: [{" + good + "}]}}"

func statefulSet(t *testing.T, extra string) *appsv1.StatefulSet {
	t.Helper()
	set := read[appsv1.StatefulSet](t, "{metadata: {name: s}, spec: {"+strings.TrimSuffix(setTemplate+", "+extra, ", ")+"}}")
	defaults.StatefulSet(set)
	return set
}

func TestStatefulSet(t *testing.T) {
	const claim = "volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}]"
	for extra, want := range map[string][]string{
		"":                                 nil,
		"podManagementPolicy: Parallel":    nil,
		"podManagementPolicy: Wild":        {`spec.podManagementPolicy: Invalid value: "Wild": must be 'OrderedReady' or 'Parallel'`},
		"updateStrategy: {type: OnDelete}": nil,
		"updateStrategy: {type: OnDelete, rollingUpdate: {partition: 1}}": {"spec.updateStrategy.rollingUpdate: Invalid value"},
		"updateStrategy: {type: Now}":                                     {"spec.updateStrategy: Invalid value"},
		"updateStrategy: {rollingUpdate: {partition: -1}}":                {"spec.updateStrategy.rollingUpdate.partition: Invalid value: -1: must be greater than or equal to 0"},
		"updateStrategy: {rollingUpdate: {maxUnavailable: 0}}":            {"spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: 0: cannot be 0"},
		"updateStrategy: {rollingUpdate: {maxUnavailable: 0%}}":           {`spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: "0%": cannot be 0`},
		"updateStrategy: {rollingUpdate: {maxUnavailable: 120%}}":         {`spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: "120%": must not be greater than 100%`},
		"updateStrategy: {rollingUpdate: {maxUnavailable: few}}":          {`spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: "few"`},
		"persistentVolumeClaimRetentionPolicy: {whenScaled: Burn}":        {`spec.persistentVolumeClaimRetentionPolicy.whenScaled: Unsupported value: "Burn"`},
		"replicas: -1":                          {"spec.replicas: Invalid value: -1"},
		"minReadySeconds: -1":                   {"spec.minReadySeconds: Invalid value: -1"},
		"revisionHistoryLimit: -1":              {"spec.revisionHistoryLimit: Invalid value: -1"},
		"ordinals: {start: -1}":                 {"spec.ordinals.start: Invalid value: -1"},
		"serviceName: A_b":                      {`spec.serviceName: Invalid value: "A_b"`},
		claim:                                   nil,
		strings.Replace(claim, "1Gi", `"0"`, 1): {"spec.volumeClaimTemplates[0].spec.resources[storage]: Invalid value: \"0\": must be greater than zero"},
		strings.Replace(claim, "ReadWriteOnce", "Sometimes", 1): {`spec.volumeClaimTemplates[0].spec.accessModes[0]: Unsupported value: "Sometimes"`},
	} {
		t.Run(extra, func(t *testing.T) { match(t, StatefulSet(statefulSet(t, extra), nil), want...) })
	}
	mounted := statefulSet(t, claim)
	mounted.Spec.Template.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
	match(t, StatefulSet(mounted, nil))
	mounted.Spec.Template.Spec.Containers[0].VolumeMounts[0].Name = "date"
	match(t, StatefulSet(mounted, nil), `spec.template.spec.containers[0].volumeMounts[0].name: Not found: "date"`)
	wrong := statefulSet(t, "")
	wrong.Spec.Template.Labels["app"] = "b"
	wrong.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
	match(t, StatefulSet(wrong, nil), "spec.template.metadata.labels: Invalid value", `spec.template.spec.restartPolicy: Unsupported value: "Never"`)
	empty := statefulSet(t, "")
	empty.Spec.Selector.MatchLabels = nil
	match(t, StatefulSet(empty, nil), "spec.selector: Invalid value")
}

func TestStatefulSetUpdate(t *testing.T) {
	old := statefulSet(t, "serviceName: a")
	match(t, StatefulSet(statefulSet(t, "serviceName: a, replicas: 5, minReadySeconds: 3, ordinals: {start: 2}, revisionHistoryLimit: 2, "+
		"updateStrategy: {type: OnDelete}, persistentVolumeClaimRetentionPolicy: {whenDeleted: Delete}"), old))
	for _, extra := range []string{"serviceName: b", "serviceName: a, podManagementPolicy: Parallel"} {
		match(t, StatefulSet(statefulSet(t, extra), old), "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', "+
			"'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden")
	}
}

func TestSetStatus(t *testing.T) {
	old := read[appsv1.StatefulSet](t, "status: {replicas: 0, collisionCount: 2}")
	match(t, StatefulSetStatus(read[appsv1.StatefulSet](t, "status: {replicas: 2, readyReplicas: 2, availableReplicas: 1, collisionCount: 2}"), old))
	match(t, StatefulSetStatus(read[appsv1.StatefulSet](t, "status: {replicas: 1, readyReplicas: 2, availableReplicas: 1, collisionCount: 1}"), old),
		"status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas", "status.collisionCount: Invalid value: 1: cannot be decremented")
	match(t, DaemonSetStatus(read[appsv1.DaemonSet](t, "status: {numberReady: -1}"), &appsv1.DaemonSet{}), "status.numberReady: Invalid value: -1")
}

func TestDaemonSet(t *testing.T) {
	daemonSet := func(extra string) *appsv1.DaemonSet {
		ds := read[appsv1.DaemonSet](t, "{metadata: {name: d}, spec: {"+strings.TrimSuffix(setTemplate+", "+extra, ", ")+"}}")
		defaults.DaemonSet(ds)
		return ds
	}
	for extra, want := range map[string][]string{
		"":                                 nil,
		"updateStrategy: {type: OnDelete}": nil,
		"updateStrategy: {type: Now}":      {`spec.updateStrategy: Unsupported value: "Now"`},
		"updateStrategy: {rollingUpdate: {maxUnavailable: 30%}}":               nil,
		"updateStrategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}":    nil,
		"updateStrategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 0}}":    {"spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0"},
		"updateStrategy: {rollingUpdate: {maxSurge: 1}}":                       {"spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero"},
		"updateStrategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 101%}}": {`spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: "101%": must not be greater than 100%`},
		"revisionHistoryLimit: -1":                                             {"spec.revisionHistoryLimit: Invalid value: -1"},
	} {
		t.Run(extra, func(t *testing.T) { match(t, DaemonSet(daemonSet(extra), nil), want...) })
	}
	once := daemonSet("")
	once.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
	once.Spec.Template.Spec.ActiveDeadlineSeconds = new(int64)
	*once.Spec.Template.Spec.ActiveDeadlineSeconds = 5
	match(t, DaemonSet(once, nil), `spec.template.spec.restartPolicy: Unsupported value: "OnFailure"`,
		"spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in DaemonSet is not Supported")
	other := daemonSet("")
	other.Spec.Selector.MatchLabels["tier"] = "x"
	other.Spec.Template.Labels["tier"] = "x"
	match(t, DaemonSet(other, daemonSet("")), "spec.selector: Invalid value")
}

func TestPersistentVolumeClaim(t *testing.T) {
	claim := func(spec, status string) *corev1.PersistentVolumeClaim {
		c := read[corev1.PersistentVolumeClaim](t, "{metadata: {name: c}, spec: {"+spec+"}, status: {"+status+"}}")
		defaults.PersistentVolumeClaim(c)
		return c
	}
	const fine = "accessModes: [ReadWriteOnce], resources: {requests: {storage: 2Gi}}"
	bigger, smaller := strings.Replace(fine, "2Gi", "3Gi", 1), strings.Replace(fine, "2Gi", "1Gi", 1)
	match(t, PersistentVolumeClaim(claim(fine, ""), nil))
	match(t, PersistentVolumeClaim(claim("", ""), nil), "spec.accessModes: Required value: at least 1 access mode is required", "spec.resources[storage]: Required value")
	match(t, PersistentVolumeClaim(claim("accessModes: [ReadWriteOncePod, ReadWriteOnce], volumeMode: Tape, storageClassName: A_b, resources: {requests: {storage: 1}}", ""), nil),
		"spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes", "spec.storageClassName: Invalid value", `spec.volumeMode: Unsupported value: "Tape"`)
	const immutable = "spec: Forbidden: spec is immutable after creation except resources.requests"
	match(t, PersistentVolumeClaim(claim(fine+", volumeName: v", ""), claim(fine, "")))
	match(t, PersistentVolumeClaim(claim(fine+", volumeName: w", ""), claim(fine+", volumeName: v", "")), immutable)
	match(t, PersistentVolumeClaim(claim(bigger, ""), claim(fine, "")), immutable)
	const bound = "phase: Bound, capacity: {storage: 2Gi}"
	match(t, PersistentVolumeClaim(claim(bigger, ""), claim(fine, bound)))
	match(t, PersistentVolumeClaim(claim(smaller, ""), claim(fine, bound)), "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity")

	spec := read[corev1.PodSpec](t, "{volumes: [{name: v, persistentVolumeClaim: {claimName: c}}, {name: w, persistentVolumeClaim: {}}], containers: [{"+good+"}]}")
	defaults.PodSpec(spec)
	match(t, PodSpec(spec, nil), "volumes[1].persistentVolumeClaim.claimName: Required value")
}
