package apply

import (
	"encoding/json"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/reconciler/render"
)

// A workload that is scaled by a HorizontalPodAutoscaler of the same commit has two
// masters: its manifest says how many pods there are at first, and from then on the
// autoscaler does. Otherwise every sync and every look for drift would undo what the
// autoscaler has done.

// yieldReplicas takes spec.replicas out of the objects that an autoscaler among them
// scales, and keeps it aside in Object.Replicas. What it is given stays as it is.
func yieldReplicas(objects []render.Object) []render.Object {
	scaled := map[render.ID]bool{}
	for _, o := range objects {
		if o.GetKind() != "HorizontalPodAutoscaler" || o.GroupVersionKind().Group != "autoscaling" {
			continue
		}
		ref, _, err := unstructured.NestedStringMap(o.Object, "spec", "scaleTargetRef")
		if err != nil {
			continue // the server says what is wrong with it
		}
		if gv, err := schema.ParseGroupVersion(ref["apiVersion"]); err == nil {
			scaled[render.ID{Group: gv.Group, Kind: ref["kind"], Namespace: o.GetNamespace(), Name: ref["name"]}] = true
		}
	}
	if len(scaled) == 0 {
		return objects
	}
	out := make([]render.Object, len(objects))
	for i, o := range objects {
		out[i] = o
		if !scaled[render.IDOf(o.Unstructured)] {
			continue
		}
		out[i].Autoscaled, out[i].Unstructured = true, o.DeepCopy()
		if n, found, err := unstructured.NestedInt64(o.Object, "spec", "replicas"); found && err == nil {
			out[i].Replicas = &n
			unstructured.RemoveNestedField(out[i].Object, "spec", "replicas")
		}
	}
	return out
}

// WithReplicas completes what is applied of an object whose number of pods was taken
// out: at first by what the manifest says. Later by what it is now, as long as nobody
// else has set it: leaving out a field that is ours alone would reset it to one pod.
func WithReplicas(u *unstructured.Unstructured, o *render.Object, live *unstructured.Unstructured) *unstructured.Unstructured {
	if !o.Autoscaled {
		return u
	}
	n := o.Replicas
	if live != nil {
		n = nil
		if now, found, err := unstructured.NestedInt64(live.Object, "spec", "replicas"); err == nil && found && ownsReplicas(live) {
			n = &now
		}
	}
	if n != nil {
		// It fails if spec is no object; the server says so, too, and where.
		_ = unstructured.SetNestedField(u.Object, *n, "spec", "replicas")
	}
	return u
}

// ownsReplicas says whether we are the ones who last set an object's number of pods.
func ownsReplicas(live *unstructured.Unstructured) bool {
	for _, m := range live.GetManagedFields() {
		if m.Manager != v1alpha1.FieldManager || m.FieldsV1 == nil || m.Subresource != "" {
			continue
		}
		var fields struct {
			Spec struct {
				Replicas *struct{} `json:"f:replicas"`
			} `json:"f:spec"`
		}
		if err := json.Unmarshal(m.FieldsV1.GetRawBytes(), &fields); err == nil && fields.Spec.Replicas != nil {
			return true
		}
	}
	return false
}
