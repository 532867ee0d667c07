package persistentvolume

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	storage "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"
)

// Snapshot is what a decision is made of, besides the object that it is about.
type Snapshot struct {
	Volumes []*corev1.PersistentVolume
	Classes []*storagev1.StorageClass
	Nodes   []*corev1.Node
}

// Step is what is to be done about a claim or a volume. The objects are copies as
// they should be; what is nil stays as it is.
type Step struct {
	// Create is a volume that does not exist yet.
	Create *corev1.PersistentVolume
	// Volume and Claim are written in this order: a claim never names a volume that
	// could still be taken by another.
	Volume *corev1.PersistentVolume
	Claim  *corev1.PersistentVolumeClaim
	// Delete is a volume that nobody needs any more.
	Delete *corev1.PersistentVolume
	// Event is told to who looks at the object.
	Event *Event
}

// Event is one event.
type Event struct{ Type, Reason, Message string }

func normal(reason, format string, args ...any) *Event {
	return &Event{corev1.EventTypeNormal, reason, fmt.Sprintf(format, args...)}
}

func warning(reason, format string, args ...any) *Event {
	return &Event{corev1.EventTypeWarning, reason, fmt.Sprintf(format, args...)}
}

// DecideClaim says what is to be done about a claim. See "Persistent Volumes",
// "Lifecycle of a volume and claim", in the Kubernetes documentation.
func DecideClaim(claim *corev1.PersistentVolumeClaim, s Snapshot) Step {
	if metav1.HasAnnotation(claim.ObjectMeta, storage.AnnBindCompleted) {
		return boundClaim(claim, s)
	}
	if claim.DeletionTimestamp != nil {
		return Step{}
	}
	if claim.Spec.VolumeName != "" {
		return preboundClaim(claim, s)
	}
	if !storage.PersistentVolumeClaimHasClass(claim) {
		if class := s.defaultClass(); class != nil {
			claim = claim.DeepCopy()
			claim.Spec.StorageClassName = &class.Name
			return Step{Claim: claim}
		}
	}
	class := s.class(storage.GetPersistentVolumeClaimClass(claim))
	// The scheduler chooses among volumes and nodes at the same time, when there is
	// a pod ("Volume Binding Mode").
	delayed := class != nil && ptr.Deref(class.VolumeBindingMode, "") == storagev1.VolumeBindingWaitForFirstConsumer &&
		!storage.IsDelayBindingProvisioning(claim)
	switch v := s.match(claim, delayed); {
	case v != nil:
		return bind(claim, v)
	case delayed:
		return pending(claim, normal("WaitForFirstConsumer", "waiting for first consumer to be created before binding"))
	case storage.GetPersistentVolumeClaimClass(claim) == "":
		return pending(claim, normal("FailedBinding", "no persistent volumes available for this claim and no storage class is set"))
	}
	return provision(claim, class, s)
}

