package defaults

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

const (
	defaultServiceAccount = "default"
	// tolerationSeconds is how long a pod stays on a node that is gone.
	tolerationSeconds = int64(300)
)

// AdmitPod does what kube-apiserver's admission plugins ServiceAccount and
// DefaultTolerationSeconds do to a Pod that is created. What its priority class says
// has been written into it before.
func AdmitPod(pod *corev1.Pod) {
	unset(&pod.Spec.ServiceAccountName, defaultServiceAccount)
	pod.Spec.DeprecatedServiceAccount = pod.Spec.ServiceAccountName
	missing(&pod.Spec.Priority, 0)
	missing(&pod.Spec.PreemptionPolicy, corev1.PreemptLowerPriority)
	for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		if !tolerates(pod.Spec.Tolerations, key) {
			seconds := tolerationSeconds
			pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{
				Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds,
			})
		}
	}
}

func tolerates(list []corev1.Toleration, key string) bool {
	for _, t := range list {
		if (t.Key == key || t.Key == "") && (t.Effect == corev1.TaintEffectNoExecute || t.Effect == "") {
			return true
		}
	}
	return false
}

// QOSClass is a Pod's quality of service class ("Pod Quality of Service Classes"):
// Guaranteed when every container has equal requests and limits for CPU and
// memory, BestEffort when none has any.
func QOSClass(pod *corev1.Pod) corev1.PodQOSClass {
	guaranteed, anything := true, false
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
				request, limit := quantity(list[i].Resources.Requests, name), quantity(list[i].Resources.Limits, name)
				if !request.IsZero() || !limit.IsZero() {
					anything = true
				}
				if limit.IsZero() || (!request.IsZero() && request.Cmp(limit) != 0) {
					guaranteed = false
				}
			}
		}
	}
	switch {
	case !anything:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

func quantity(list corev1.ResourceList, name corev1.ResourceName) resource.Quantity {
	return list[name]
}
