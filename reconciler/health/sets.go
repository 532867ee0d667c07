package health

import (
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// statefulSet: a partition holds pods back at the old revision, and with OnDelete
// nobody but people replaces pods; neither is waited for.
func statefulSet(u *unstructured.Unstructured) Result {
	want := num(u, 1, "spec", "replicas")
	all, ready := num(u, 0, "status", "replicas"), num(u, 0, "status", "readyReplicas")
	updated, available := num(u, 0, "status", "updatedReplicas"), num(u, 0, "status", "availableReplicas")
	r := Result{Status: InProgress, Done: available, Total: want}
	if num(u, -1, "status", "observedGeneration") < 0 {
		r.Message = "has not been looked at yet"
		return r
	}
	rolling := str(u, "spec", "updateStrategy", "type") != "OnDelete"
	partition := num(u, 0, "spec", "updateStrategy", "rollingUpdate", "partition")
	if rolling {
		r.Done = min(available, updated+min(partition, want))
	}
	switch {
	case all < want:
		r.Message = fmt.Sprintf("%d of %d pods created", all, want)
	case all > want:
		r.Message = fmt.Sprintf("%d pods still to end", all-want)
	case ready < want:
		r.Message = fmt.Sprintf("%d of %d pods ready", ready, want)
	case rolling && updated < want-partition:
		r.Message = fmt.Sprintf("%d of %d pods updated", updated, want-partition)
	case available < want:
		r.Message = fmt.Sprintf("%d of %d pods available", available, want)
	case rolling && partition == 0 && str(u, "status", "currentRevision") != str(u, "status", "updateRevision"):
		r.Message = "the update is not complete yet"
	default:
		r.Status, r.Message = Current, fmt.Sprintf("%d of %d pods available", available, want)
	}
	return r
}

func daemonSet(u *unstructured.Unstructured) Result {
	want := num(u, 0, "status", "desiredNumberScheduled")
	current, ready := num(u, 0, "status", "currentNumberScheduled"), num(u, 0, "status", "numberReady")
	updated, available := num(u, 0, "status", "updatedNumberScheduled"), num(u, 0, "status", "numberAvailable")
	r := Result{Status: InProgress, Done: available, Total: want}
	if num(u, -1, "status", "observedGeneration") < 0 {
		r.Message = "has not been looked at yet"
		return r
	}
	rolling := str(u, "spec", "updateStrategy", "type") != "OnDelete"
	if rolling {
		r.Done = min(updated, available)
	}
	switch {
	case current < want:
		r.Message = fmt.Sprintf("%d of %d nodes have a pod", current, want)
	case rolling && updated < want:
		r.Message = fmt.Sprintf("%d of %d pods updated", updated, want)
	case available < want:
		r.Message = fmt.Sprintf("%d of %d pods available", available, want)
	case ready < want:
		r.Message = fmt.Sprintf("%d of %d pods ready", ready, want)
	default:
		r.Status, r.Message = Current, fmt.Sprintf("%d of %d pods available", available, want)
	}
	return r
}
