package validation

import (
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// StatefulSet checks a StatefulSet, and on update that only what may change has.
func StatefulSet(set, old *appsv1.StatefulSet) field.ErrorList {
	path := field.NewPath("spec")
	spec := &set.Spec
	var errs field.ErrorList
	switch spec.PodManagementPolicy {
	case "":
		errs = append(errs, field.Required(path.Child("podManagementPolicy"), ""))
	case appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement:
	default:
		errs = append(errs, field.Invalid(path.Child("podManagementPolicy"), spec.PodManagementPolicy,
			fmt.Sprintf("must be '%s' or '%s'", appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement)))
	}
	errs = append(errs, statefulStrategy(&spec.UpdateStrategy, path.Child("updateStrategy"))...)
	errs = append(errs, retention(spec.PersistentVolumeClaimRetentionPolicy, path.Child("persistentVolumeClaimRetentionPolicy"))...)
	if spec.Replicas != nil {
		errs = append(errs, nonNegative(path.Child("replicas"), *spec.Replicas)...)
	}
	errs = append(errs, nonNegative(path.Child("minReadySeconds"), spec.MinReadySeconds)...)
	if n := spec.RevisionHistoryLimit; n != nil {
		errs = append(errs, nonNegative(path.Child("revisionHistoryLimit"), *n)...)
	}
	if spec.Ordinals != nil {
		errs = append(errs, nonNegative(path.Child("ordinals", "start"), spec.Ordinals.Start)...)
	}
	if spec.ServiceName != "" {
		errs = append(errs, check(path.Child("serviceName"), spec.ServiceName, utilvalidation.IsDNS1123Label)...)
	}
	errs = append(errs, selects("statefulset", spec.Selector, spec.Template.Labels, path)...)
	errs = append(errs, podTemplate("StatefulSet", withClaims(spec), path.Child("template"))...)
	for i := range spec.VolumeClaimTemplates {
		claim, p := &spec.VolumeClaimTemplates[i], path.Child("volumeClaimTemplates").Index(i)
		errs = append(errs, requiredLabel(p.Child("metadata", "name"), claim.Name)...)
		errs = append(errs, claimSpec(&claim.Spec, p.Child("spec"))...)
	}
	if old != nil && !same(mutable(spec, &old.Spec), old.Spec) {
		errs = append(errs, field.Forbidden(path, "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', "+
			"'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"))
	}
	return errs
}

// withClaims is the pod template with the volumes that its claims stand for: the
// template's mounts refer to them, and they go before volumes of the same name.
func withClaims(spec *appsv1.StatefulSetSpec) *corev1.PodTemplateSpec {
	if len(spec.VolumeClaimTemplates) == 0 {
		return &spec.Template
	}
	t := spec.Template.DeepCopy()
	for _, claim := range spec.VolumeClaimTemplates {
		if !slices.ContainsFunc(t.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == claim.Name }) {
			t.Spec.Volumes = append(t.Spec.Volumes, corev1.Volume{Name: claim.Name, VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name},
			}})
		}
	}
	return t
}

// mutable is spec with all that may change taken from old.
func mutable(spec, old *appsv1.StatefulSetSpec) appsv1.StatefulSetSpec {
	s := *spec
	s.Replicas, s.Ordinals, s.Template, s.UpdateStrategy = old.Replicas, old.Ordinals, old.Template, old.UpdateStrategy
	s.RevisionHistoryLimit, s.MinReadySeconds = old.RevisionHistoryLimit, old.MinReadySeconds
	s.PersistentVolumeClaimRetentionPolicy = old.PersistentVolumeClaimRetentionPolicy
	return s
}

func statefulStrategy(s *appsv1.StatefulSetUpdateStrategy, path *field.Path) field.ErrorList {
	p := path.Child("rollingUpdate")
	switch s.Type {
	case "":
		return field.ErrorList{field.Required(path, "")}
	case appsv1.OnDeleteStatefulSetStrategyType:
		if s.RollingUpdate != nil {
			return field.ErrorList{field.Invalid(p, s.RollingUpdate,
				fmt.Sprintf("only allowed for updateStrategy '%s'", appsv1.RollingUpdateStatefulSetStrategyType))}
		}
		return nil
	case appsv1.RollingUpdateStatefulSetStrategyType:
	default:
		return field.ErrorList{field.Invalid(path, s, fmt.Sprintf("must be '%s' or '%s'",
			appsv1.RollingUpdateStatefulSetStrategyType, appsv1.OnDeleteStatefulSetStrategyType))}
	}
	if s.RollingUpdate == nil {
		return nil
	}
	var errs field.ErrorList
	if n := s.RollingUpdate.Partition; n != nil {
		errs = append(errs, nonNegative(p.Child("partition"), *n)...)
	}
	if isZero(s.RollingUpdate.MaxUnavailable) {
		errs = append(errs, field.Invalid(p.Child("maxUnavailable"), s.RollingUpdate.MaxUnavailable, "cannot be 0"))
	}
	return append(errs, share(s.RollingUpdate.MaxUnavailable, p.Child("maxUnavailable"))...)
}

// share checks a number, or a percentage up to 100%.
func share(v *intstr.IntOrString, p *field.Path) field.ErrorList {
	errs := amount(v, p)
	if n, ok := percent(v); ok && n > 100 {
		errs = append(errs, field.Invalid(p, v, "must not be greater than 100%"))
	}
	return errs
}

