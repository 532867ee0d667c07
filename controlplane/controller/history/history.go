// Package history keeps the former pod templates of a workload in
// ControllerRevisions, in the format of Kubernetes, so that `kubectl rollout history`
// and `undo` work. Next and Excess decide; Revisions carries out.
package history

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/rand"
)

// maxPrefix is how much of the owner's name fits into a revision's name.
const maxPrefix = 223

// Owner is a workload as far as its revisions are concerned.
type Owner struct {
	metav1.Object
	Kind     schema.GroupVersionKind
	Selector labels.Selector
	Template *corev1.PodTemplateSpec
	// HashLabel is the label of a revision that has the hash in its name.
	HashLabel string
	// Collisions is how many names were found taken by something else.
	Collisions int32
	// Limit is how many revisions that are not in use are kept; nil keeps all.
	Limit *int32
}

// Data is what the revision of a template stores: the strategic merge patch that
// restores it. Its keys are sorted, for kubectl compares bytes.
func Data(t *corev1.PodTemplateSpec) []byte {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(t)
	if err != nil {
		panic("encode pod template: " + err.Error()) // plain data always encodes
	}
	fields["$patch"] = "replace"
	out, err := json.Marshal(map[string]any{"spec": map[string]any{"template": fields}})
	if err != nil {
		panic("encode pod template: " + err.Error())
	}
	return out
}

// Template returns the pod template that a revision stores.
func Template(r *appsv1.ControllerRevision) (*corev1.PodTemplateSpec, error) {
	var stored struct {
		Spec struct {
			Template corev1.PodTemplateSpec `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(r.Data.Raw, &stored); err != nil {
		return nil, fmt.Errorf("read controller revision %s/%s: %w", r.Namespace, r.Name, err)
	}
	return &stored.Spec.Template, nil
}

// Step is what has to be done for a template to have the newest revision.
type Step struct {
	// Revision of the template, as it is to be.
	Revision *appsv1.ControllerRevision
	// Create it; or write its new number.
	Create, Renumber bool
}

// Next finds the revision of the owner's template among those that it owns. Going
// back to an old template gives its revision a number above all others, so that
// history never branches.
func Next(o Owner, revisions []*appsv1.ControllerRevision) Step {
	var highest int64
	var found *appsv1.ControllerRevision
	for _, r := range sorted(revisions) {
		if t, err := Template(r); err == nil && apiequality.Semantic.DeepEqual(t, o.Template) {
			found = r // the newest, should there ever be two
		}
		highest = max(highest, r.Revision)
	}
	if found == nil {
		return Step{Revision: newRevision(o, highest+1), Create: true}
	}
	above := slices.ContainsFunc(revisions, func(r *appsv1.ControllerRevision) bool {
		return r != found && r.Revision >= found.Revision
	})
	if !above {
		return Step{Revision: found}
	}
	found = found.DeepCopy()
	found.Revision = highest + 1
	return Step{Revision: found, Renumber: true}
}

// Excess are the revisions to delete: of those that are not in use, the oldest
// beyond the limit.
func Excess(o Owner, revisions []*appsv1.ControllerRevision, inUse func(*appsv1.ControllerRevision) bool) []*appsv1.ControllerRevision {
	if o.Limit == nil {
		return nil
	}
	idle := slices.DeleteFunc(sorted(revisions), inUse)
	return idle[:max(len(idle)-int(*o.Limit), 0)]
}

// sorted returns the revisions, the oldest first.
func sorted(revisions []*appsv1.ControllerRevision) []*appsv1.ControllerRevision {
	return slices.SortedFunc(slices.Values(revisions), func(a, b *appsv1.ControllerRevision) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision), a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
}

func newRevision(o Owner, number int64) *appsv1.ControllerRevision {
	data := Data(o.Template)
	hash := hashOf(data, o.Collisions)
	l := maps.Clone(o.Template.Labels)
	if l == nil {
		l = map[string]string{}
	}
	l[o.HashLabel] = hash
	prefix := o.GetName()[:min(len(o.GetName()), maxPrefix)]
	return &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Name: prefix + "-" + hash, Namespace: o.GetNamespace(), Labels: l,
			// Among them kubernetes.io/change-cause, which kubectl shows.
			Annotations:     maps.Clone(o.GetAnnotations()),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(o.Object, o.Kind)},
		},
		Data:     runtime.RawExtension{Raw: data},
		Revision: number,
	}
}

// hashOf names a revision. Another collision count gives another name to the same
// data.
func hashOf(data []byte, collisions int32) string {
	h := fnv.New32()
	h.Write(data)
	if collisions > 0 {
		_ = binary.Write(h, binary.LittleEndian, collisions)
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}
