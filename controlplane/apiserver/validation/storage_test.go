package validation

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"gitk8s.dev/gitk8s/controlplane/apiserver/defaults"
)

func volumeOf(t *testing.T, spec string) *corev1.PersistentVolume {
	pv := read[corev1.PersistentVolume](t, "{metadata: {name: v}, spec: {"+spec+"}}")
	defaults.PersistentVolume(pv)
	return pv
}

func TestPersistentVolume(t *testing.T) {
	const (
		size  = "capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce]"
		host  = ", hostPath: {path: /data}"
		local = ", local: {path: /data}"
		node  = ", nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [a]}]}]}}"
	)
	for spec, want := range map[string][]string{
		size + host:         nil,
		size + local + node: nil,
		"":                  {"spec.accessModes: Required value", "spec.capacity: Required value", "spec: Required value: must specify a volume type"},
		size:                {"spec: Required value: must specify a volume type"},
		size + local:        {"metadata.annotations: Required value: Local volume requires node affinity"},
		size + host + local + node: {
			"spec.local: Forbidden: may not specify more than 1 volume type",
		},
		size + ", hostPath: {path: /a/../b}":                                   {"spec.hostPath.path: Invalid value: \"/a/../b\": must not contain '..'"},
		size + ", hostPath: {path: /a, type: Thing}":                           {`spec.hostPath.type: Unsupported value: "Thing"`},
		size + ", local: {path: ''}" + node:                                    {"spec.local.path: Required value"},
		size + host + ", nodeAffinity: {}":                                     {"spec.nodeAffinity.required: Required value: must specify required node constraints"},
		size + host + ", nodeAffinity: {required: {}}":                         {"spec.nodeAffinity.required.nodeSelectorTerms: Required value"},
		size + host + ", persistentVolumeReclaimPolicy: Burn":                  {`spec.persistentVolumeReclaimPolicy: Unsupported value: "Burn"`},
		size + host + ", volumeMode: Tape, storageClassName: A_b":              {"spec.storageClassName: Invalid value", `spec.volumeMode: Unsupported value: "Tape"`},
		"capacity: {storage: 0}, accessModes: [ReadWriteOnce]" + host:          {`spec.capacity[storage]: Invalid value: "0": must be greater than zero`},
		"capacity: {cpu: 1}, accessModes: [ReadWriteOnce]" + host:              {"spec.capacity: Unsupported value"},
		"capacity: {storage: 1}, accessModes: [Sometimes]" + host:              {`spec.accessModes: Unsupported value: "Sometimes"`},
		size + ", hostPath: {path: /}, persistentVolumeReclaimPolicy: Recycle": {"spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'"},
		"capacity: {storage: 1}, accessModes: [ReadWriteOncePod, ReadWriteMany]" + host: {
			"spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
		},
	} {
		t.Run(spec, func(t *testing.T) { match(t, PersistentVolume(volumeOf(t, spec), nil), want...) })
	}
	old := volumeOf(t, size+host)
	match(t, PersistentVolume(volumeOf(t, size+host+node+", claimRef: {namespace: a, name: b}, persistentVolumeReclaimPolicy: Delete"), old))
	match(t, PersistentVolume(volumeOf(t, size+", hostPath: {path: /other}"), old), "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation")
	match(t, PersistentVolume(volumeOf(t, size+host+", volumeMode: Block"), old), "spec.volumeMode: Invalid value")
	match(t, PersistentVolume(old, volumeOf(t, size+host+node)), "spec.nodeAffinity: Invalid value")
}

func TestStorageClass(t *testing.T) {
	class := func(fields string) *storagev1.StorageClass {
		c := read[storagev1.StorageClass](t, "{metadata: {name: c}, "+fields+"}")
		defaults.StorageClass(c)
		return c
	}
	for fields, want := range map[string][]string{
		"provisioner: example.com/disk": nil,
		"provisioner: ''":               {"provisioner: Required value"},
		"provisioner: a b":              {"provisioner: Invalid value"},
		"provisioner: p, reclaimPolicy: Recycle, volumeBindingMode: Later": {
			`reclaimPolicy: Unsupported value: "Recycle"`, `volumeBindingMode: Unsupported value: "Later"`,
		},
		"provisioner: p, parameters: {'': x}": {"parameters: Invalid value"},
		"provisioner: p, allowedTopologies: [{matchLabelExpressions: [{key: zone, values: [a, b]}]}]": nil,
		"provisioner: p, allowedTopologies: [{matchLabelExpressions: [{key: zone}, {key: zone, values: [a, a]}]}]": {
			"allowedTopologies[0].matchLabelExpressions[0].values: Required value",
			"allowedTopologies[0].matchLabelExpressions[1].key: Duplicate value",
			"allowedTopologies[0].matchLabelExpressions[1].values[1]: Duplicate value",
		},
	} {
		t.Run(fields, func(t *testing.T) { match(t, StorageClass(class(fields), nil), want...) })
	}
	old := class("provisioner: p")
	match(t, StorageClass(class("provisioner: p, allowVolumeExpansion: true, mountOptions: [ro]"), old))
	match(t, StorageClass(class("provisioner: q, parameters: {a: b}, reclaimPolicy: Retain, volumeBindingMode: WaitForFirstConsumer"), old),
		"parameters: Forbidden: updates to parameters are forbidden.", "provisioner: Forbidden: updates to provisioner are forbidden.",
		"reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden.", "volumeBindingMode: Invalid value")
}
