package defaults

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
)

func TestSets(t *testing.T) {
	template := `template: {spec: {serviceAccountName: robot, containers: [{name: a, image: "a:v1", resources: {limits: {cpu: "1"}}}]}}`
	expect(t, StatefulSet, "spec: {"+template+", volumeClaimTemplates: [{metadata: {name: data}}]}", `
spec:
  replicas: 1
  revisionHistoryLimit: 10
  podManagementPolicy: OrderedReady
  updateStrategy: {type: RollingUpdate, rollingUpdate: {partition: 0, maxUnavailable: 1}}
  persistentVolumeClaimRetentionPolicy: {whenDeleted: Retain, whenScaled: Retain}
  volumeClaimTemplates: [{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: data}, spec: {volumeMode: Filesystem}, status: {phase: Pending}}]
  template: {spec: `+templateDefaults+"}")
	expect(t, DaemonSet, "spec: {"+template+"}", `
spec:
  revisionHistoryLimit: 10
  updateStrategy: {type: RollingUpdate, rollingUpdate: {maxUnavailable: 1, maxSurge: 0}}
  template: {spec: `+templateDefaults+"}")
	byHand := read[appsv1.StatefulSet](t, "spec: {updateStrategy: {type: OnDelete}}")
	StatefulSet(byHand)
	if byHand.Spec.UpdateStrategy.RollingUpdate != nil {
		t.Error("OnDelete has no rolling update")
	}
	expect(t, PersistentVolumeClaim, "spec: {resources: {requests: {storage: 1Gi}}}", `{spec: {volumeMode: Filesystem, resources: {requests: {storage: 1Gi}}}, status: {phase: Pending}}`)
}
