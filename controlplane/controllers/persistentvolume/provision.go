package persistentvolume

import (
	"fmt"
	"path"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/reference"
	storage "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"
)

// Names that the workers know, too (docs/contracts.md).
const (
	// Provisioner is the provisioner of classes whose volumes are directories on the
	// node of their pod, and the finalizer by which such a directory holds its volume.
	Provisioner = "gitk8s.dev/local-path"
	// LabelNode names the node that has a volume's directory.
	LabelNode = "gitk8s.dev/node"
	// annotationRoot of a Node is the directory in which its volumes are.
	annotationRoot = "gitk8s.dev/volume-root"
)

// maxFileName is the longest name that Linux has for a directory.
const maxFileName = 255

// provision makes a volume for a claim, or says why not. The node's worker makes
// the directory.
func provision(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, s Snapshot) Step {
	fail := func(format string, args ...any) Step {
		return pending(claim, warning("ProvisioningFailed", format, args...))
	}
	switch {
	case class == nil:
		return fail("storageclass.storage.k8s.io %q not found", storage.GetPersistentVolumeClaimClass(claim))
	case class.Provisioner == storage.NotSupportedProvisioner:
		return fail("no volume plugin matched name: %s", class.Provisioner)
	case class.Provisioner != Provisioner:
		step := pending(claim, normal("ExternalProvisioning", "Waiting for a volume to be created either by the external provisioner '%s' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.", class.Provisioner))
		metav1.SetMetaDataAnnotation(&step.Claim.ObjectMeta, storage.AnnStorageProvisioner, class.Provisioner)
		return step
	case !storage.IsDelayBindingProvisioning(claim):
		return fail("storageclass %q binds at once, and a local volume needs the node of its pod: use volumeBindingMode WaitForFirstConsumer", class.Name)
	case claim.Spec.Selector != nil:
		return fail("claim.spec.selector is not supported by %s", Provisioner)
	case ptr.Deref(claim.Spec.VolumeMode, corev1.PersistentVolumeFilesystem) != corev1.PersistentVolumeFilesystem:
		return fail("volumeMode %s is not supported by %s", *claim.Spec.VolumeMode, Provisioner)
	case slices.ContainsFunc(claim.Spec.AccessModes, func(m corev1.PersistentVolumeAccessMode) bool {
		return m != corev1.ReadWriteOnce && m != corev1.ReadWriteOncePod
	}):
		return fail("%s only supports the access modes ReadWriteOnce and ReadWriteOncePod", Provisioner)
	}
	name := claim.Annotations[storage.AnnSelectedNode]
	node := s.node(name)
	if node == nil || node.Annotations[annotationRoot] == "" || node.Labels[corev1.LabelHostname] == "" {
		// The scheduler chooses another.
		step := fail("node %q has no room for volumes", name)
		delete(step.Claim.Annotations, storage.AnnSelectedNode)
		return step
	}
	v, err := volumeFor(claim, class, node)
	if err != nil {
		return fail("%v", err)
	}
	if s.volume(v.Name) != nil {
		return pending(claim, nil) // it is another's now; nothing more can be done by itself
	}
	step := pending(claim, normal("ProvisioningSucceeded", "Successfully provisioned volume %s", v.Name))
	step.Create = v
	return step
}

// volumeFor is the volume of a claim on a node, bound to the claim from the start.
func volumeFor(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, node *corev1.Node) (*corev1.PersistentVolume, error) {
	ref, err := reference.GetReference(scheme.Scheme, claim)
	if err != nil {
		return nil, err
	}
	name := "pvc-" + string(claim.UID)
	// People find their data by the name.
	dir := fmt.Sprintf("%s_%s_%s", name, claim.Namespace, claim.Name)
	if len(dir) > maxFileName {
		dir = name
	}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name:        name,
			Labels:      map[string]string{LabelNode: node.Name},
			Annotations: map[string]string{storage.AnnDynamicallyProvisioned: Provisioner},
			Finalizers:  []string{Provisioner},
		},
		Spec: corev1.PersistentVolumeSpec{
			AccessModes:                   claim.Spec.AccessModes,
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage]},
			ClaimRef:                      ref,
			PersistentVolumeReclaimPolicy: ptr.Deref(class.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete),
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path.Join(node.Annotations[annotationRoot], dir)}},
			StorageClassName:              class.Name,
			VolumeMode:                    claim.Spec.VolumeMode,
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node.Labels[corev1.LabelHostname]}}},
			}}}},
		},
	}, nil
}

// grow gives a claim the size that it asks for. A directory has no size of its own:
// that the class allows it has been seen to by the API.
func grow(v *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) {
	size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if v.Annotations[storage.AnnDynamicallyProvisioned] == Provisioner && size.Cmp(v.Spec.Capacity[corev1.ResourceStorage]) > 0 {
		v.Spec.Capacity[corev1.ResourceStorage] = size
	}
}
