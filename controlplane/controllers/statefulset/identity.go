package statefulset

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ordinalOf is the ordinal of a pod, from its name; ok is false for a pod that is
// not named after the set.
func ordinalOf(set *appsv1.StatefulSet, pod metav1.Object) (n int, ok bool) {
	digits, ok := strings.CutPrefix(pod.GetName(), set.Name+"-")
	if !ok {
		return 0, false
	}
	v, err := strconv.ParseUint(digits, 10, 31)
	return int(v), err == nil && strconv.FormatUint(v, 10) == digits
}

func podName(set *appsv1.StatefulSet, ordinal int) string {
	return set.Name + "-" + strconv.Itoa(ordinal)
}

func claimName(set *appsv1.StatefulSet, template *corev1.PersistentVolumeClaim, ordinal int) string {
	return template.Name + "-" + podName(set, ordinal)
}

// newPod is the pod of an ordinal at a revision ("StatefulSets", section "Pod
// Identity").
func newPod(set *appsv1.StatefulSet, rev Revision, ordinal int) *corev1.Pod {
	t := rev.Template.DeepCopy()
	p := &corev1.Pod{ObjectMeta: t.ObjectMeta, Spec: t.Spec}
	p.Name, p.Namespace, p.GenerateName = podName(set, ordinal), set.Namespace, set.Name+"-"
	p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(set, kind)}
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	maps.Copy(p.Labels, identityLabels(p.Name, ordinal))
	p.Labels[appsv1.StatefulSetRevisionLabel] = rev.Name
	p.Spec.Hostname, p.Spec.Subdomain = p.Name, set.Spec.ServiceName
	p.Spec.Volumes = volumes(set, p.Spec.Volumes, ordinal)
	return p
}

func identityLabels(name string, ordinal int) map[string]string {
	return map[string]string{
		appsv1.StatefulSetPodNameLabel: name,
		appsv1.PodIndexLabel:           strconv.Itoa(ordinal),
	}
}

// identified says whether a pod carries the labels of its identity; one that was
// adopted may not.
func identified(pod *corev1.Pod, ordinal int) bool {
	for k, v := range identityLabels(pod.Name, ordinal) {
		if pod.Labels[k] != v {
			return false
		}
	}
	return true
}

// volumes puts the claims of an ordinal in front of the template's volumes, in the
// place of those of the same name.
func volumes(set *appsv1.StatefulSet, template []corev1.Volume, ordinal int) []corev1.Volume {
	var out []corev1.Volume
	for i := range set.Spec.VolumeClaimTemplates {
		t := &set.Spec.VolumeClaimTemplates[i]
		out = append(out, corev1.Volume{Name: t.Name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claimName(set, t, ordinal)},
		}})
	}
	for _, v := range template {
		if !slices.ContainsFunc(out, func(o corev1.Volume) bool { return o.Name == v.Name }) {
			out = append(out, v)
		}
	}
	return out
}
