package defaults

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// StatefulSet sets one replica, ordered management, a rolling update of one pod at
// a time, its limits, and claims that outlive everything.
func StatefulSet(set *appsv1.StatefulSet) {
	spec := &set.Spec
	PodSpec(&spec.Template.Spec)
	missing(&spec.Replicas, 1)
	missing(&spec.RevisionHistoryLimit, 10)
	unset(&spec.PodManagementPolicy, appsv1.OrderedReadyPodManagement)
	unset(&spec.UpdateStrategy.Type, appsv1.RollingUpdateStatefulSetStrategyType)
	if spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType {
		missing(&spec.UpdateStrategy.RollingUpdate, appsv1.RollingUpdateStatefulSetStrategy{})
		missing(&spec.UpdateStrategy.RollingUpdate.Partition, 0)
		missing(&spec.UpdateStrategy.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
	}
	missing(&spec.PersistentVolumeClaimRetentionPolicy, appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{})
	unset(&spec.PersistentVolumeClaimRetentionPolicy.WhenDeleted, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	unset(&spec.PersistentVolumeClaimRetentionPolicy.WhenScaled, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	for i := range spec.VolumeClaimTemplates {
		claim := &spec.VolumeClaimTemplates[i]
		unset(&claim.APIVersion, "v1")
		unset(&claim.Kind, "PersistentVolumeClaim")
		PersistentVolumeClaim(claim)
	}
}

// DaemonSet sets a rolling update that takes down one pod at a time, and its limit.
func DaemonSet(ds *appsv1.DaemonSet) {
	PodSpec(&ds.Spec.Template.Spec)
	missing(&ds.Spec.RevisionHistoryLimit, 10)
	strategy := &ds.Spec.UpdateStrategy
	unset(&strategy.Type, appsv1.RollingUpdateDaemonSetStrategyType)
	if strategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		missing(&strategy.RollingUpdate, appsv1.RollingUpdateDaemonSet{})
		missing(&strategy.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
		missing(&strategy.RollingUpdate.MaxSurge, intstr.FromInt32(0))
	}
}

// PersistentVolumeClaim asks for a file system, and is Pending until it is bound.
func PersistentVolumeClaim(claim *corev1.PersistentVolumeClaim) {
	missing(&claim.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
	unset(&claim.Status.Phase, corev1.ClaimPending)
	resourceList(claim.Spec.Resources.Limits)
	resourceList(claim.Spec.Resources.Requests)
	resourceList(claim.Status.Capacity)
}
