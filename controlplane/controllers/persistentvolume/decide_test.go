package persistentvolume

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	storage "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"
)

// With change, one thing of an object is set.
type (
	claimChange  func(*corev1.PersistentVolumeClaim)
	volumeChange func(*corev1.PersistentVolume)
)

func newClaim(class string, change ...claimChange) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "data", UID: "u1"},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			StorageClassName: &class,
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("2Gi")}},
		},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func selected(node string) claimChange {
	return func(c *corev1.PersistentVolumeClaim) {
		metav1.SetMetaDataAnnotation(&c.ObjectMeta, storage.AnnSelectedNode, node)
	}
}

func boundClaimTo(volume string) claimChange {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.VolumeName, c.Status.Phase = volume, corev1.ClaimBound
		metav1.SetMetaDataAnnotation(&c.ObjectMeta, storage.AnnBindCompleted, "yes")
	}
}

func wants(volume string) claimChange {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = volume }
}

func newVolume(name, size, class string, change ...volumeChange) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce, corev1.ReadOnlyMany},
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			StorageClassName:              class,
		},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeAvailable},
	}
	for _, f := range change {
		f(v)
	}
	return v
}

func claimedBy(uid types.UID) volumeChange {
	return func(v *corev1.PersistentVolume) {
		v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "ns", Name: "data", UID: uid}
	}
}

func phase(p corev1.PersistentVolumePhase) volumeChange {
	return func(v *corev1.PersistentVolume) { v.Status.Phase = p }
}

func reclaim(p corev1.PersistentVolumeReclaimPolicy) volumeChange {
	return func(v *corev1.PersistentVolume) { v.Spec.PersistentVolumeReclaimPolicy = p }
}

func provisionedBy(who string) volumeChange {
	return func(v *corev1.PersistentVolume) {
		metav1.SetMetaDataAnnotation(&v.ObjectMeta, storage.AnnDynamicallyProvisioned, who)
	}
}

func deleted(v *corev1.PersistentVolume) {
	v.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
}

func classes() []*storagev1.StorageClass {
	class := func(name, provisioner string, mode storagev1.VolumeBindingMode) *storagev1.StorageClass {
		return &storagev1.StorageClass{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: &mode,
			ReclaimPolicy: ptr.To(corev1.PersistentVolumeReclaimDelete),
		}
	}
	return []*storagev1.StorageClass{
		class("local-path", Provisioner, storagev1.VolumeBindingWaitForFirstConsumer),
		class("at-once", Provisioner, storagev1.VolumeBindingImmediate),
		class("static", storage.NotSupportedProvisioner, storagev1.VolumeBindingImmediate),
		class("cloud", "example.com/disk", storagev1.VolumeBindingImmediate),
	}
}

func nodes() []*corev1.Node {
	return []*corev1.Node{
		{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{corev1.LabelHostname: "host-a"}, Annotations: map[string]string{annotationRoot: "/var/a/volumes"}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "bare", Labels: map[string]string{corev1.LabelHostname: "bare"}}},
	}
}

// result words a step: "volume=phase claim=phase event".
func result(step Step) string {
	var out []string
	if step.Create != nil {
		out = append(out, "create "+step.Create.Name)
	}
	if v := step.Volume; v != nil {
		out = append(out, v.Name+"="+string(v.Status.Phase))
	}
	if c := step.Claim; c != nil {
		out = append(out, strings.TrimSuffix(c.Spec.VolumeName+"="+string(c.Status.Phase), "="))
	}
	if step.Delete != nil {
		out = append(out, "delete "+step.Delete.Name)
	}
	if step.Event != nil {
		out = append(out, step.Event.Reason)
	}
	return strings.Join(out, " ")
}