func retention(policy *appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy, path *field.Path) field.ErrorList {
	if policy == nil {
		return nil
	}
	known := []appsv1.PersistentVolumeClaimRetentionPolicyType{
		appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType,
	}
	var errs field.ErrorList
	if !slices.Contains(known, policy.WhenDeleted) {
		errs = append(errs, field.NotSupported(path.Child("whenDeleted"), policy.WhenDeleted, known))
	}
	if !slices.Contains(known, policy.WhenScaled) {
		errs = append(errs, field.NotSupported(path.Child("whenScaled"), policy.WhenScaled, known))
	}
	return errs
}

// StatefulSetStatus checks the counts of a status.
func StatefulSetStatus(set, old *appsv1.StatefulSet) field.ErrorList {
	s, path := &set.Status, field.NewPath("status")
	errs := nonNegative(path.Child("replicas"), s.Replicas)
	for _, c := range []struct {
		name  string
		count int32
	}{
		{"readyReplicas", s.ReadyReplicas}, {"currentReplicas", s.CurrentReplicas},
		{"updatedReplicas", s.UpdatedReplicas}, {"availableReplicas", s.AvailableReplicas},
	} {
		errs = append(errs, nonNegative(path.Child(c.name), c.count)...)
		if c.count > s.Replicas {
			errs = append(errs, field.Invalid(path.Child(c.name), c.count, "cannot be greater than status.replicas"))
		}
	}
	if s.AvailableReplicas > s.ReadyReplicas {
		errs = append(errs, field.Invalid(path.Child("availableReplicas"), s.AvailableReplicas, "cannot be greater than status.readyReplicas"))
	}
	return append(errs, collisions(s.CollisionCount, old.Status.CollisionCount, path.Child("collisionCount"))...)
}

// collisions checks a collision count, which only grows: a name that was taken
// once is not tried again.
func collisions(now, old *int32, path *field.Path) field.ErrorList {
	var n, was int32
	if now != nil {
		n = *now
	}
	if old != nil {
		was = *old
	}
	errs := nonNegative(path, n)
	if n < was {
		errs = append(errs, field.Invalid(path, n, "cannot be decremented"))
	}
	return errs
}

// DaemonSet checks a DaemonSet.
func DaemonSet(ds, old *appsv1.DaemonSet) field.ErrorList {
	path := field.NewPath("spec")
	errs := selects("daemonset", ds.Spec.Selector, ds.Spec.Template.Labels, path)
	errs = append(errs, podTemplate("DaemonSet", &ds.Spec.Template, path.Child("template"))...)
	errs = append(errs, nonNegative(path.Child("minReadySeconds"), ds.Spec.MinReadySeconds)...)
	errs = append(errs, daemonStrategy(&ds.Spec.UpdateStrategy, path.Child("updateStrategy"))...)
	if n := ds.Spec.RevisionHistoryLimit; n != nil {
		errs = append(errs, nonNegative(path.Child("revisionHistoryLimit"), *n)...)
	}
	if old != nil {
		errs = append(errs, apivalidation.ValidateImmutableField(ds.Spec.Selector, old.Spec.Selector, path.Child("selector"))...)
	}
	return errs
}

func daemonStrategy(s *appsv1.DaemonSetUpdateStrategy, path *field.Path) field.ErrorList {
	switch s.Type {
	case appsv1.OnDeleteDaemonSetStrategyType:
		return nil
	case appsv1.RollingUpdateDaemonSetStrategyType:
	default:
		return field.ErrorList{field.NotSupported(path, s.Type, []appsv1.DaemonSetUpdateStrategyType{
			appsv1.RollingUpdateDaemonSetStrategyType, appsv1.OnDeleteDaemonSetStrategyType,
		})}
	}
	p := path.Child("rollingUpdate")
	if s.RollingUpdate == nil {
		return field.ErrorList{field.Required(p, "")}
	}
	unavailable, surge := s.RollingUpdate.MaxUnavailable, s.RollingUpdate.MaxSurge
	errs := share(unavailable, p.Child("maxUnavailable"))
	errs = append(errs, share(surge, p.Child("maxSurge"))...)
	switch {
	case isZero(unavailable) && isZero(surge):
		errs = append(errs, field.Required(p.Child("maxUnavailable"), "cannot be 0 when maxSurge is 0"))
	case !isZero(unavailable) && !isZero(surge):
		errs = append(errs, field.Invalid(p.Child("maxSurge"), surge, "may not be set when maxUnavailable is non-zero"))
	}
	return errs
}

// DaemonSetStatus checks the counts of a status.
func DaemonSetStatus(ds, old *appsv1.DaemonSet) field.ErrorList {
	s, path := &ds.Status, field.NewPath("status")
	var errs field.ErrorList
	for _, c := range []struct {
		name  string
		count int32
	}{
		{"currentNumberScheduled", s.CurrentNumberScheduled}, {"numberMisscheduled", s.NumberMisscheduled},
		{"desiredNumberScheduled", s.DesiredNumberScheduled}, {"numberReady", s.NumberReady},
		{"updatedNumberScheduled", s.UpdatedNumberScheduled}, {"numberAvailable", s.NumberAvailable},
		{"numberUnavailable", s.NumberUnavailable},
	} {
		errs = append(errs, nonNegative(path.Child(c.name), c.count)...)
	}
	errs = append(errs, nonNegative(path.Child("observedGeneration"), s.ObservedGeneration)...)
	return append(errs, collisions(s.CollisionCount, old.Status.CollisionCount, path.Child("collisionCount"))...)
}
