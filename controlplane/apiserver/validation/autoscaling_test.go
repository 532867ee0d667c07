package validation

import (
	"testing"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"sigs.k8s.io/yaml"

	"gitk8s.dev/gitk8s/controlplane/apiserver/defaults"
)

func TestHorizontalPodAutoscaler(t *testing.T) {
	const target = "scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}\n"
	for _, c := range []struct{ name, spec, want string }{
		{"good", target + "maxReplicas: 3", ""},
		{"no maximum", target, "spec.maxReplicas: Invalid value: 0: must be greater than 0"},
		{"minimum zero", target + "maxReplicas: 3\nminReplicas: 0", "spec.minReplicas: Invalid value: 0: must be greater than or equal to 1"},
		{"minimum above maximum", target + "maxReplicas: 3\nminReplicas: 4", "spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`"},
		{"no name", "maxReplicas: 3\nscaleTargetRef: {kind: Deployment}", "spec.scaleTargetRef.name: Required value"},
		{"name with a slash", "maxReplicas: 3\nscaleTargetRef: {kind: Deployment, name: a/b}", `spec.scaleTargetRef.name: Invalid value: "a/b": may not contain '/'`},
		{"metric without type", target + "maxReplicas: 3\nmetrics: [{resource: {name: cpu}}]", "spec.metrics[0].type: Required value: must specify a metric source type"},
		{
			"metric of an unknown type", target + "maxReplicas: 3\nmetrics: [{type: Moon}]",
			`spec.metrics[0].type: Unsupported value: "Moon": supported values: "ContainerResource", "External", "Object", "Pods", "Resource"`,
		},
		{"metric without source", target + "maxReplicas: 3\nmetrics: [{type: Resource}]", "spec.metrics[0].resource: Required value: must populate information for the given metric source"},
		{
			"metric with another's source", target + "maxReplicas: 3\nmetrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 5}}, pods: {}}]",
			"spec.metrics[0].pods: Forbidden: must populate the given metric source only",
		},
		{
			"no target", target + "maxReplicas: 3\nmetrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization}}}]",
			"spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target raw value or a target utilization",
		},
		{
			"both targets", target + "maxReplicas: 3\nmetrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 5, averageValue: 1}}}]",
			"spec.metrics[0].resource.target.averageValue: Forbidden: may not set both a target raw value and a target utilization",
		},
		{
			"no container", target + "maxReplicas: 3\nmetrics: [{type: ContainerResource, containerResource: {name: cpu, target: {type: Utilization, averageUtilization: 5}}}]",
			"spec.metrics[0].containerResource.container: Required value: must specify a container",
		},
		{
			"window too long", target + "maxReplicas: 3\nbehavior: {scaleUp: {stabilizationWindowSeconds: 3601}}",
			"spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600",
		},
		{
			"no policies", target + "maxReplicas: 3\nbehavior: {scaleDown: {policies: []}}",
			"spec.behavior.scaleDown.policies: Required value: must specify at least one Policy",
		},
		{
			"policy of no pods", target + "maxReplicas: 3\nbehavior: {scaleDown: {policies: [{type: Pods, value: 0, periodSeconds: 5}]}}",
			"spec.behavior.scaleDown.policies[0].value: Invalid value: 0: must be greater than zero",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var a autoscalingv2.HorizontalPodAutoscaler
			if err := yaml.UnmarshalStrict([]byte(c.spec), &a.Spec); err != nil {
				t.Fatal(err)
			}
			defaults.HorizontalPodAutoscaler(&a)
			errs := HorizontalPodAutoscaler(&a, nil)
			got := ""
			if len(errs) > 0 {
				got = errs[0].Error()
			}
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}