func TestDecideClaim(t *testing.T) {
	for _, c := range []struct {
		name    string
		claim   *corev1.PersistentVolumeClaim
		volumes []*corev1.PersistentVolume
		want    string
	}{
		{"nothing to bind to", newClaim(""), nil, "=Pending FailedBinding"},
		{"smallest that is large enough", newClaim(""), []*corev1.PersistentVolume{newVolume("big", "9Gi", ""), newVolume("fits", "3Gi", ""), newVolume("small", "1Gi", "")}, "fits=Bound fits=Bound"},
		{"of another class", newClaim(""), []*corev1.PersistentVolume{newVolume("v", "2Gi", "fast")}, "=Pending FailedBinding"},
		{"taken", newClaim(""), []*corev1.PersistentVolume{newVolume("v", "2Gi", "", claimedBy("u2"))}, "=Pending FailedBinding"},
		{"kept for the claim by name", newClaim(""), []*corev1.PersistentVolume{newVolume("v", "2Gi", ""), newVolume("mine", "5Gi", "other", claimedBy(""))}, "mine=Bound mine=Bound"},
		{"not looked at yet", newClaim(""), []*corev1.PersistentVolume{newVolume("v", "2Gi", "", phase(corev1.VolumePending))}, "=Pending FailedBinding"},
		{"released", newClaim(""), []*corev1.PersistentVolume{newVolume("v", "2Gi", "", phase(corev1.VolumeReleased))}, "=Pending FailedBinding"},
		{"being deleted", newClaim(""), []*corev1.PersistentVolume{newVolume("v", "2Gi", "", deleted)}, "=Pending FailedBinding"},
		{"access modes", newClaim("", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		}), []*corev1.PersistentVolume{newVolume("v", "2Gi", "")}, "=Pending FailedBinding"},
		{"volume mode", newClaim("", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock) }),
			[]*corev1.PersistentVolume{newVolume("v", "2Gi", "")}, "=Pending FailedBinding"},
		{"selector", newClaim("", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"disk": "ssd"}}
		}), []*corev1.PersistentVolume{newVolume("v", "2Gi", ""), newVolume("ssd", "4Gi", "", func(v *corev1.PersistentVolume) { v.Labels = map[string]string{"disk": "ssd"} })}, "ssd=Bound ssd=Bound"},

		{"waits for a pod", newClaim("local-path"), []*corev1.PersistentVolume{newVolume("v", "2Gi", "local-path")}, "=Pending WaitForFirstConsumer"},
		{"waits, and is chosen by a volume", newClaim("local-path"), []*corev1.PersistentVolume{newVolume("v", "2Gi", "local-path", claimedBy(""))}, "v=Bound v=Bound"},
		{"has a node", newClaim("local-path", selected("a")), nil, "create pvc-u1 =Pending ProvisioningSucceeded"},
		{"has a node that is gone", newClaim("local-path", selected("gone")), nil, "=Pending ProvisioningFailed"},
		{"has a node without a place for volumes", newClaim("local-path", selected("bare")), nil, "=Pending ProvisioningFailed"},
		{"provisioned", newClaim("local-path", selected("a")), []*corev1.PersistentVolume{newVolume("pvc-u1", "2Gi", "local-path", claimedBy("u1"))}, "pvc-u1=Bound pvc-u1=Bound"},
		{"local at once", newClaim("at-once"), nil, "=Pending ProvisioningFailed"},
		{"class without provisioner", newClaim("static"), nil, "=Pending ProvisioningFailed"},
		{"class that is not there", newClaim("absent"), nil, "=Pending ProvisioningFailed"},
		{"class of another provisioner", newClaim("cloud"), nil, "=Pending ExternalProvisioning"},
		{"many writers", newClaim("local-path", selected("a"), func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		}), nil, "=Pending ProvisioningFailed"},
		{"block device", newClaim("local-path", selected("a"), func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock) }), nil, "=Pending ProvisioningFailed"},

		{"asks for a volume", newClaim("", wants("v")), []*corev1.PersistentVolume{newVolume("v", "2Gi", "")}, "v=Bound v=Bound"},
		{"asks for one that is not there", newClaim("", wants("v")), nil, "v=Pending"},
		{"asks for one that is too small", newClaim("", wants("v")), []*corev1.PersistentVolume{newVolume("v", "1Gi", "")}, "v=Pending VolumeMismatch"},
		{"asks for one of another class", newClaim("", wants("v")), []*corev1.PersistentVolume{newVolume("v", "2Gi", "x")}, "v=Pending VolumeMismatch"},
		{"asks for another's", newClaim("", wants("v")), []*corev1.PersistentVolume{newVolume("v", "2Gi", "", claimedBy("u2"))}, "v=Pending FailedBinding"},
		{"asks for its own", newClaim("", wants("v")), []*corev1.PersistentVolume{newVolume("v", "2Gi", "", claimedBy("u1"))}, "v=Bound v=Bound"},

		{"bound", newClaim("", boundClaimTo("v")), []*corev1.PersistentVolume{newVolume("v", "2Gi", "", claimedBy("u1"), phase(corev1.VolumeBound))}, "v=Bound v=Bound"},
		{"bound to a volume that has forgotten it", newClaim("", boundClaimTo("v")), []*corev1.PersistentVolume{newVolume("v", "2Gi", "")}, "v=Bound v=Bound"},
		{"volume lost", newClaim("", boundClaimTo("v")), nil, "v=Lost ClaimLost"},
		{"volume taken", newClaim("", boundClaimTo("v")), []*corev1.PersistentVolume{newVolume("v", "2Gi", "", claimedBy("u2"))}, "v=Lost ClaimMisbound"},
		{"lost, as known", newClaim("", boundClaimTo("v"), func(c *corev1.PersistentVolumeClaim) { c.Status.Phase = corev1.ClaimLost }), nil, "v=Lost"},
		{"deleted before it was bound", newClaim("", func(c *corev1.PersistentVolumeClaim) { c.DeletionTimestamp = &metav1.Time{} }), []*corev1.PersistentVolume{newVolume("v", "2Gi", "")}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := c.claim.DeepCopy()
			step := DecideClaim(c.claim, Snapshot{Volumes: c.volumes, Classes: classes(), Nodes: nodes()})
			if got := result(step); got != c.want {
				t.Errorf("got %q, want %q (%+v)", got, c.want, step.Event)
			}
			if !sameClaim(before, c.claim) {
				t.Error("the claim itself was changed")
			}
		})
	}
}