// boundClaim keeps a claim and its volume bound, or says that the volume is lost.
func boundClaim(claim *corev1.PersistentVolumeClaim, s Snapshot) Step {
	v := s.volume(claim.Spec.VolumeName)
	switch {
	case claim.Spec.VolumeName == "":
		return lost(claim, "ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")
	case v == nil:
		return lost(claim, "ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
	case v.Spec.ClaimRef == nil, v.Spec.ClaimRef.UID == claim.UID:
		return bind(claim, v)
	}
	return lost(claim, "ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
}

// preboundClaim binds a claim to the volume that its user asked for by name.
func preboundClaim(claim *corev1.PersistentVolumeClaim, s Snapshot) Step {
	v := s.volume(claim.Spec.VolumeName)
	switch {
	case v == nil:
		return pending(claim, nil)
	case v.Spec.ClaimRef == nil:
		if why := mismatch(claim, v); why != "" {
			return pending(claim, warning("VolumeMismatch", "Cannot bind to requested volume %q: %s", v.Name, why))
		}
		return bind(claim, v)
	case storage.IsVolumeBoundToClaim(v, claim):
		return bind(claim, v)
	}
	return pending(claim, warning("FailedBinding", "volume %q already bound to a different claim.", v.Name))
}

// mismatch says why a volume cannot be what a claim asks for, if so.
func mismatch(claim *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) string {
	size, have := claim.Spec.Resources.Requests[corev1.ResourceStorage], v.Spec.Capacity[corev1.ResourceStorage]
	switch {
	case have.Cmp(size) < 0:
		return "requested PV is too small"
	case storage.GetPersistentVolumeClass(v) != storage.GetPersistentVolumeClaimClass(claim):
		return "storageClassName does not match"
	case storage.CheckVolumeModeMismatches(&claim.Spec, &v.Spec):
		return "incompatible volumeMode"
	case !storage.CheckAccessModes(claim, v):
		return "incompatible accessMode"
	}
	return ""
}

// match finds the volume for a claim: the one that names it, or else the smallest
// that is large enough. For a claim whose binding is delayed only the former counts.
func (s Snapshot) match(claim *corev1.PersistentVolumeClaim, delayed bool) *corev1.PersistentVolume {
	var fit []*corev1.PersistentVolume
	for _, v := range s.Volumes {
		if storage.IsVolumeBoundToClaim(v, claim) || storage.CheckAccessModes(claim, v) {
			fit = append(fit, v)
		}
	}
	// It fails on a selector that the API does not let in.
	v, err := storage.FindMatchingVolume(claim, fit, nil, nil, delayed, true)
	if err != nil {
		return nil
	}
	return v
}

// bind makes claim and volume name each other.
func bind(claim *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) Step {
	bound, _, err := storage.GetBindVolumeToClaim(v, claim)
	if err != nil {
		return pending(claim, warning("FailedBinding", "%v", err))
	}
	grow(bound, claim)
	bound.Status.Phase, bound.Status.Reason, bound.Status.Message = corev1.VolumeBound, "", ""
	claim = claim.DeepCopy()
	if claim.Spec.VolumeName != bound.Name {
		claim.Spec.VolumeName = bound.Name
		metav1.SetMetaDataAnnotation(&claim.ObjectMeta, storage.AnnBoundByController, "yes")
	}
	if !metav1.HasAnnotation(claim.ObjectMeta, storage.AnnBindCompleted) {
		metav1.SetMetaDataAnnotation(&claim.ObjectMeta, storage.AnnBindCompleted, "yes")
	}
	claim.Status.Phase = corev1.ClaimBound
	claim.Status.AccessModes, claim.Status.Capacity = bound.Spec.AccessModes, bound.Spec.Capacity
	return Step{Volume: bound, Claim: claim}
}

func pending(claim *corev1.PersistentVolumeClaim, e *Event) Step {
	return Step{Claim: withoutVolume(claim, corev1.ClaimPending), Event: e}
}

func lost(claim *corev1.PersistentVolumeClaim, reason, message string) Step {
	step := Step{Claim: withoutVolume(claim, corev1.ClaimLost)}
	if claim.Status.Phase != corev1.ClaimLost {
		step.Event = warning(reason, "%s", message)
	}
	return step
}

func withoutVolume(claim *corev1.PersistentVolumeClaim, phase corev1.PersistentVolumeClaimPhase) *corev1.PersistentVolumeClaim {
	claim = claim.DeepCopy()
	claim.Status.Phase, claim.Status.AccessModes, claim.Status.Capacity = phase, nil, nil
	return claim
}

func (s Snapshot) volume(name string) *corev1.PersistentVolume {
	for _, v := range s.Volumes {
		if v.Name == name {
			return v
		}
	}
	return nil
}

func (s Snapshot) class(name string) *storagev1.StorageClass {
	for _, c := range s.Classes {
		if c.Name == name {
			return c
		}
	}
	return nil
}

func (s Snapshot) node(name string) *corev1.Node {
	for _, n := range s.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// defaultClass is the newest of the classes that are marked as default.
func (s Snapshot) defaultClass() *storagev1.StorageClass {
	var best *storagev1.StorageClass
	for _, c := range s.Classes {
		if c.Annotations["storageclass.kubernetes.io/is-default-class"] != "true" {
			continue
		}
		if best == nil || best.CreationTimestamp.Before(&c.CreationTimestamp) ||
			(best.CreationTimestamp.Equal(&c.CreationTimestamp) && c.Name < best.Name) {
			best = c
		}
	}
	return best
}
