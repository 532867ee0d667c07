package validation

import "testing"

func TestSpreadCounting(t *testing.T) {
	const spec = "{metadata: {name: p}, spec: {containers: [{name: c, image: i}], "
	constraint := func(fields string) string {
		return spec + "topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, " + fields + "}]}}"
	}
	affinity := func(fields string) string {
		return spec + "affinity: {podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: zone, " + fields + "}]}}}}"
	}
	const at, term = "spec.topologySpreadConstraints[0].", "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0]."
	for text, want := range map[string][]string{
		constraint("whenUnsatisfiable: DoNotSchedule, labelSelector: {}, minDomains: 2, nodeAffinityPolicy: Honor, nodeTaintsPolicy: Ignore, matchLabelKeys: [a]"): nil,
		constraint("whenUnsatisfiable: ScheduleAnyway, minDomains: 2"):                                                                                             {at + "minDomains: Invalid value: 2: can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway"},
		constraint("whenUnsatisfiable: ScheduleAnyway, nodeTaintsPolicy: Never"):                                                                                   {at + `nodeTaintsPolicy: Unsupported value: "Never"`},
		constraint("whenUnsatisfiable: ScheduleAnyway, matchLabelKeys: [a]"):                                                                                       {at + "matchLabelKeys: Forbidden: must not be specified when labelSelector is not set"},
		constraint("whenUnsatisfiable: ScheduleAnyway, labelSelector: {}, matchLabelKeys: [-]"):                                                                    {at + "matchLabelKeys[0]: Invalid value"},
		affinity("labelSelector: {}, matchLabelKeys: [a], mismatchLabelKeys: [b]"):                                                                                 nil,
		affinity("labelSelector: {}, matchLabelKeys: [a], mismatchLabelKeys: [a]"):                                                                                 {term + `matchLabelKeys[0]: Invalid value: "a": exists in both matchLabelKeys and mismatchLabelKeys`},
		affinity("mismatchLabelKeys: [a]"):                                                                                                                         {term + "mismatchLabelKeys: Forbidden: must not be specified when labelSelector is not set"},
	} {
		t.Run(text, func(t *testing.T) { match(t, Pod(defaultedPod(t, text), nil), want...) })
	}
}