func sameClaim(a, b *corev1.PersistentVolumeClaim) bool { return a.String() == b.String() }

func TestBinding(t *testing.T) {
	step := DecideClaim(newClaim(""), Snapshot{Volumes: []*corev1.PersistentVolume{newVolume("v", "3Gi", "")}})
	v, claim := step.Volume, step.Claim
	if ref := v.Spec.ClaimRef; ref == nil || ref.UID != "u1" || ref.Kind != "PersistentVolumeClaim" || v.Annotations[storage.AnnBoundByController] != "yes" {
		t.Errorf("volume %+v", v)
	}
	size := claim.Status.Capacity[corev1.ResourceStorage]
	if claim.Spec.VolumeName != "v" || claim.Annotations[storage.AnnBindCompleted] != "yes" || claim.Annotations[storage.AnnBoundByController] != "yes" ||
		size.String() != "3Gi" || len(claim.Status.AccessModes) != 2 {
		t.Errorf("claim %+v", claim)
	}
	step = DecideClaim(newClaim("", wants("v")), Snapshot{Volumes: []*corev1.PersistentVolume{newVolume("v", "3Gi", "", claimedBy(""))}})
	if step.Volume.Annotations[storage.AnnBoundByController] != "" || step.Claim.Annotations[storage.AnnBoundByController] != "" {
		t.Error("what its user has bound is said to be bound by the controller")
	}
	// A second look changes nothing.
	again := DecideClaim(step.Claim, Snapshot{Volumes: []*corev1.PersistentVolume{step.Volume}})
	if again.Volume.String() != step.Volume.String() || again.Claim.String() != step.Claim.String() {
		t.Errorf("%v\nthen %v", step, again)
	}
}

func TestProvisioning(t *testing.T) {
	s := Snapshot{Classes: classes(), Nodes: nodes()}
	v := DecideClaim(newClaim("local-path", selected("a")), s).Create
	if v.Spec.Local.Path != "/var/a/volumes/pvc-u1_ns_data" || v.Labels[LabelNode] != "a" || v.Finalizers[0] != Provisioner ||
		v.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete || v.Spec.ClaimRef.UID != "u1" ||
		storage.CheckNodeAffinity(v, s.Nodes[0].Labels) != nil || storage.CheckNodeAffinity(v, s.Nodes[1].Labels) == nil {
		t.Errorf("%+v", v)
	}
	long := newClaim("local-path", selected("a"))
	long.Name = strings.Repeat("x", 250)
	if p := DecideClaim(long, s).Create.Spec.Local.Path; p != "/var/a/volumes/pvc-u1" {
		t.Errorf("the directory of a claim with a long name is %s", p)
	}
	if c := DecideClaim(newClaim("local-path", selected("gone")), s).Claim; c.Annotations[storage.AnnSelectedNode] != "" {
		t.Error("a node that is gone stays selected")
	}
	bigger := newClaim("local-path", boundClaimTo("v"))
	bigger.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("7Gi")
	for who, want := range map[string]string{Provisioner: "7Gi", "": "2Gi"} {
		step := DecideClaim(bigger, Snapshot{Volumes: []*corev1.PersistentVolume{newVolume("v", "2Gi", "local-path", claimedBy("u1"), provisionedBy(who))}})
		if size := step.Claim.Status.Capacity[corev1.ResourceStorage]; size.String() != want {
			t.Errorf("a claim that asks for more of a volume by %q has %s", who, size.String())
		}
	}
}

func TestDefaultClass(t *testing.T) {
	claim := newClaim("")
	claim.Spec.StorageClassName = nil
	all := classes()
	if step := DecideClaim(claim, Snapshot{Classes: all}); result(step) != "=Pending FailedBinding" {
		t.Errorf("without a default class: %s", result(step))
	}
	for i, c := range all[:2] {
		c.Annotations = map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}
		c.CreationTimestamp = metav1.NewTime(time.Unix(int64(i), 0))
	}
	if c := DecideClaim(claim, Snapshot{Classes: all}).Claim; c.Spec.StorageClassName == nil || *c.Spec.StorageClassName != "at-once" {
		t.Errorf("class %v", c.Spec.StorageClassName)
	}
}

