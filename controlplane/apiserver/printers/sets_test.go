package printers

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

func TestSets(t *testing.T) {
	const template = "selector: {matchLabels: {app: x}}, template: {spec: {containers: [{name: a, image: i}]}}"
	for _, c := range []struct{ got, want string }{
		{row[appsv1.StatefulSet](t, StatefulSets, "spec: {replicas: 3, "+template+"}\nstatus: {readyReplicas: 2}"), "x|2/3|4m|a|i"},
		{row[appsv1.DaemonSet](t, DaemonSets, "spec: {"+template+"}\nstatus: {desiredNumberScheduled: 5, currentNumberScheduled: 4, numberReady: 3, updatedNumberScheduled: 2, numberAvailable: 1}"), "x|5|4|3|2|1|<none>|4m|a|i|app=x"},
		{row[appsv1.DaemonSet](t, DaemonSets, "spec: {selector: {matchLabels: {app: x}}, template: {spec: {nodeSelector: {disk: ssd}}}}"), "x|0|0|0|0|0|disk=ssd|4m|||app=x"},
		{row[corev1.PersistentVolumeClaim](t, PersistentVolumeClaims, "status: {phase: Pending}"), "x|Pending|||||<unset>|4m|<unset>"},
		{row[corev1.PersistentVolumeClaim](t, PersistentVolumeClaims, "spec: {volumeName: v, storageClassName: fast, volumeMode: Filesystem}\nstatus: {phase: Bound, capacity: {storage: 1Gi}, accessModes: [ReadWriteMany, ReadWriteOnce]}"), "x|Bound|v|1Gi|RWO,RWX|fast|<unset>|4m|Filesystem"},
	} {
		if c.got != c.want {
			t.Errorf("got  %s\nwant %s", c.got, c.want)
		}
	}
}
