package deployment

import (
	"encoding/binary"
	"encoding/json"
	"hash/fnv"
	"maps"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/rand"
)

// Annotations that kubectl reads and writes.
const (
	// RevisionAnnotation numbers the rollouts of a Deployment.
	RevisionAnnotation = "deployment.kubernetes.io/revision"
	// revisionHistory lists the former numbers of a ReplicaSet that was reused.
	revisionHistory   = "deployment.kubernetes.io/revision-history"
	desiredAnnotation = "deployment.kubernetes.io/desired-replicas"
	maxAnnotation     = "deployment.kubernetes.io/max-replicas"
)

// notCopied are annotations of a Deployment that its ReplicaSets do not inherit.
var notCopied = map[string]bool{
	corev1.LastAppliedConfigAnnotation: true,
	RevisionAnnotation:                 true,
	revisionHistory:                    true,
	desiredAnnotation:                  true,
	maxAnnotation:                      true,
	appsv1.DeprecatedRollbackTo:        true,
}

// TemplateHash names the ReplicaSet of a pod template. A collision count other
// than nil gives another name to the same template.
func TemplateHash(t *corev1.PodTemplateSpec, collisions *int32) string {
	h := fnv.New32a()
	// Fields of a struct are written in order and map keys are sorted, so equal
	// templates give equal bytes.
	if err := json.NewEncoder(h).Encode(t); err != nil {
		panic("encode pod template: " + err.Error()) // plain data always encodes
	}
	if collisions != nil {
		_ = binary.Write(h, binary.LittleEndian, *collisions)
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}

// sameTemplate compares two templates but for the hash label.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	return apiequality.Semantic.DeepEqual(withoutHash(a), withoutHash(b))
}

func withoutHash(t *corev1.PodTemplateSpec) *corev1.PodTemplateSpec {
	if _, ok := t.Labels[appsv1.DefaultDeploymentUniqueLabelKey]; !ok {
		return t
	}
	c := *t
	c.Labels = maps.Clone(t.Labels)
	delete(c.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	if len(c.Labels) == 0 {
		c.Labels = nil
	}
	return &c
}

// revisionOf is the number of a ReplicaSet, 0 if it has none.
func revisionOf(rs *appsv1.ReplicaSet) int64 {
	n, _ := strconv.ParseInt(rs.Annotations[RevisionAnnotation], 10, 64)
	return n
}

// setAnnotations copies the Deployment's annotations, among them change-cause, to
// its new ReplicaSet and gives it the revision, unless that is empty.
func setAnnotations(d *appsv1.Deployment, rs *appsv1.ReplicaSet, revision string) {
	if rs.Annotations == nil {
		rs.Annotations = map[string]string{}
	}
	for k, v := range d.Annotations {
		if !notCopied[k] {
			rs.Annotations[k] = v
		}
	}
	if was := rs.Annotations[RevisionAnnotation]; revision != "" && was != revision {
		rs.Annotations[RevisionAnnotation] = revision
		if was != "" {
			history := rs.Annotations[revisionHistory]
			rs.Annotations[revisionHistory] = strings.TrimPrefix(history+","+was, ",")
		}
	}
	if _, ok := rs.Annotations[desiredAnnotation]; !ok {
		surge, _ := fenceposts(d)
		setDesired(rs, want(d), want(d)+surge)
	}
}

// setDesired notes the size that the Deployment had when the ReplicaSet was last
// scaled, from which a later look sees that it was scaled since.
func setDesired(rs *appsv1.ReplicaSet, desired, most int32) {
	if rs.Annotations == nil {
		rs.Annotations = map[string]string{}
	}
	rs.Annotations[desiredAnnotation] = strconv.Itoa(int(desired))
	rs.Annotations[maxAnnotation] = strconv.Itoa(int(most))
}

func desiredOf(rs *appsv1.ReplicaSet) (int32, bool) { return number(rs, desiredAnnotation) }
func maxOf(rs *appsv1.ReplicaSet) (int32, bool)     { return number(rs, maxAnnotation) }

func number(rs *appsv1.ReplicaSet, annotation string) (int32, bool) {
	n, err := strconv.ParseInt(rs.Annotations[annotation], 10, 32)
	return int32(n), err == nil
}

func sameAnnotations(a, b *appsv1.ReplicaSet) bool { return maps.Equal(a.Annotations, b.Annotations) }
