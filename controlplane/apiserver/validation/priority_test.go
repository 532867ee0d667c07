package validation

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"

	"gitk8s.dev/gitk8s/controlplane/apiserver/defaults"
)

func TestPriorityClass(t *testing.T) {
	class := func(text string) *schedulingv1.PriorityClass { return read[schedulingv1.PriorityClass](t, text) }
	for text, want := range map[string][]string{
		"{metadata: {name: high}, value: 1000000000}":                                         nil,
		"{metadata: {name: low}, value: -5, preemptionPolicy: Never}":                         nil,
		"{metadata: {name: high}, value: 1000000001}":                                         {"value: Forbidden: maximum allowed value of a user defined priority is 1000000000"},
		"{metadata: {name: high}, value: 1, preemptionPolicy: Always}":                        {`preemptionPolicy: Unsupported value: "Always"`},
		"{metadata: {name: system-node-critical}, value: 2000001000}":                         nil,
		"{metadata: {name: system-node-critical}, value: 5}":                                  {"metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: value of system-node-critical PriorityClass must be 2000001000"},
		"{metadata: {name: system-mine}, value: 5}":                                           {"metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: system-mine is not a known system priority class"},
		"{metadata: {name: system-cluster-critical}, value: 2000000000, globalDefault: true}": {"metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: globalDefault of system-cluster-critical PriorityClass must be false"},
	} {
		t.Run(text, func(t *testing.T) { match(t, PriorityClass(class(text), nil), want...) })
	}
	old := class("{metadata: {name: c}, value: 5, preemptionPolicy: Never}")
	match(t, PriorityClass(class("{metadata: {name: c}, value: 5, preemptionPolicy: Never, globalDefault: true, description: d}"), old))
	match(t, PriorityClass(class("{metadata: {name: c}, value: 6, preemptionPolicy: Never}"), old), "value: Forbidden: may not be changed in an update.")
	match(t, PriorityClass(class("{metadata: {name: c}, value: 5, preemptionPolicy: PreemptLowerPriority}"), old), "preemptionPolicy: Invalid value")
}

func TestSchedulingGates(t *testing.T) {
	gated := func(gates string) string {
		return "{metadata: {name: p}, spec: {schedulingGates: [" + gates + "], containers: [{name: c, image: i}]}}"
	}
	old := defaultedPod(t, gated("{name: a}, {name: b}"))
	match(t, Pod(defaultedPod(t, gated("{name: b}")), old))
	match(t, Pod(defaultedPod(t, gated("")), old))
	match(t, Pod(defaultedPod(t, gated("{name: a}, {name: c}")), old), "spec.schedulingGates[1].name: Forbidden: only deletion is allowed, but found new scheduling gate 'c'")
	match(t, Pod(defaultedPod(t, "{metadata: {name: p}, spec: {nodeName: n, schedulingGates: [{name: a}], containers: [{name: c, image: i}]}}"), nil),
		"spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared")
}

func defaultedPod(t *testing.T, text string) *corev1.Pod {
	pod := read[corev1.Pod](t, text)
	defaults.Pod(pod)
	return pod
}
