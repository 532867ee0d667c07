package printers

import (
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
)

// StatefulSets prints StatefulSets.
var StatefulSets = Table{
	Columns: append([]metav1.TableColumnDefinition{
		nameColumn(), column("Ready", "Number of the pod with ready state"), ageColumn(),
	}, templateColumns()[:2]...),
	Row: func(obj runtime.Object, now time.Time) []any {
		s := obj.(*appsv1.StatefulSet)
		return append([]any{
			s.Name, fmt.Sprintf("%d/%d", s.Status.ReadyReplicas, replicas(s.Spec.Replicas)), age(s.CreationTimestamp, now),
		}, templateCells(&s.Spec.Template, s.Spec.Selector)[:2]...)
	},
}

// DaemonSets prints DaemonSets.
var DaemonSets = Table{
	Columns: append([]metav1.TableColumnDefinition{
		nameColumn(), number("Desired", "Number of nodes that should run a pod."),
		number("Current", "Number of those that have one."), number("Ready", "Number of those whose pod is ready."),
		number("Up-to-date", "Number of those whose pod is of the newest template."),
		number("Available", "Number of those whose pod is ready for at least minReadySeconds."),
		column("Node Selector", "Labels of the nodes that should run a pod."), ageColumn(),
	}, templateColumns()...),
	Row: func(obj runtime.Object, now time.Time) []any {
		ds := obj.(*appsv1.DaemonSet)
		selector := none
		if len(ds.Spec.Template.Spec.NodeSelector) > 0 {
			selector = labels.FormatLabels(ds.Spec.Template.Spec.NodeSelector)
		}
		return append([]any{
			ds.Name, int64(ds.Status.DesiredNumberScheduled), int64(ds.Status.CurrentNumberScheduled), int64(ds.Status.NumberReady),
			int64(ds.Status.UpdatedNumberScheduled), int64(ds.Status.NumberAvailable), selector, age(ds.CreationTimestamp, now),
		}, templateCells(&ds.Spec.Template, ds.Spec.Selector)...)
	},
}

const unsetCell = "<unset>"

// PersistentVolumeClaims prints PersistentVolumeClaims.
var PersistentVolumeClaims = Table{
	Columns: []metav1.TableColumnDefinition{
		nameColumn(), column("Status", "Phase of the claim."), column("Volume", "Volume that is bound to it."),
		column("Capacity", "Size of the volume."), column("Access Modes", "How the volume may be mounted."),
		column("StorageClass", "Class that was asked for."), column("VolumeAttributesClass", "Class of attributes that was asked for."),
		ageColumn(), wide("VolumeMode", "File system or block device."),
	},
	Row: func(obj runtime.Object, now time.Time) []any {
		c := obj.(*corev1.PersistentVolumeClaim)
		phase, capacity, modes, class, attributes, mode := string(c.Status.Phase), "", "", "", unsetCell, unsetCell
		if c.DeletionTimestamp != nil {
			phase = "Terminating"
		}
		if c.Spec.VolumeName != "" {
			size := c.Status.Capacity[corev1.ResourceStorage]
			capacity, modes = size.String(), accessModes(c.Status.AccessModes)
		}
		if c.Spec.StorageClassName != nil {
			class = *c.Spec.StorageClassName
		}
		if c.Spec.VolumeAttributesClassName != nil {
			attributes = *c.Spec.VolumeAttributesClassName
		}
		if c.Spec.VolumeMode != nil {
			mode = string(*c.Spec.VolumeMode)
		}
		return []any{c.Name, phase, c.Spec.VolumeName, capacity, modes, class, attributes, age(c.CreationTimestamp, now), mode}
	},
}

// accessModes abbreviates access modes as kubectl does.
func accessModes(list []corev1.PersistentVolumeAccessMode) string {
	var out []string
	for _, m := range []struct {
		mode  corev1.PersistentVolumeAccessMode
		short string
	}{
		{corev1.ReadWriteOnce, "RWO"}, {corev1.ReadOnlyMany, "ROX"}, {corev1.ReadWriteMany, "RWX"}, {corev1.ReadWriteOncePod, "RWOP"},
	} {
		for _, have := range list {
			if have == m.mode {
				out = append(out, m.short)
				break
			}
		}
	}
	return strings.Join(out, ",")
}
