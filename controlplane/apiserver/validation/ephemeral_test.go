package validation

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/controlplane/apiserver/defaults"
)

func TestPodEphemeralContainers(t *testing.T) {
	const plain = "{name: d, image: i}"
	const path = "spec.ephemeralContainers"
	tests := map[string]struct {
		old, now, annotation string
		want                 []string
	}{
		"added":          {"", plain, "", nil},
		"with a target":  {"", "{name: d, image: i, targetContainerName: a, stdin: true, tty: true}", "", nil},
		"no such target": {"", "{name: d, image: i, targetContainerName: x}", "", []string{path + `[0].targetContainerName: Not found: "x"`}},
		"same name":      {"", "{name: a, image: i}", "", []string{path + `[0].name: Duplicate value: "a"`}},
		"twice":          {"", plain + "," + plain, "", []string{path + `[1].name: Duplicate value: "d"`}},
		"no image":       {"", "{name: d}", "", []string{path + "[0].image: Required value"}},
		"ports":          {"", "{name: d, image: i, ports: [{containerPort: 1}]}", "", []string{path + "[0].ports: Forbidden: cannot be set for an Ephemeral Container"}},
		"probe":          {"", "{name: d, image: i, livenessProbe: {tcpSocket: {port: 1}}}", "", []string{path + "[0].livenessProbe: Forbidden"}},
		"lifecycle":      {"", "{name: d, image: i, lifecycle: {preStop: {sleep: {seconds: 1}}}}", "", []string{path + "[0].lifecycle: Forbidden"}},
		"resources":      {"", "{name: d, image: i, resources: {limits: {cpu: 1}}}", "", []string{path + "[0].resources: Forbidden"}},
		"restart policy": {"", "{name: d, image: i, restartPolicy: Always}", "", []string{path + "[0].restartPolicy: Forbidden"}},
		"subPath": {"", "{name: d, image: i, volumeMounts: [{name: v, mountPath: /v, subPath: s}]}", "",
			[]string{path + "[0].volumeMounts[0].subPath: Forbidden"}},
		"removed": {plain, "", "", []string{path + `: Forbidden: existing ephemeral containers "d" may not be removed`}},
		"changed": {plain, "{name: d, image: j}", "", []string{path + `: Forbidden: existing ephemeral containers "d" may not be changed`}},
		"moved":   {plain, "{name: e, image: i}, " + plain, "", nil},
		"static":  {"", plain, corev1.MirrorPodAnnotationKey, []string{"[]: Forbidden: static pods do not support ephemeral containers"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			pod := func(ephemeral string) *corev1.Pod {
				p := read[corev1.Pod](t, "{spec: {containers: [{name: a, image: i}], volumes: [{name: v, emptyDir: {}}], ephemeralContainers: ["+ephemeral+"]}}")
				if tt.annotation != "" {
					p.Annotations = map[string]string{tt.annotation: ""}
				}
				defaults.Pod(p)
				return p
			}
			match(t, PodEphemeralContainers(pod(tt.now), pod(tt.old)), tt.want...)
		})
	}
	p := read[corev1.Pod](t, "{spec: {containers: [{name: a, image: i}], ephemeralContainers: ["+plain+"]}}")
	defaults.Pod(p)
	match(t, Pod(p, nil), path+": Forbidden: cannot be set on create")
}