func TestDecideVolume(t *testing.T) {
	ours, theirs := provisionedBy(Provisioner), provisionedBy("example.com/disk")
	for _, c := range []struct {
		name   string
		volume *corev1.PersistentVolume
		claim  *corev1.PersistentVolumeClaim
		want   string
	}{
		{"new", newVolume("v", "1Gi", "", phase(corev1.VolumePending)), nil, "v=Available"},
		{"kept for a claim", newVolume("v", "1Gi", "", claimedBy("")), nil, "v=Available"},
		{"bound", newVolume("v", "1Gi", "", claimedBy("u1")), newClaim("", boundClaimTo("v")), "v=Bound"},
		{"claim not bound yet", newVolume("v", "1Gi", "", claimedBy("u1")), newClaim(""), ""},
		{"claim gone", newVolume("v", "1Gi", "", claimedBy("u1"), phase(corev1.VolumeBound)), nil, "v=Released"},
		{"claim replaced", newVolume("v", "1Gi", "", claimedBy("u0"), phase(corev1.VolumeBound)), newClaim("", boundClaimTo("v")), "v=Released"},
		{"released and retained", newVolume("v", "1Gi", "", claimedBy("u1"), phase(corev1.VolumeReleased)), nil, ""},
		{"bound and never deleted", newVolume("v", "1Gi", "", claimedBy("u1"), ours, reclaim(corev1.PersistentVolumeReclaimDelete)), newClaim("", boundClaimTo("v")), "v=Bound"},
		{"ours not released yet", newVolume("v", "1Gi", "", claimedBy("u1"), ours, reclaim(corev1.PersistentVolumeReclaimDelete), phase(corev1.VolumeBound)), nil, "v=Released"},
		{"ours released", newVolume("v", "1Gi", "", claimedBy("u1"), ours, reclaim(corev1.PersistentVolumeReclaimDelete), phase(corev1.VolumeReleased)), nil, "delete v"},
		{"ours being deleted", newVolume("v", "1Gi", "", claimedBy("u1"), ours, reclaim(corev1.PersistentVolumeReclaimDelete), phase(corev1.VolumeReleased), deleted), nil, ""},
		{"another's released", newVolume("v", "1Gi", "", claimedBy("u1"), theirs, reclaim(corev1.PersistentVolumeReclaimDelete), phase(corev1.VolumeReleased)), nil, ""},
		{"nobody's released", newVolume("v", "1Gi", "", claimedBy("u1"), reclaim(corev1.PersistentVolumeReclaimDelete), phase(corev1.VolumeReleased)), nil, "v=Failed VolumeFailedDelete"},
		{"to be recycled", newVolume("v", "1Gi", "", claimedBy("u1"), reclaim(corev1.PersistentVolumeReclaimRecycle), phase(corev1.VolumeReleased)), nil, "v=Failed VolumeFailedRecycle"},
		{"claim bound elsewhere", newVolume("v", "1Gi", "", claimedBy("u1")), newClaim("", boundClaimTo("w")), "v=Available"},
		{"claim bound elsewhere, ours", newVolume("v", "1Gi", "", claimedBy("u1"), ours, reclaim(corev1.PersistentVolumeReclaimDelete)), newClaim("", boundClaimTo("w")), "v=Released"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := result(DecideVolume(c.volume, c.claim, Snapshot{Nodes: nodes()})); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestUnbind(t *testing.T) {
	elsewhere := newClaim("", boundClaimTo("w"))
	v := newVolume("v", "1Gi", "", claimedBy("u1"))
	if ref := DecideVolume(v, elsewhere, Snapshot{}).Volume.Spec.ClaimRef; ref == nil || ref.UID != "" || ref.Name != "data" {
		t.Errorf("what its user has kept for a claim: %v", ref)
	}
	metav1.SetMetaDataAnnotation(&v.ObjectMeta, storage.AnnBoundByController, "yes")
	if got := DecideVolume(v, elsewhere, Snapshot{}).Volume; got.Spec.ClaimRef != nil || got.Annotations[storage.AnnBoundByController] != "" {
		t.Errorf("what we have bound: %v", got)
	}
}

// TestNodeGone: a volume whose node has gone for good is let go of.
func TestNodeGone(t *testing.T) {
	v := newVolume("v", "1Gi", "", claimedBy("u1"), phase(corev1.VolumeReleased), deleted)
	v.Labels, v.Finalizers = map[string]string{LabelNode: "a"}, []string{Provisioner, "other"}
	if step := DecideVolume(v, nil, Snapshot{Nodes: nodes()}); step.Volume != nil {
		t.Errorf("the node is there, and %+v", step)
	}
	if step := DecideVolume(v, nil, Snapshot{}); step.Volume == nil || len(step.Volume.Finalizers) != 1 {
		t.Errorf("the node is gone, and %+v", step)
	}
}
