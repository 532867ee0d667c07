package apiserver

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/storage/names"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/controlplane/apiserver/validation"
)

const (
	accountMountPath    = "/var/run/secrets/kubernetes.io/serviceaccount"
	accountVolumePrefix = "kube-api-access-"
	// accountTokenSeconds is an hour and a bit, as in kube-apiserver, where the odd
	// number tells these tokens from those that somebody asked for.
	accountTokenSeconds = 60*60 + 7
	rootCAConfigMap     = "kube-root-ca.crt"
	defaultAccount      = "default"
)

// serviceAccounts does what the ServiceAccount admission plugin of kube-apiserver
// does to a new pod, but for its name, which defaults.AdmitPod sets: it gives it
// the account's image pull secrets and mounts a token for the API.
type serviceAccounts struct{ server *Server }

var _ admission.MutationInterface = serviceAccounts{}

// Handles implements admission.Interface.
func (serviceAccounts) Handles(op admission.Operation) bool { return op == admission.Create }

// Admit implements admission.MutationInterface.
func (p serviceAccounts) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, ok := a.GetObject().(*corev1.Pod)
	if !ok || a.GetResource().GroupResource() != corev1.Resource("pods") || a.GetSubresource() != "" {
		return nil
	}
	if validation.IsMirror(pod) {
		if err := validation.MirrorAccount(pod); err != nil {
			return admission.NewForbidden(a, err)
		}
		return nil
	}
	account, err := p.account(ctx, pod)
	if err != nil {
		return admission.NewForbidden(a, fmt.Errorf("error looking up service account %s/%s: %w", a.GetNamespace(), pod.Spec.ServiceAccountName, err))
	}
	if len(pod.Spec.ImagePullSecrets) == 0 {
		pod.Spec.ImagePullSecrets = append(pod.Spec.ImagePullSecrets, account.ImagePullSecrets...)
	}
	if automounts(pod, account) {
		mountToken(pod)
	}
	return nil
}

// account is the pod's service account. The one named default is on its way where
// it is not there: the namespace controller makes it, and the node waits for it.
func (p serviceAccounts) account(ctx context.Context, pod *corev1.Pod) (*corev1.ServiceAccount, error) {
	name := pod.Spec.ServiceAccountName
	if name == "" {
		name = defaultAccount
	}
	accounts := p.server.stores[corev1.Resource("serviceaccounts")]
	obj, err := accounts.Get(ctx, name, &metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		obj, err = accounts.Get(ctx, name, &metav1.GetOptions{})
	}
	switch {
	case apierrors.IsNotFound(err) && name == defaultAccount:
		return &corev1.ServiceAccount{}, nil
	case apierrors.IsNotFound(err):
		// The store words it for the resource of the request.
		return nil, apierrors.NewNotFound(corev1.Resource("serviceaccount"), name)
	case err != nil:
		return nil, err
	}
	return obj.(*corev1.ServiceAccount), nil
}

// automounts says whether a pod gets a token; the pod's word goes before its
// account's ("Configure Service Accounts for Pods").
func automounts(pod *corev1.Pod, account *corev1.ServiceAccount) bool {
	if v := pod.Spec.AutomountServiceAccountToken; v != nil {
		return *v
	}
	return ptr.Deref(account.AutomountServiceAccountToken, true)
}

// mountToken mounts a volume with token, authority and namespace in every container
// that has nothing at that path.
func mountToken(pod *corev1.Pod) {
	name, there := names.SimpleNameGenerator.GenerateName(accountVolumePrefix), false
	for i := range pod.Spec.Volumes {
		if strings.HasPrefix(pod.Spec.Volumes[i].Name, accountVolumePrefix) {
			name, there = pod.Spec.Volumes[i].Name, true
		}
	}
	mounted := false
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if mountsAt(&list[i], accountMountPath) {
				continue
			}
			list[i].VolumeMounts = append(list[i].VolumeMounts, corev1.VolumeMount{Name: name, ReadOnly: true, MountPath: accountMountPath})
			mounted = true
		}
	}
	if mounted && !there {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: tokenVolume()})
	}
}

func mountsAt(c *corev1.Container, path string) bool {
	for _, m := range c.VolumeMounts {
		if m.MountPath == path {
			return true
		}
	}
	return false
}

func tokenVolume() corev1.VolumeSource {
	return corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		DefaultMode: ptr.To(corev1.ProjectedVolumeSourceDefaultMode),
		Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: ptr.To[int64](accountTokenSeconds)}},
			{ConfigMap: &corev1.ConfigMapProjection{
				LocalObjectReference: corev1.LocalObjectReference{Name: rootCAConfigMap},
				Items:                []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
			}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
				{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"}},
			}}},
		},
	}}
}
