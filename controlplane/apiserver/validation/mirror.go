package validation

import (
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// A static pod is one that a node runs from a file of its own. The API has a mirror of
// it, which the node makes ("Create static Pods" in Kubernetes' documentation).

// IsMirror says whether a pod is the mirror of a static pod.
func IsMirror(pod *corev1.Pod) bool {
	_, ok := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return ok
}

func mirrorKey() *field.Path {
	return field.NewPath("metadata", "annotations").Key(corev1.MirrorPodAnnotationKey)
}

func mirrorCreate(pod *corev1.Pod) field.ErrorList {
	if value, ok := pod.Annotations[corev1.MirrorPodAnnotationKey]; ok && pod.Spec.NodeName == "" {
		return field.ErrorList{field.Invalid(mirrorKey(), value, "must set spec.nodeName if mirror pod annotation is set")}
	}
	return nil
}

// mirrorUpdate: no pod becomes a mirror, and no mirror another one's.
func mirrorUpdate(pod, old *corev1.Pod) field.ErrorList {
	is, was := IsMirror(pod), IsMirror(old)
	switch {
	case was && (!is || pod.Annotations[corev1.MirrorPodAnnotationKey] != old.Annotations[corev1.MirrorPodAnnotationKey]):
		return field.ErrorList{field.Forbidden(mirrorKey(), "may not remove or update mirror pod annotation")}
	case is && !was:
		return field.ErrorList{field.Forbidden(mirrorKey(), "may not add mirror pod annotation")}
	}
	return nil
}

// StaticPod checks a pod out of a node's file as kubelet does: it is as valid as any
// other and refers to nothing in the API, without which it has to run.
func StaticPod(pod *corev1.Pod) error {
	errs := apivalidation.ValidateObjectMeta(&pod.ObjectMeta, true, apivalidation.NameIsDNSSubdomain, field.NewPath("metadata"))
	errs = append(errs, Pod(pod, nil)...)
	if err := errs.ToAggregate(); err != nil {
		return fmt.Errorf("invalid pod: %w", err)
	}
	what, err := APIReference(pod)
	if err == nil && what != "" {
		err = fmt.Errorf("static pods may not reference %s", what)
	}
	return err
}

// APIReference names the first kind of object that a pod refers to, in the words of
// kubelet and of the NodeRestriction admission plugin; "" if it refers to none.
func APIReference(pod *corev1.Pod) (string, error) {
	spec := &pod.Spec
	secrets, configMaps := len(spec.ImagePullSecrets) > 0, false
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			for _, f := range list[i].EnvFrom {
				secrets, configMaps = secrets || f.SecretRef != nil, configMaps || f.ConfigMapRef != nil
			}
			for _, e := range list[i].Env {
				if from := e.ValueFrom; from != nil {
					secrets, configMaps = secrets || from.SecretKeyRef != nil, configMaps || from.ConfigMapKeyRef != nil
				}
			}
		}
	}
	switch {
	case spec.ServiceAccountName != "":
		return "serviceaccounts", nil
	case secrets:
		return "secrets", nil
	case configMaps:
		return "configmaps", nil
	case len(spec.ResourceClaims) > 0:
		return "resourceclaims", nil
	}
	for i := range spec.Volumes {
		if what, err := volumeReference(&spec.Volumes[i]); what != "" || err != nil {
			return what, err
		}
	}
	return "", nil
}

func volumeReference(v *corev1.Volume) (string, error) {
	switch {
	case v.DownwardAPI != nil, v.EmptyDir != nil, v.HostPath != nil, v.Image != nil:
		return "", nil
	case v.ConfigMap != nil:
		return "configmaps", nil
	case v.Secret != nil:
		return "secrets", nil
	case v.PersistentVolumeClaim != nil:
		return "persistentvolumeclaims", nil
	case v.Ephemeral != nil:
		return "persistentvolumeclaims (via ephemeral volumes)", nil
	case v.CSI != nil:
		return "csidrivers (via CSI volumes)", nil
	case v.Projected == nil:
		return "", fmt.Errorf("unknown volume type for volume %q", v.Name)
	}
	for _, s := range v.Projected.Sources {
		switch {
		case s.DownwardAPI != nil:
		case s.ConfigMap != nil:
			return "configmaps", nil
		case s.Secret != nil:
			return "secrets", nil
		case s.ServiceAccountToken != nil:
			return "serviceaccounts (via projected volumes)", nil
		case s.ClusterTrustBundle != nil:
			return "clustertrustbundles", nil
		case s.PodCertificate != nil:
			return "podcertificates", nil
		default:
			return "", fmt.Errorf("unknown source for projected volume %q", v.Name)
		}
	}
	return "", nil
}

// MirrorAccount says why a mirror cannot be, in the words of the ServiceAccount
// admission plugin, or nil.
func MirrorAccount(pod *corev1.Pod) error {
	what, err := APIReference(pod)
	switch what {
	case "serviceaccounts":
		return errors.New("a mirror pod may not reference service accounts")
	case "secrets":
		return errors.New("a mirror pod may not reference secrets")
	case "serviceaccounts (via projected volumes)":
		return errors.New("a mirror pod may not use ServiceAccountToken volume projections")
	}
	return err
}
